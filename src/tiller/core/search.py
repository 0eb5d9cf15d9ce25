"""The loop: ask, evaluate, tell, yield. There is no other.

A method may run several searches in turn (`Phase`); each starts from the best of the one before.
Every round yields a `Step`, which is the progress report, the live preview and the checkpoint in
one: `search(..., resume=step)` continues bit-exactly. Several searches may run side by side
(`search_together`), sharing the machine's calls and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

from torch import Tensor

from tiller.core.budget import Budget, Cost, metered
from tiller.core.errors import InvalidInput, RunError
from tiller.core.evaluation import Evaluation
from tiller.core.objective import Objective
from tiller.core.rng import Draw, Stream
from tiller.core.solver import Solver, check_compatible
from tiller.core.space import Space
from tiller.core.state import Packed, unpack
from tiller.core.together import Request, evaluate_together


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
class Step:
    """One round's report, live preview and checkpoint.

    Attributes:
        index: rounds done so far, from 1.
        phase: the phase's name.
        z: this round's candidates [n, ...].
        evaluation: what they were worth.
        best: the best so far, over all phases.
        cost: what was used so far.
        stopped: why the search ends with this step, or None.
        state: what `resume` continues from.
        problem: what was searched in this round; its space decodes this round's candidates.
        relaxed: this round's scores are a relaxation's, and compare with no other phase's.
    """

    index: int
    phase: str
    z: Tensor
    evaluation: Evaluation
    best: Best
    cost: Cost
    stopped: str | None
    state: SearchState
    problem: Problem
    relaxed: bool = False


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
        wanted: whether there is something to do, given what the phase before left; where not, the
            phase is passed over. The first phase cannot be.
        done: what to say where the search ends with this phase and its solver is done; the solver's
            own words by default.
    """

    name: str
    build: Callable[[Handover | None], Problem]
    share: float = 1.0
    until: float = 1.0
    relaxed: bool = False
    wanted: Callable[[Handover], bool] = field(default=lambda _: True)
    done: str | None = None

    def __post_init__(self) -> None:
        for name in ("share", "until"):
            part = getattr(self, name)
            if not 0 < part <= 1:
                raise InvalidInput(
                    f"a phase's {name} (of the budget) must be in (0, 1], got {name}={part}"
                )


def search(
    space: Space[Any],
    objective: Objective[Any, Any],
    solver: Solver[Any],
    budget: Budget,
    *,
    seed: int = 0,
    resume: Step | SearchState | Packed | None = None,
) -> Iterator[Step]:
    """Search `space` for the highest score of `objective` within `budget`; one `Step` a round.

    Raises:
        Incompatible: space, objective and solver do not fit (before the first evaluation).
        RewardError: the reward failed; the last step yielded holds the best so far.

    Example:
        >>> for step in search(space, objective, solver, Budget(steps=30)):   # doctest: +SKIP
        ...     print(step.index, step.best.score)
    """
    problem = Problem(space, objective, solver)
    return search_phases([Phase("search", lambda _: problem)], budget, seed=seed, resume=resume)


def search_phases(
    phases: Sequence[Phase],
    budget: Budget,
    *,
    seed: int = 0,
    resume: Step | SearchState | Packed | None = None,
) -> Iterator[Step]:
    """`search` for a method of several phases; the budget and the seed are the whole run's.

    A resumed search keeps the seed that it was begun with.

    Raises:
        Incompatible: as `search`: the first phase is checked at once, later ones as they begin.
        RunError: `resume` does not belong to these phases.
    """
    steps = search_together([Search(phases, budget, seed, resume)])
    return (step for _, step in steps)


@dataclass(frozen=True)
class Search:
    """One of the searches that run side by side; the arguments of `search_phases`, and one more.

    Attributes:
        until: looks at each step before it is yielded; a text ends the search, and says why.
    """

    phases: Sequence[Phase]
    budget: Budget
    seed: int = 0
    resume: Step | SearchState | Packed | None = None
    until: Callable[[Step], str | None] | None = None


def search_together(searches: Sequence[Search]) -> Iterator[tuple[int, Step]]:
    """Run searches side by side, a round of each in turn; yields (which one, its step).

    What they render is rendered together where it can be (`core.together`), so a search finds what
    it finds alone, up to rounding. Each ends by its own budget.

    Raises:
        Incompatible, RunError: as `search_phases`.
    """
    return _rounds(searches, [_start(search) for search in searches])


