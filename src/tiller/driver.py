"""Driving runs: the searches, and the folders that are kept in step with them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import RewardError, RunError, TillerError, TillerNotice
from tiller.core.search import Search, Step, search_together
from tiller.core.state import Packed, pack
from tiller.guard import Guard, weigh
from tiller.learning import interruptible, now, say_once
from tiller.methods._pictures import Pictures
from tiller.run import Run, draw_baselines, keep_baseline, mean_scores, save_best
from tiller.runs.begun import begun
from tiller.runs.files import allow_files
from tiller.runs.store import RunStore
from tiller.unseen import look_elsewhere


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
        probability: P(z) of the round's best noise under the model's own; see `tiller.guard`.
    """

    step: Step
    scores: dict[str, float]
    baseline: dict[str, float]
    held_out: tuple[str, ...]
    budget: Budget
    run_dir: Path
    probability: float


def drive(
    runs: Sequence[tuple[Run, RunStore]],
    on_step: Callable[[Progress], None] | None,
) -> None:
    """Run the searches side by side, each kept in step with its folder; what is there is truth.

    What is measured after a search (`Method.unseen`) is measured once it is over, not where it was
    interrupted. A reward that fails ends the runs in which it does, once the others are over; any
    other error ends all of them. Every run keeps its best and can be resumed.

    Raises:
        RewardError: the reward failed; it names the first run in which it did.
    """
    with interruptible() as interrupted:
        failed = _driven(runs, on_step, interrupted)
    if not failed:
        return
    run, store, error = failed[0]
    if len(runs) == 1:
        raise error
    named = RewardError(
        f"{error} (with the prompt {run.spec['prompt']!r} and seed {run.spec['seed']}; "
        f"{len(failed)} of {len(runs)} runs failed, the others went on)"
    )
    named.add_note(f"run: {store.path}")
    raise named from error


def _driven(
    runs: Sequence[tuple[Run, RunStore]],
    on_step: Callable[[Progress], None] | None,
    interrupted: Callable[[], bool],
) -> list[tuple[Run, RunStore, RewardError]]:
    """The runs in which the reward fails, found by halves, each half going on side by side."""
    try:
        _side_by_side(runs, on_step, interrupted)
    except RewardError as error:
        if len(runs) == 1:
            ((run, store),) = runs
            return [(run, store, error)]
        half = len(runs) // 2
        parts = runs[:half], runs[half:]
        return [one for part in parts for one in _driven(part, on_step, interrupted)]
    return []


def _side_by_side(
    runs: Sequence[tuple[Run, RunStore]],
    on_step: Callable[[Progress], None] | None,
    interrupted: Callable[[], bool],
) -> None:
    with ExitStack() as stack:
        allow_files(2 * len(runs))  # a lock and a journal each
        for _, store in runs:
            stack.enter_context(store)
        drivers = [_Driver(run, store, interrupted) for run, store in runs]
        try:
            states = [store.load_state() for _, store in runs]
            fresh = [run for (run, _), state in zip(runs, states, strict=True) if state is None]
            drawn = draw_baselines(fresh)
            unsteered = zip(drawn, mean_scores(fresh, drawn), strict=True)
            searches = [
                driver.begin(*next(unsteered)) if state is None else driver.go_on(state)
                for driver, state in zip(drivers, states, strict=True)
            ]
            going = [i for i, driver in enumerate(drivers) if driver.guard.ended is None]

            def look(steps: Sequence[tuple[int, Step]]) -> list[str | None]:
                return _look([drivers[going[k]] for k, _ in steps], [step for _, step in steps])

            for k, step in search_together([searches[i] for i in going], look):
                progress = drivers[going[k]].keep(step)
                if on_step is not None:
                    on_step(progress)
            for run, store in runs:
                if not interrupted():
                    look_elsewhere(run, store)
        except TillerError as error:
            if isinstance(error, RewardError) and len(runs) > 1:
                raise  # of which run it is will be seen
            for _, store in runs:
                with suppress(RunError):  # the disk may be what failed
                    store.append({"kind": "error", "text": str(error), "time": now()})
                error.add_note(f"run: {store.path}")
            raise


