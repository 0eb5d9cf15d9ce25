"""One run: the search, and the folder that is kept in step with it."""

from __future__ import annotations

import dataclasses
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import RunError, TillerError, TillerNotice
from tiller.core.rng import Draw
from tiller.core.search import Phase, Step, search_phases
from tiller.core.state import pack
from tiller.methods._pictures import Pictures
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel
from tiller.models.inputs import Inputs
from tiller.models.loader import BUNDLED
from tiller.rewards import RewardSum, make_reward
from tiller.runs.store import RunStore


@dataclass(frozen=True)
class Picture:
    """A picture and what every reward of the run says of it, the held-out ones included."""

    image: Image.Image
    scores: dict[str, float]


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


@dataclass(frozen=True)
class Run:
    """A run's parts, all made from its spec."""

    spec: Mapping[str, Any]
    method: Method
    task: Task
    reward: RewardSum
    held_out: RewardSum | None
    budget: Budget
    phases: list[Phase]

    @classmethod
    def of(
        cls, spec: Mapping[str, Any], model: FrozenModel, method: Method, reward: RewardSum
    ) -> Run:
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


def drive(
    run: Run,
    store: RunStore,
    on_step: Callable[[Progress], None] | None,
) -> None:
    """Run the search and keep the folder in step with it; the state on disk is the truth."""
    with store, interruptible() as interrupted:
        saved = store.load_state()
        try:
            if saved is None:
                store.journal.clear()
                before = scores = _draw_baseline(run, store)
            else:
                before, scores = _continued(run, store, saved.tree["round"])
            planned = saved is not None
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
                    on_step(Progress(step, scores, before, run.watched, run.budget, store.path))
                if stopped:
                    break
        except TillerError as error:
            with suppress(RunError):  # the disk may be what failed
                store.append({"kind": "error", "text": str(error), "time": _now()})
            error.add_note(f"run: {store.path}")
            raise


def _continued(run: Run, store: RunStore, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Bring the journal to the state's round; the scores of the baseline and of the best then."""
    fallen_back = list(store.notices)  # rewinding drops what the journal said of it
    store.rewind(rounds)
    for text in fallen_back:
        warnings.warn(text, TillerNotice, stacklevel=4)
        store.append({"kind": "notice", "text": text})
    entries = store.entries()
    store.append({"kind": "resumed", "step": rounds, "budget": str(run.budget), "time": _now()})
    drawn = [entry for entry in entries if entry["kind"] == "baseline"]
    before = drawn[0]["scores"] if drawn else _draw_baseline(run, store)
    steps = [entry for entry in entries if entry["kind"] == "step"]
    return before, steps[-1]["scores"] if steps else before


def _say_plan(store: RunStore, step: Step) -> bool:
    """Note which activations the gradient keeps and which it recomputes."""
    objective = step.problem.objective
    if isinstance(objective, Pictures):
        store.append({"kind": "notice", "text": f"gradient: {objective.trajectory.plan}"})
    return True


def _draw_baseline(run: Run, store: RunStore) -> dict[str, float]:
    """Draw and keep the unsteered picture; its scores."""
    picture = run.draw_baseline()
    scores = run.scores(picture)
    store.save_image("baseline.png", picture, _about(run, 0, scores))
    image = "images/baseline.png"
    store.append({"kind": "baseline", "scores": scores, "held_out": run.watched, "image": image})
    return scores


def _save_best(store: RunStore, run: Run, step: Step, scores: dict[str, float]) -> None:
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


def _about(run: Run, step: int, scores: dict[str, float]) -> dict[str, Any]:
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


def picture_of(store: RunStore, name: str) -> Picture:
    """A picture of the run with the scores that its file carries."""
    image, about = store.load_image(name)
    return Picture(image, about["scores"])


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
