"""Phases: the searches that a method runs in turn, and where a search stands among them.

The loop itself is `core.search`; this is what it keeps (`SearchState`), and how it goes from one
phase to the next within one budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from tiller.core.budget import Budget, Cost
from tiller.core.errors import InvalidInput
from tiller.core.objective import Objective
from tiller.core.rng import Stream
from tiller.core.solver import Solver, check_compatible
from tiller.core.space import Space


@dataclass(frozen=True)
class Best:
    """The best candidate so far: z [1, ...], what it rendered to, and what it was worth."""

    z: Tensor
    y: Any
    score: float
    reward: float
    penalty: float
    round: int


@dataclass(frozen=True)
class Handover:
    """What a phase leaves to the next.

    Attributes:
        best: the best candidate so far, over all phases that are not relaxed.
        last: where the phase's solver stands [n, ...]: its last round's candidates, or where the
            step after them led.
    """

    best: Best
    last: Tensor


@dataclass(frozen=True)
class SearchState:
    """All that evolves during a search; nothing else is needed to continue bit-exactly.

    Attributes:
        seed: the run's seed.
        phase: index of the phase under way.
        round: rounds done, over all phases.
        position: where the candidates' random stream stands.
        solver: the solver's own state.
        objective: a stateful objective's tensors.
        last: the latest round's candidates z [n, ...], None before this phase's first round.
        best: the best candidate of this phase, None before its first round and in a relaxed one.
        previous: what the phase before left, None in the first.
        cost: what was used so far.
        phase_cost: what had been used when this phase began.
    """

    seed: int
    phase: int
    round: int
    position: int
    solver: Any
    objective: dict[str, Tensor]
    last: Tensor | None
    best: Best | None
    previous: Handover | None
    cost: Cost
    phase_cost: Cost


@dataclass(frozen=True)
class Problem:
    """What one phase searches; checked for compatibility when it is made.

    Raises:
        Incompatible: space, objective and solver do not fit.
    """

    space: Space[Any]
    objective: Objective[Any, Any]
    solver: Solver[Any]

    def __post_init__(self) -> None:
        check_compatible(self.space, self.objective, self.solver)


@dataclass(frozen=True)
class Phase:
    """One search of a method.

    Attributes:
        name: shown in the progress line and the journal.
        build: the problem, given what the phase before left (None for the first phase).
        share: the part of the whole budget that the phase may use. The last phase runs until the
            whole budget is used, whatever its share.
        until: the part of the whole budget at whose use the phase ends, what earlier phases used
            counted in; 1 again means the whole for the last phase alone.
        relaxed: its scores are a relaxation's, and compare with no other phase's: the best stays
            what it was before (so it cannot be the first), and the next phase starts from where
            it ends (`Handover.last`).
        asks: how many candidates the phase will score, given where the search stands before it;
            None where it cannot know. With 0 it is passed over (the first phase cannot be), and
            what it does not ask for of its part of the budget the phase before uses.
        done: what to say where the search ends with this phase and its solver is done; the solver's
            own words by default.
    """

    name: str
    build: Callable[[Handover | None], Problem]
    share: float = 1.0
    until: float = 1.0
    relaxed: bool = False
    asks: Callable[[Handover], int | None] = field(default=lambda _: None)
    done: str | None = None

    def __post_init__(self) -> None:
        for name in ("share", "until"):
            part = getattr(self, name)
            if not 0 < part <= 1:
                raise InvalidInput(
                    f"a phase's {name} (of the budget) must be in (0, 1], got {name}={part}"
                )


@dataclass(frozen=True)
class Course:
    """The phases of one search, and the budget for all of them."""

    phases: Sequence[Phase]
    budget: Budget


def stopped_at(course: Course, state: SearchState, problem: Problem) -> str | None:
    """Why the search is over, or None."""
    stopped = course.budget.reached(state.cost)
    if stopped is None and state.round:
        stopped = _too_few(problem, course.budget, state.cost)
        following = _next_phase(course.phases, state, problem) if stopped else None
        if following is not None and not course.phases[following].relaxed:
            ahead = course.phases[following].build(_handover(state, problem))
            stopped = _too_few(ahead, course.budget, state.cost)
    if stopped is None and _next_phase(course.phases, state, problem) is None:
        stopped = _phase_over(course, state, problem)
    return stopped


def in_phase(course: Course, state: SearchState, problem: Problem) -> tuple[SearchState, Problem]:
    """Where the next round is searched: in the phase under way, or in the next if that is over."""
    if _phase_over(course, state, problem) is not None:
        following = _next_phase(course.phases, state, problem)
        if following is not None:
            return begin(course.phases, state, following, _handover(state, problem))
    return state, problem


def _next_phase(phases: Sequence[Phase], state: SearchState, problem: Problem) -> int | None:
    """The next phase that has something to do after the one under way, None if none has.

    Before this phase's first round nobody knows; then it is the next in order.
    """
    later = range(state.phase + 1, len(phases))
    if state.last is None or not later:
        return next(iter(later), None)
    left = _handover(state, problem)
    return next((phase for phase in later if phases[phase].asks(left) != 0), None)


def _handover(state: SearchState, problem: Problem) -> Handover:
    assert state.last is not None, "a phase ends after a round"
    stands = problem.solver.stands(state.solver)
    return Handover(best_so_far(state), state.last if stands is None else stands.detach())


def _phase_over(course: Course, state: SearchState, problem: Problem) -> str | None:
    """Why the phase under way ends: its solver is done, or its part of the budget is used up.

    Its part is the whole where no later phase has something to do.
    """
    if state.last is None:
        return None
    over = problem.solver.finished(problem.space, state.solver)
    if over is not None:
        return course.phases[state.phase].done or over
    if _next_phase(course.phases, state, problem) is not None:
        for budget, cost in _parts(course, state, problem):
            over = over or budget.reached(cost) or _too_few(problem, budget, cost)
    return over


def _parts(course: Course, state: SearchState, problem: Problem) -> list[tuple[Budget, Cost]]:
    """The phase's own parts of the budget, with what counts towards each."""
    phase, budget = course.phases[state.phase], course.budget
    until = budget.share(phase.until)
    following = _next_phase(course.phases, state, problem)
    if state.last is not None and following is not None:
        asked = course.phases[following].asks(_handover(state, problem))
        if asked is not None:
            until = _without(budget, asked, until, problem.objective)
            until = _but_for_one(budget, until, problem.objective) if asked else until
    own = budget.share(phase.share)
    return [(own, state.cost - state.phase_cost), (until, state.cost)]


