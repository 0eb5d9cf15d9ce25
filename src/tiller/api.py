"""`steer`: one prompt, one method, one run folder. What the command line and the page call."""

from __future__ import annotations

import dataclasses
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tiller.core.budget import Budget, Cost
from tiller.core.errors import InvalidInput, RunError, TillerError
from tiller.core.rng import Draw
from tiller.core.search import Step, search_phases
from tiller.core.state import Packed, pack
from tiller.methods._catalog import make_method
from tiller.methods.base import Method, Task
from tiller.models import load_model
from tiller.models.base import FrozenModel
from tiller.models.inputs import Inputs
from tiller.rewards import make_reward
from tiller.rewards.compose import RewardSum
from tiller.runs.png import to_image
from tiller.runs.store import RunStore

RewardSpec = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]


@dataclass(frozen=True)
class Picture:
    """A picture and what every reward of the run says of it, the held-out ones included."""

    image: Image.Image
    scores: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        method: the method's name.
        prompt: the user's prompt.
        best: the best picture found; never worse than the baseline by the run's own score.
        baseline: the unsteered picture of the same seed and sampler.
        cost: what the search used (the baseline is not charged).
        stopped: why it ended: a limit of the budget, the solver's own end, or `interrupted`.
        run_dir: the run's folder; `tiller.open_run` reads it back.
    """

    method: str
    prompt: str
    best: Picture
    baseline: Picture
    cost: Cost
    stopped: str
    run_dir: Path


@dataclass(frozen=True)
class Progress:
    """What a progress line or a live page shows after a round."""

    step: Step
    scores: dict[str, float]
    baseline: dict[str, float]
    budget: Budget
    run_dir: Path


def steer(
    model: str | Path | FrozenModel | Any,
    prompt: str,
    *,
    method: str = "auto",
    reward: RewardSpec = "clip",
    held_out: Sequence[str] | None = None,
    negative_prompt: str = "",
    budget: Budget | str | None = None,
    seed: int = 0,
    out: str | Path = "runs",
    on_step: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Result:
    """Search the frozen model's inputs for the picture of `prompt` that `reward` likes best.

    Args:
        model: what `load_model` takes or returns.
        prompt: what the picture should show.
        method: a name from `tiller methods`, or `auto`, which picks by what the reward allows.
        reward: a name, `"name:weight"`, a callable images [n, 3, H, W] in [0, 1] (and prompts) to
            scores [n], `"file.py:function"`, or a list of these (their weighted sum).
        held_out: rewards to report and not to optimize; None chooses one that is not optimized.
        negative_prompt: what guidance steers away from.
        budget: when to stop, a `Budget` or text such as "steps=30"; None takes the method's own.
        seed: of everything random; the same seed gives the same run.
        out: the folder that gets the run's folder.
        on_step: called after each round.
        settings: the method's fields.

    Raises:
        InvalidInput: something in the arguments is unusable; nothing has been drawn.
        Incompatible: the method cannot work with this reward.
        RewardError: the reward failed during the run; the run folder keeps the best so far.

    Example:
        >>> result = tiller.steer("emoji", "a purple owl", budget="steps=10")   # doctest: +SKIP
        >>> result.best.scores["clip"] >= result.baseline.scores["clip"]        # doctest: +SKIP
        True
    """
    _check_prompt(prompt, seed)
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    loaded = model if isinstance(model, FrozenModel) else load_model(model)
    optimized = make_reward(reward)
    name, chosen = make_method(method, settings, optimized)
    spec = {
        "method": {"name": name, "asked": method, "settings": _changed(chosen)},
        "citation": chosen.citation,
        "model": loaded.spec,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "reward": optimized.spec,
        "held_out": list(held_out) if held_out is not None else default_held_out(optimized),
        "budget": str(budget or chosen.default_budget),
        "seed": seed,
        "sampler": dataclasses.asdict(chosen.sampler(loaded)),
        "versions": _versions(),
    }
    run = _Run.of(spec, loaded, chosen, optimized)
    run.phases[0].build(None)
    store = RunStore.create(Path(out), spec, name)
    return _drive(run, store, None, on_step)


def resume(
    run_dir: str | Path,
    *,
    model: FrozenModel | None = None,
    reward: RewardSpec | None = None,
    budget: Budget | str | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Result:
    """Continue a run bit-exactly from its last saved round.

    Args:
        run_dir: the run's folder.
        model: needed if the run was made with a pipeline object.
        reward: needed if the run's reward was a Python callable.
        budget: a larger budget, to go on after the end; None keeps the run's own.

    Raises:
        RunError: no run there, it is damaged, in use by another process, or of other code.
    """
    store = RunStore.open(Path(run_dir))
    spec = store.spec
    if model is None and spec["model"] is None:
        raise RunError(
            f"{run_dir} was made with a pipeline object; pass it: resume(run, model=...)"
        )
    if reward is None and spec["reward"] is None:
        raise RunError(f"{run_dir} was made with a Python reward; pass it: resume(run, reward=...)")
    loaded = model or load_model(spec["model"])
    optimized = make_reward(reward if reward is not None else spec["reward"])
    _, chosen = make_method(spec["method"]["name"], spec["method"]["settings"], optimized)
    if budget is not None:
        spec = {**spec, "budget": str(Budget.parse(budget) if isinstance(budget, str) else budget)}
    return _drive(_Run.of(spec, loaded, chosen, optimized), store, store.load_state(), on_step)


def default_held_out(reward: RewardSum) -> list[str]:
    """A reward to report beside the optimized ones: the second CLIP, else the first."""
    used = {part.name for part in reward.parts}
    return [next(name for name in ("clip_heldout", "clip", "brightness") if name not in used)]


@dataclass(frozen=True)
class _Run:
    """A run's parts, all made from its spec."""

    spec: Mapping[str, Any]
    method: Method
    task: Task
    reward: RewardSum
    held_out: RewardSum | None
    budget: Budget
    phases: list[Any]

    @classmethod
    def of(
        cls, spec: Mapping[str, Any], model: FrozenModel, method: Method, reward: RewardSum
    ) -> _Run:
        task = Task(model, spec["prompt"], spec["negative_prompt"], reward)
        held_out = make_reward(spec["held_out"]) if spec["held_out"] else None
        budget = Budget.parse(spec["budget"])
        return cls(spec, method, task, reward, held_out, budget, method.build(task))

    @torch.no_grad()
    def scores(self, picture: Tensor) -> dict[str, float]:
        """What every reward of the run says of one picture [1, 3, H, W]."""
        found = {}
        for rewards in filter(None, (self.held_out, self.reward)):
            parts = rewards.parts_scores(picture, [self.task.prompt])
            found.update({name: float(score) for name, score in parts.items()})
        return found

    @torch.no_grad()
    def draw_baseline(self) -> Tensor:
        """The unsteered picture [1, 3, H, W]."""
        seed = self.spec["seed"]
        inputs = self.method.baseline(self.task, seed)
        return self.method.pictures(self.task).render(inputs, Draw(seed, 0))


