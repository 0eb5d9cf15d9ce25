"""Learning: one search, kept in step with its run folder, whatever it is that is learned.

`tiller.driver` does this for pictures, with their rewards; this is the same for what has none while
it is searched: a concept's vectors, an affix for many prompts. What is there is the truth: each
round ends with its journal line and its state on the disk, Ctrl-C ends after the round under way,
and the same call on the same folder continues bit-exactly.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tiller.core.budget import Budget, Cost
from tiller.core.errors import RunError, TillerError, TillerNotice
from tiller.core.search import (
    Best,
    Phase,
    Problem,
    Search,
    SearchState,
    Step,
    best_so_far,
    search_together,
    standing,
)
from tiller.core.state import Packed, pack
from tiller.runs.begun import begun, check_rewards, check_settings
from tiller.runs.journal import Entry
from tiller.runs.store import RunStore

INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Learned:
    """What a search left.

    Attributes:
        state: all of it, the solver's own state included.
        problem: what was searched last; its space decodes z.
        best: the candidate with the highest score of all rounds.
        stopped: why it ended.
    """

    state: SearchState
    problem: Problem
    best: Best
    stopped: str

    @property
    def cost(self) -> Cost:
        """What was used, over all sessions."""
        return self.state.cost


def learn(
    store: RunStore,
    phases: Sequence[Phase],
    budget: Budget,
    seed: int,
    *,
    entry: Callable[[Step], Entry],
    begin: Callable[[], Iterable[Entry]] = tuple,
    reward_files: Mapping[str, str] | None = None,
    until: Callable[[Step], str | None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Learned:
    """Run the phases, or continue them, in step with the folder of `store`.

    A round goes: `until(step)`, `entry(step)`, journal, state, `on_step(step)`. So what `entry`
    writes to the folder (pictures, vectors) is there before the journal says so, and after a crash
    it is at most one round ahead: the resumed search makes that round again, bit for bit. What
    `until` and `entry` remember from round to round, they must read back from `store.entries()`.

    Args:
        store: the run's folder; locked while this runs.
        phases: what is searched; the same after a resume.
        budget: of the whole run.
        seed: of everything random; a resumed search keeps the one that it was begun with.
        entry: what a round's journal line says besides the usual; its names win.
        begin: makes the journal's first lines, and what they speak of; not called on a resume.
        reward_files: the files that its rewards come from, see `RewardSum.files`.
        until: looks at a round before it is kept; a text ends the search, and says why.
        on_step: called once the round is kept.

    Raises:
        RunError: among others, the settings or a reward's file have changed since it began.
        TillerError: whatever ended the search; it is in the journal, what was kept before stands.

    Example:
        >>> import tempfile
        >>> from tiller.solvers.gradient import Gradient
        >>> from tiller.testing.fakes import FakeQuadratic
        >>> quadratic = FakeQuadratic(dimension=2)
        >>> problem = Problem(quadratic.space, quadratic, Gradient(lr=0.1))
        >>> phases = [Phase("ascent", lambda _: problem)]
        >>> store = RunStore.create(tempfile.mkdtemp(), {"kind": "example"}, "ascent")
        >>> found = learn(store, phases, Budget(steps=5), 0, entry=lambda step: {})
        >>> found.stopped, found.state.round, len(store.entries())
        ('budget: steps=5', 5, 6)
    """
    with store, interruptible() as interrupted:
        try:
            saved = _continued(store, budget, begin, reward_files or {})
            ended = _over(store)
            if saved is not None and ended is not None:
                return _learned(*standing(phases, saved), ended)

            def watched(steps: Sequence[tuple[int, Step]]) -> list[str | None]:
                ((_, step),) = steps
                reason = until(step) if until is not None else None
                pressed = interrupted() and step.stopped is None
                return [reason or (INTERRUPTED if pressed else None)]

            last: Step | None = None
            search = Search(phases, budget, seed, saved)
            for _, last in search_together([search], watched):
                store.checkpoint(pack(last.state), _line(last) | dict(entry(last)))
                if on_step is not None:
                    on_step(last)
        except TillerError as error:
            with suppress(RunError):  # the disk may be what failed
                store.append({"kind": "error", "text": str(error), "time": now()})
            error.add_note(f"run: {store.path}")
            raise
    if last is not None:
        assert last.stopped is not None, "a search ends with a reason"
        return _learned(last.state, last.problem, last.stopped)
    assert saved is not None, "a search that has not begun makes at least one step"
    state, problem = standing(phases, saved)
    return _learned(state, problem, budget.reached(state.cost) or "nothing is left to try")


def _learned(state: SearchState, problem: Problem, stopped: str) -> Learned:
    return Learned(state, problem, best_so_far(state), stopped)


def _continued(
    store: RunStore,
    budget: Budget,
    begin: Callable[[], Iterable[Entry]],
    reward_files: Mapping[str, str],
) -> Packed | None:
    """The state to continue from, the journal brought to its round; or None, and a fresh one."""
    saved = store.load_state()
    if saved is None:
        store.journal.clear()
        store.append(begun(store, reward_files))
        for line in begin():
            store.append(line)
        return None
    check_settings(store)
    check_rewards(store, reward_files)
    rounds = saved.tree["round"]
    fallen_back = list(store.notices)  # rewinding drops what the journal said of it
    store.rewind(rounds)
    say_once(store, fallen_back, stacklevel=4)
    store.append({"kind": "resumed", "step": rounds, "budget": str(budget), "time": now()})
    return saved


def say_once(store: RunStore, notices: Iterable[str], stacklevel: int) -> None:
    """Give notices, and keep in the journal those that are not there already."""
    said = [entry["text"] for entry in store.entries() if entry["kind"] == "notice"]
    for text in dict.fromkeys(notices):
        warnings.warn(text, TillerNotice, stacklevel=stacklevel)
        if text not in said:
            store.append({"kind": "notice", "text": text})


def _over(store: RunStore) -> str | None:
    """Why the search ended for good: not for its budget, which may have grown since."""
    steps = [line for line in store.entries() if line["kind"] == "step"]
    stopped = steps[-1].get("stopped") if steps else None
    if stopped is None or stopped == INTERRUPTED or stopped.startswith("budget"):
        return None
    return str(stopped)


def _line(step: Step) -> dict[str, Any]:
    """What every round's journal line says; see `runs.record.Record` for who reads it."""
    evaluation = step.evaluation
    return {
        "kind": "step",
        "step": step.index,
        "phase": step.phase,
        "score": float(evaluation.score.max()),
        "reward": float(evaluation.reward[evaluation.best]),
        "penalty": float(evaluation.penalty[evaluation.best]),
        "best_score": step.best.score,
        "best_reward": step.best.reward,
        "cost": dataclasses.asdict(step.cost),
        "image": None,
        "stopped": step.stopped,
        "time": now(),
    }


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


def now() -> str:
    """This moment in UTC, as the journal writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