def _without(budget: Budget, n: int, least: Budget, objective: Objective[Any, Any]) -> Budget:
    """The budget that leaves room for n candidates more, at least `least`."""
    more = {
        unit: max(getattr(least, unit), limit - n * each)
        for unit, each in _candidate(objective).items()
        if (limit := getattr(budget, unit)) is not None
    }
    return replace(least, **more)


def _but_for_one(budget: Budget, until: Budget, objective: Objective[Any, Any]) -> Budget:
    """The part of a budget that leaves a later phase a round of one candidate, where it can."""
    each = {"steps": 1, **_candidate(objective)}
    most = {
        unit: max(1, limit - least)
        for unit, least in each.items()
        if (limit := getattr(budget, unit)) is not None
    }
    return replace(until, **{unit: min(n, getattr(until, unit)) for unit, n in most.items()})


def _too_few(problem: Problem, budget: Budget, used: Cost) -> str | None:
    """Why not even one more candidate fits into the budget, where rounds can be divided."""
    if problem.solver.divisible:
        for unit, each in _candidate(problem.objective).items():
            limit = getattr(budget, unit)
            if limit is not None and limit - getattr(used, unit) < each:
                return f"budget: {unit}={limit}"
    return None


def _candidate(objective: Objective[Any, Any]) -> dict[str, int]:
    """What a candidate takes of the limits that a divided round can end on, where it is known."""
    known = {
        "images": objective.images_per_candidate,
        "forwards": objective.forwards_per_candidate,
    }
    return {unit: each for unit, each in known.items() if each}


def candidates_left(course: Course, state: SearchState, problem: Problem) -> int | None:
    """How many candidates the whole budget and the phase's part of it still allow.

    A phase that goes on beyond its part, as no later one has something to do, has the whole.
    """
    budget, objective = course.budget, problem.objective
    left = _candidates_within(budget, state.cost, objective)
    if state.phase + 1 < len(course.phases):
        parts = [
            _candidates_within(part, cost, objective)
            for part, cost in _parts(course, state, problem)
        ]
        left += [most for found in parts for most in found if most > 0]
    return min(left, default=None)


def _candidates_within(budget: Budget, used: Cost, objective: Objective[Any, Any]) -> list[int]:
    """How many more candidates each limit allows."""
    return [
        (limit - getattr(used, unit)) // each
        for unit, each in _candidate(objective).items()
        if (limit := getattr(budget, unit)) is not None
    ]


def best_so_far(state: SearchState) -> Best:
    """The better of this phase's best and what it started from; a round must be done."""
    before = state.previous.best if state.previous is not None else None
    found = [best for best in (before, state.best) if best is not None]
    return max(found, key=lambda best: best.score)


def begin(
    phases: Sequence[Phase], before: SearchState, phase: int, previous: Handover | None
) -> tuple[SearchState, Problem]:
    """A phase's first state, after `before`."""
    problem = phases[phase].build(previous)
    stream = stream_of(before.seed, phase, 0)
    solver_state = problem.solver.init(problem.space, stream)
    state = SearchState(
        seed=before.seed,
        phase=phase,
        round=before.round,
        position=stream.position,
        solver=solver_state,
        objective=problem.objective.state(),
        last=None,
        best=None,
        previous=previous,
        cost=before.cost,
        phase_cost=before.cost,
    )
    return state, problem


def stream_of(seed: int, phase: int, position: int) -> Stream:
    """A phase's candidates: each phase has a sequence of its own, the first the run's."""
    return Stream(seed, "candidates" if phase == 0 else f"candidates of phase {phase}", position)