def _drive(
    run: _Run,
    store: RunStore,
    saved: Packed | None,
    on_step: Callable[[Progress], None] | None,
) -> Result:
    """Run the search and keep the folder in step with it; the state on disk is the truth."""
    with store.lock(), interruptible() as interrupted:
        if saved is None:
            store.rewind(0)
            picture = run.draw_baseline()
            baseline = Picture(to_image(picture), run.scores(picture))
            store.save_image("baseline", picture, _about(run, 0, baseline.scores))
            store.append(
                {"kind": "baseline", "scores": baseline.scores, "image": "images/baseline.png"}
            )
            scores = baseline.scores
        else:
            store.rewind(saved.tree["round"])
            store.append({"kind": "resumed", "step": saved.tree["round"], "time": _now()})
            baseline = _picture(store, "baseline")
            scores = _picture(store, "best").scores
        stopped, cost = "the budget was already used", Cost()
        try:
            for step in search_phases(run.phases, run.budget, seed=run.spec["seed"], resume=saved):
                fresh = step.best.round == step.index
                if fresh:
                    scores = run.scores(step.best.y)
                    with torch.no_grad():
                        inputs = step.problem.space.decode(step.best.z)
                    _save_best(store, run, inputs, step.best.y, step.index, scores)
                stopped = step.stopped or ("interrupted" if interrupted() else None) or ""
                store.append(_entry(step, scores, fresh, stopped))
                store.save_state(pack(step.state))
                cost = step.cost
                if on_step is not None:
                    on_step(Progress(step, scores, baseline.scores, run.budget, store.path))
                if stopped:
                    break
        except TillerError as error:
            store.append({"kind": "error", "text": str(error), "time": _now()})
            raise
    return Result(
        method=run.spec["method"]["name"],
        prompt=run.task.prompt,
        best=_picture(store, "best"),
        baseline=baseline,
        cost=cost,
        stopped=stopped,
        run_dir=store.path,
    )