def _start(search: Search) -> tuple[SearchState, Problem]:
    if not search.phases:
        raise InvalidInput("a search needs at least one phase, got none")
    if search.phases[0].relaxed:
        raise InvalidInput(
            f"the first phase, {search.phases[0].name!r}, is relaxed, and there would be no best "
            "candidate; put a phase before it that scores one"
        )
    if search.resume is not None:
        return standing(search.phases, search.resume)
    nothing = SearchState(search.seed, -1, 0, 0, None, {}, None, None, None, Cost(), Cost())
    return _begin(search.phases, nothing, 0, None)


def _rounds(
    searches: Sequence[Search], stands: list[tuple[SearchState, Problem]]
) -> Iterator[tuple[int, Step]]:
    """The only loop."""
    running = [i for i, stand in enumerate(stands) if _stopped(searches[i], *stand) is None]
    while running:
        for i in running:
            stands[i] = _in_phase(searches[i], *stands[i])
        asked = [_ask(searches[i], *stands[i]) for i in running]
        evaluations = evaluate_together([one.request for one in asked])
        going = []
        for i, one, evaluation in zip(running, asked, evaluations, strict=True):
            (state, problem), phases = stands[i], searches[i].phases
            relaxed = phases[state.phase].relaxed
            state = _tell(state, problem, one, evaluation, relaxed=relaxed)
            stands[i] = state, problem
            assert state.last is not None
            step = Step(
                index=state.round,
                phase=phases[state.phase].name,
                z=state.last,
                evaluation=evaluation,
                best=best_so_far(state),
                cost=state.cost,
                stopped=_stopped(searches[i], state, problem),
                state=state,
                problem=problem,
                relaxed=relaxed,
            )
            if (until := searches[i].until) is not None:
                step = replace(step, stopped=until(step) or step.stopped)
            if step.stopped is None:
                going.append(i)
            yield i, step
        running = going


def _stopped(search: Search, state: SearchState, problem: Problem) -> str | None:
    """Why the search is over, or None."""
    stopped = search.budget.reached(state.cost)
    if stopped is None and state.round and _too_few(problem, search.budget, state.cost.images):
        stopped = f"budget: images={search.budget.images}"
    if stopped is None and _next_phase(search.phases, state, problem) is None:
        stopped = _phase_over(search, state, problem)
    return stopped


def _in_phase(search: Search, state: SearchState, problem: Problem) -> tuple[SearchState, Problem]:
    """Where the next round is searched: in the phase under way, or in the next if that is over."""
    if _phase_over(search, state, problem) is not None:
        following = _next_phase(search.phases, state, problem)
        if following is not None:
            return _begin(search.phases, state, following, _handover(state, problem))
    return state, problem


def _next_phase(phases: Sequence[Phase], state: SearchState, problem: Problem) -> int | None:
    """The next phase that has something to do after the one under way, None if none has.

    Before this phase's first round nobody knows; then it is the next in order.
    """
    later = range(state.phase + 1, len(phases))
    if state.last is None or not later:
        return next(iter(later), None)
    left = _handover(state, problem)
    return next((phase for phase in later if phases[phase].wanted(left)), None)


def _handover(state: SearchState, problem: Problem) -> Handover:
    assert state.last is not None, "a phase ends after a round"
    stands = problem.solver.stands(state.solver)
    return Handover(best_so_far(state), state.last if stands is None else stands.detach())


def _phase_over(search: Search, state: SearchState, problem: Problem) -> str | None:
    """Why the phase under way ends: its solver is done, or its part of the budget is used up.

    Its part is the whole where no later phase has something to do.
    """
    if state.last is None:
        return None
    over = problem.solver.finished(problem.space, state.solver)
    if over is not None:
        return search.phases[state.phase].done or over
    if _next_phase(search.phases, state, problem) is not None:
        phase, used = search.phases[state.phase], state.cost
        for part, cost in ((phase.share, used - state.phase_cost), (phase.until, used)):
            budget = search.budget.share(part)
            over = over or budget.reached(cost)
            if over is None and _too_few(problem, budget, cost.images):
                over = f"budget: images={budget.images}"
    return over


