"""`steer`: one prompt, one method, one run folder. What the command line and the page call."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tiller.core.budget import Budget, Cost
from tiller.core.errors import InvalidInput, RunError, TillerError
from tiller.core.rng import Draw
from tiller.core.search import Step, search_phases
from tiller.core.state import pack
from tiller.methods._catalog import make_method
from tiller.methods._pictures import Pictures
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel
from tiller.models.inputs import Inputs
from tiller.models.loader import BUNDLED, load_model
from tiller.rewards import Reward, RewardSum, make_reward
from tiller.runs.png import to_image
from tiller.runs.record import read_run
from tiller.runs.store import RunStore, versions

OneReward = str | Reward | Callable[..., Any]
RewardSpec = OneReward | Sequence[OneReward]


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
        held_out: the names of the rewards that were reported and not optimized.
        cost: what the search used (the baseline is not charged).
        stopped: why it ended: a limit of the budget, the solver's own end, or `interrupted`.
        run_dir: the run's folder; `tiller.open_run` reads it back.
    """

    method: str
    prompt: str
    best: Picture
    baseline: Picture
    held_out: tuple[str, ...]
    cost: Cost
    stopped: str
    run_dir: Path


@dataclass(frozen=True)
class Progress:
    """What a progress line or a live page shows after a round.

    Attributes:
        step: the round.
        scores: what every reward says of the best picture so far.
        baseline: the same of the unsteered picture.
        held_out: which of them are not optimized.
        budget: the run's.
        run_dir: its folder.
    """

    step: Step
    scores: dict[str, float]
    baseline: dict[str, float]
    held_out: tuple[str, ...]
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
    if method != "auto":
        make_method(method, settings)  # a typing error should not cost the loading of a model
    loaded = model if isinstance(model, FrozenModel) else load_model(model)
    optimized = make_reward(reward, probe_size=loaded.defaults.height)
    name, chosen = make_method(method, settings, optimized)
    spec = {
        "method": {"name": name, "settings": dataclasses.asdict(chosen)},
        "citation": chosen.citation,
        "model": loaded.source,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "reward": optimized.spec,
        "held_out": list(held_out) if held_out is not None else default_held_out(optimized),
        "budget": str(budget or chosen.default_budget),
        "seed": seed,
        "sampler": dataclasses.asdict(chosen.sampler(loaded)),
        "versions": versions(),
    }
    run = _Run.of(spec, loaded, chosen, optimized)
    run.phases[0].build(None)
    store = RunStore.create(out, spec, name)
    return _drive(run, store, on_step)


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
    store = RunStore.open(run_dir)
    spec: Mapping[str, Any] = store.spec
    if model is None and spec["model"] is None:
        raise RunError(
            f"{run_dir} was made with a pipeline object; pass it: resume(run, model=...)"
        )
    if reward is None and spec["reward"] is None:
        raise RunError(f"{run_dir} was made with a Python reward; pass it: resume(run, reward=...)")
    loaded = model or load_model(spec["model"])
    size = loaded.defaults.height
    optimized = make_reward(reward if reward is not None else spec["reward"], probe_size=size)
    _, chosen = make_method(spec["method"]["name"], spec["method"]["settings"], optimized)
    sampler = dataclasses.asdict(chosen.sampler(loaded))
    if sampler != spec["sampler"]:
        raise RunError(
            f"{run_dir} was drawn with {spec['sampler']}, this model would draw with {sampler}; "
            "pass the model as it was loaded then: resume(run, model=...)"
        )
    if budget is not None:
        spec = {**spec, "budget": str(Budget.parse(budget) if isinstance(budget, str) else budget)}
    return _drive(_Run.of(spec, loaded, chosen, optimized), store, on_step)


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

    @property
    def watched(self) -> tuple[str, ...]:
        """The names of the rewards that are not optimized."""
        return tuple(part.name for part in self.held_out.parts) if self.held_out else ()

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
    on_step: Callable[[Progress], None] | None,
) -> Result:
    """Run the search and keep the folder in step with it; the state on disk is the truth."""
    with store, interruptible() as interrupted:
        saved = store.load_state()
        planned = False
        try:
            if saved is None:
                store.rewind(0)
                baseline = _draw_baseline(run, store)
                scores = baseline.scores
            else:
                store.rewind(saved.tree["round"])
                store.append({"kind": "resumed", "step": saved.tree["round"], "time": _now()})
                baseline, scores = _picture(store, "baseline"), _picture(store, "best").scores
            for step in search_phases(run.phases, run.budget, seed=run.spec["seed"], resume=saved):
                fresh = step.best.round == step.index
                if fresh:
                    scores = run.scores(step.best.y)
                    _save_best(store, run, step, scores)
                if step.evaluation.grad is not None and not planned:
                    planned = _say_plan(store, step)
                stopped = step.stopped or ("interrupted" if interrupted() else None)
                store.checkpoint(pack(step.state), _entry(step, scores, fresh, stopped))
                if on_step is not None:
                    on_step(
                        Progress(step, scores, baseline.scores, run.watched, run.budget, store.path)
                    )
                if stopped:
                    break
        except TillerError as error:
            with suppress(RunError):  # the disk may be what failed
                store.append({"kind": "error", "text": str(error), "time": _now()})
            error.add_note(f"run: {store.path}")
            raise
    return open_run(store.path)