class _Driver:
    """One run under way: its folder, its guard, and what it has found."""

    def __init__(self, run: Run, store: RunStore, interrupted: Callable[[], bool]) -> None:
        self.run, self.store, self.interrupted = run, store, interrupted
        method = run.method
        self.guard = Guard(method.stop_below, method.patience, method.lowers)
        self.watched = run.watched[0] if run.watched else None
        self.before: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.best: dict[str, float] = {}  # the kept best's score and reward
        self.fresh = self.planned = False

    def begin(self, unsteered: Tensor, scores: dict[str, float]) -> Search:
        """What to search from the start, with the pictures of `draw_baselines`."""
        space = self._space()
        self.store.journal.clear()
        self.store.append(begun(self.store, self.run.reward_files))
        self.store.append({"kind": "space", "text": space})
        for text in self.run.method.notes():
            warnings.warn(text, TillerNotice, stacklevel=4)
            self.store.append({"kind": "notice", "text": text})
        self.before = self.scores = scores
        keep_baseline(self.run, self.store, unsteered, scores)
        return self._search(None)

    def go_on(self, saved: Packed) -> Search:
        """What to search, from the last saved round on."""
        _check_same_space(self.store, self._space())
        self.before, self.scores = _continued(self.run, self.store, saved.tree["round"])
        self.planned = True
        return self._search(saved)

    def _space(self) -> str:
        text: str = self.run.phases[0].build(None).space.describe()
        return text

    def _search(self, saved: Packed | None) -> Search:
        entries = self.store.entries()
        self.guard.recall(entries, self.watched)
        steps = [entry for entry in entries if entry["kind"] == "step"]
        if steps:
            self.best = {name: steps[-1][name] for name in ("best_score", "best_reward")}
        elif saved is not None and (found := saved.tree["best"]):  # the journal was lost
            self.best = {"best_score": found["score"], "best_reward": found["reward"]}
        run = self.run
        return Search(run.phases, run.budget, run.spec["seed"], saved, run.spent)

    def judge(self, step: Step, scores: dict[str, float] | None) -> str | None:
        """Whether the round's picture is kept, by its scores if it is the best; why the run ends.

        The guard has been told P(z) of the round.
        """
        self.fresh, ended = False, None
        if not step.relaxed:
            if scores is not None and (
                not self.best or self.guard.keeps(self._held_out(scores, step))
            ):
                self.fresh, self.scores = True, scores
                self.best = {"best_score": step.best.score, "best_reward": step.best.reward}
            ended = self.guard.after(self._held_out(self.scores, step) if self.fresh else None)
        return ended or ("interrupted" if self.interrupted() and step.stopped is None else None)

    def _held_out(self, scores: Mapping[str, float], step: Step) -> float:
        """The worth of the picture to a reward that is not optimized; to the run's own without."""
        return self.guard.worth(scores[self.watched]) if self.watched else step.best.reward

    def keep(self, step: Step) -> Progress:
        """Keep the round: its picture if it is the best, its journal line, then its state."""
        if self.fresh:
            save_best(self.store, self.run, step, self.scores)
        if step.evaluation.grad is not None and not self.planned:
            self.planned = _say_plan(self.store, step)
        entry = {
            "kind": "step",
            "step": step.index,
            "phase": step.phase,
            "score": float(step.evaluation.score.max()),
            "reward": float(step.evaluation.reward[step.evaluation.best]),
            "penalty": float(step.evaluation.penalty[step.evaluation.best]),
            **self.best,
            "probability": self.guard.probability,
            "scores": self.scores,
            "cost": dataclasses.asdict(step.cost),
            "image": f"images/best-{step.index:04d}.png" if self.fresh else None,
            "stopped": step.stopped,
            "time": now(),
            **({"relaxed": True} if step.relaxed else {}),
            **({"drawn": True} if self.guard.drawn else {}),
            **step.problem.space.notes(step.z, step.evaluation.score),
        }
        self.store.checkpoint(pack(step.state), entry)
        return Progress(
            step,
            self.scores,
            self.before,
            self.run.watched,
            self.run.budget,
            self.store.path,
            self.guard.probability,
        )


def _look(drivers: Sequence[_Driver], steps: Sequence[Step]) -> list[str | None]:
    """Look at a round of several runs, with one call for all where it can be; why each ends."""
    weigh([driver.guard for driver in drivers], steps, drivers[0].run.task.model.device)
    new = [k for k, s in enumerate(steps) if not s.relaxed and s.best.round == s.index]
    runs = [drivers[k].run for k in new]
    scores = dict(zip(new, mean_scores(runs, [steps[k].best.y for k in new]), strict=True))
    return [
        driver.judge(step, scores.get(k))
        for k, (driver, step) in enumerate(zip(drivers, steps, strict=True))
    ]


def _continued(run: Run, store: RunStore, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Bring the journal to the state's round; the scores of the baseline and of the best then."""
    fallen_back = list(store.notices)  # rewinding drops what the journal said of it
    store.rewind(rounds)
    say_once(store, fallen_back, stacklevel=6)
    entries = store.entries()
    store.append({"kind": "resumed", "step": rounds, "budget": str(run.budget), "time": now()})
    drawn = [entry for entry in entries if entry["kind"] == "baseline"]
    if drawn:
        before = drawn[0]["scores"]
    else:
        (unsteered,) = draw_baselines([run])
        before = run.scores(unsteered)
        keep_baseline(run, store, unsteered, before)
    steps = [entry for entry in entries if entry["kind"] == "step"]
    if steps:
        return before, steps[-1]["scores"]
    with suppress(RunError):  # the journal was lost: the picture's file says it, too
        return before, store.load_image("best")[1]["scores"]
    return before, before


def _say_plan(store: RunStore, step: Step) -> bool:
    """Note which activations the gradient keeps and which it recomputes."""
    objective = step.problem.objective
    if isinstance(objective, Pictures):
        store.append({"kind": "notice", "text": f"gradient: {objective.trajectory.plan}"})
    return True


def _check_same_space(store: RunStore, space: str) -> None:
    """Refuse to go on in another space: the saved candidates would mean something else."""
    kept = next((entry for entry in store.entries() if entry["kind"] == "space"), None)
    if kept is not None and kept["text"] != space:
        raise RunError(
            f"{store.path} was begun in the space {kept['text']!r}, and it is {space!r} now; put "
            "back the files that it was made from (choices, cached replies), or start a new run"
        )