def _save_best(
    store: RunStore, run: _Run, inputs: Inputs, picture: Tensor, step: int, scores: dict[str, float]
) -> None:
    """The best so far as a film frame, as `best.png`, and as the tensors that redraw it."""
    about = _about(run, step, scores)
    store.save_image(f"best-{step:04d}", picture, about)
    store.save_image("best", picture, about)
    tensors = {
        "noise": inputs.noise,
        **{
            field.name: value
            for field in dataclasses.fields(inputs.conditioning)
            if (value := getattr(inputs.conditioning, field.name)) is not None
        },
    }
    store.save_best({name: tensor.contiguous() for name, tensor in tensors.items()}, about)


def _about(run: _Run, step: int, scores: dict[str, float]) -> dict[str, Any]:
    """What a picture's file says of it."""
    keys = ("prompt", "negative_prompt", "model", "seed", "sampler", "method", "versions")
    return {**{key: run.spec[key] for key in keys}, "step": step, "scores": scores}


def _entry(step: Step, scores: dict[str, float], fresh: bool, stopped: str) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step.index,
        "phase": step.phase,
        "score": float(step.evaluation.score.max()),
        "reward": float(step.evaluation.reward[step.evaluation.best]),
        "penalty": float(step.evaluation.penalty[step.evaluation.best]),
        "best_score": step.best.score,
        "best_reward": step.best.reward,
        "scores": scores,
        "cost": dataclasses.asdict(step.cost),
        "image": f"images/best-{step.index:04d}.png" if fresh else None,
        "stopped": stopped or None,
        "time": _now(),
    }


def _picture(store: RunStore, name: str) -> Picture:
    """A picture of the run with the scores that its file carries."""
    image, about = store.load_image(name)
    return Picture(image, about["scores"])


def open_run(run_dir: str | Path) -> Result:
    """Read a run folder back as the `Result` that it ended (or stands) with.

    Raises:
        RunError: no run there, or nothing drawn yet.
    """
    store = RunStore.open(Path(run_dir))
    steps = [entry for entry in store.entries() if entry["kind"] == "step"]
    if not steps:
        raise RunError(f"{run_dir} has no finished step yet; continue it with tiller resume")
    return Result(
        method=store.spec["method"]["name"],
        prompt=store.spec["prompt"],
        best=_picture(store, "best"),
        baseline=_picture(store, "baseline"),
        cost=Cost(**steps[-1]["cost"]),
        stopped=steps[-1]["stopped"] or "not finished",
        run_dir=store.path,
    )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end a run after the step under way; a second Ctrl-C ends it at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def press(number: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _check_prompt(prompt: str, seed: int) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidInput(f"expected a prompt with at least one word, got {prompt!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidInput(f"seed must be a whole number, got {seed!r}")


def _changed(method: Method) -> dict[str, Any]:
    """A method's fields; all of them, so that new defaults do not change old runs."""
    return dataclasses.asdict(method)


def _versions() -> dict[str, str]:
    packages = ("tiller", "torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