def _say_plan(store: RunStore, step: Step) -> bool:
    """Note which activations the gradient keeps and which it recomputes."""
    objective = step.problem.objective
    if isinstance(objective, Pictures):
        store.append({"kind": "notice", "text": f"gradient: {objective.trajectory.plan}"})
    return True


def _draw_baseline(run: _Run, store: RunStore) -> Picture:
    picture = run.draw_baseline()
    baseline = Picture(to_image(picture), run.scores(picture))
    store.save_image("baseline.png", picture, _about(run, 0, baseline.scores))
    store.append(
        {
            "kind": "baseline",
            "scores": baseline.scores,
            "held_out": run.watched,
            "image": "images/baseline.png",
        }
    )
    return baseline


def _save_best(store: RunStore, run: _Run, step: Step, scores: dict[str, float]) -> None:
    """The best so far as a film frame, as `best.png`, and as the tensors that redraw it."""
    about = _about(run, step.index, scores)
    store.save_image(f"best-{step.index:04d}.png", step.best.y, about)
    store.save_image("best.png", step.best.y, about)
    with torch.no_grad():
        inputs: Inputs = step.problem.space.decode(step.best.z)
    tensors = {"noise": inputs.noise[0].contiguous()}
    words = run.task.conditioning()
    for field in dataclasses.fields(words):  # embeddings go along where words do not say it all
        value, plain = getattr(inputs.conditioning, field.name), getattr(words, field.name)
        if value is not None and not (plain is not None and torch.equal(value, plain)):
            tensors[field.name] = value.contiguous()
    model = run.task.model
    source = str(BUNDLED.get(model.source, model.source)) if model.source else None
    device = {"dtype": str(model.dtype), "device": str(model.device)}
    store.save_best(tensors, {**about, **device, "model_path": source})


def _about(run: _Run, step: int, scores: dict[str, float]) -> dict[str, Any]:
    """What a picture's file says of it."""
    keys = ("prompt", "negative_prompt", "model", "seed", "versions")
    method = run.spec["method"]["name"]
    sampler = run.spec["sampler"]
    known = {key: run.spec[key] for key in keys}
    return {**known, **sampler, "method": method, "step": step, "scores": scores}


def _entry(
    step: Step, scores: dict[str, float], fresh: bool, stopped: str | None
) -> dict[str, Any]:
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
        "stopped": stopped,
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
    record = read_run(run_dir)
    if not record.steps:
        raise RunError(f"{run_dir} has no finished step yet; continue it with `tiller resume`")
    store = RunStore.open(run_dir)
    return Result(
        method=record.method,
        prompt=record.prompt,
        best=_picture(store, "best"),
        baseline=_picture(store, "baseline"),
        held_out=tuple(record.baseline.get("held_out", ())),
        cost=Cost(**record.last["cost"]),
        stopped=record.stopped or "not finished",
        run_dir=record.path,
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