def _too_few(problem: Problem, budget: Budget, used: int) -> bool:
    """Whether fewer images are left than a candidate needs, where rounds can be divided."""
    if budget.images is None or not problem.solver.divisible:
        return False
    return budget.images - used < problem.objective.images_per_candidate


@dataclass(frozen=True)
class _Asked:
    """What a round's `ask` gave, and what it used."""

    request: Request
    position: int
    cost: Cost


def _ask(search: Search, state: SearchState, problem: Problem) -> _Asked:
    space, objective, solver = problem.space, problem.objective, problem.solver
    with metered() as meter:
        stream = _stream(state.seed, state.phase, state.position)
        z = solver.ask(space, state.solver, stream)
    images_left = _images_left(search, state, problem)
    if solver.divisible and images_left is not None:
        z = z[: max(1, images_left // objective.images_per_candidate)]
    draw = Draw(state.seed, state.round)
    request = Request(space, objective, z, draw, solver.gradient())
    return _Asked(request, stream.position, meter.cost)


def _tell(
    state: SearchState, problem: Problem, asked: _Asked, evaluation: Evaluation, *, relaxed: bool
) -> SearchState:
    """The state after the round."""
    z = asked.request.z
    with metered() as meter:
        solver_state = problem.solver.tell(problem.space, state.solver, z, evaluation)
    found = Best(
        z=z[evaluation.best : evaluation.best + 1].detach().clone(),
        y=evaluation.best_y,
        score=float(evaluation.score[evaluation.best]),
        reward=float(evaluation.reward[evaluation.best]),
        penalty=float(evaluation.penalty[evaluation.best]),
        round=state.round + 1,
    )
    better = not relaxed and (state.best is None or found.score > state.best.score)
    return replace(
        state,
        round=state.round + 1,
        position=asked.position,
        solver=solver_state,
        objective=problem.objective.state(),
        last=z.detach(),
        best=found if better else state.best,
        cost=state.cost + asked.cost + evaluation.cost + meter.cost + Cost(steps=1),
    )


def _images_left(search: Search, state: SearchState, problem: Problem) -> int | None:
    """How many images the whole budget and the phase's part of it still allow."""
    budget, used = search.budget, state.cost.images
    if budget.images is None:
        return None
    left = budget.images - used
    if _next_phase(search.phases, state, problem) is not None:
        phase = search.phases[state.phase]
        for part, since in ((phase.share, state.phase_cost.images), (phase.until, 0)):
            limit = budget.share(part).images
            assert limit is not None
            left = min(left, limit - (used - since))
    return left


def best_so_far(state: SearchState) -> Best:
    """The better of this phase's best and what it started from; a round must be done."""
    before = state.previous.best if state.previous is not None else None
    found = [best for best in (before, state.best) if best is not None]
    return max(found, key=lambda best: best.score)


def _begin(
    phases: Sequence[Phase], before: SearchState, phase: int, previous: Handover | None
) -> tuple[SearchState, Problem]:
    """A phase's first state, after `before`."""
    problem = phases[phase].build(previous)
    stream = _stream(before.seed, phase, 0)
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


def _stream(seed: int, phase: int, position: int) -> Stream:
    """A phase's candidates: each phase has a sequence of its own, the first the run's."""
    return Stream(seed, "candidates" if phase == 0 else f"candidates of phase {phase}", position)


def standing(
    phases: Sequence[Phase], resume: Step | SearchState | Packed
) -> tuple[SearchState, Problem]:
    """Where a saved search stands: the state to continue from, and its phase's problem.

    Raises:
        RunError: `resume` does not belong to these phases.
    """
    saved = resume.state if isinstance(resume, Step) else resume
    state: SearchState = saved if isinstance(saved, SearchState) else unpack(SearchState, saved)
    if not 0 <= state.phase < len(phases):
        raise RunError(
            f"the saved state is in phase {state.phase + 1}, and this method has {len(phases)}; "
            "it was written by another method or other settings. Start a new run"
        )
    problem = phases[state.phase].build(state.previous)
    if isinstance(saved, Packed):
        hint = get_type_hints(type(problem.solver).init)["return"]
        state = replace(state, solver=unpack(hint, Packed(saved.tree["solver"], saved.tensors)))
    problem.objective.load_state(state.objective)
    return state, problem
