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
from tiller.core.evaluation import Evaluation, Request
from tiller.core.objective import Objective
from tiller.core.phases import (
    Best,
    Course,
    Handover,
    Phase,
    Problem,
    SearchState,
    begin,
    best_so_far,
    candidates_left,
    in_phase,
    stopped_at,
    stream_of,
)
from tiller.core.rng import Draw
from tiller.core.solver import Solver
from tiller.core.space import Space
from tiller.core.state import Packed, unpack
from tiller.core.together import evaluate_together

__all__ = [
    "Best",
    "Handover",
    "Phase",
    "Problem",
    "Search",
    "SearchState",
    "Step",
    "best_so_far",
    "search",
    "search_phases",
    "search_together",
    "standing",
]


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


def search(
    space: Space[Any],
    objective: Objective[Any, Any],
    solver: Solver[Any],
    budget: Budget | str,
    *,
    seed: int = 0,
    resume: Step | SearchState | Packed | None = None,
) -> Iterator[Step]:
    """Search `space` for the highest score of `objective` within `budget`; one `Step` a round.

    Raises:
        InvalidInput: an argument is of another kind, or the budget's text cannot be read.
        Incompatible: space, objective and solver do not fit (before the first evaluation).
        RewardError: the reward failed; the last step yielded holds the best so far.

    Example:
        >>> for step in search(space, objective, solver, Budget(steps=30)):   # doctest: +SKIP
        ...     print(step.index, step.best.score)
    """
    _check_kind("space", space, Space)
    _check_kind("objective", objective, Objective)
    _check_kind("solver", solver, Solver)
    limits = Budget.of(budget)
    problem = Problem(space, objective, solver)
    return search_phases([Phase("search", lambda _: problem)], limits, seed=seed, resume=resume)


def _check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse what is no `kind`; a class is told apart from an instance of it."""
    if isinstance(value, kind):
        return
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    if isinstance(value, type) and issubclass(value, kind):
        raise InvalidInput(
            f"{name} must be an instance, got the class {value.__name__}; write "
            f"{value.__name__}(...)"
        )
    raise InvalidInput(
        f"{name} must be {article} {kind.__name__} of tiller.core, got {value!r}; derive a class "
        "from it"
    )


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
    """One of the searches that run side by side: the arguments of `search_phases`.

    Attributes:
        spent: what was used before its first round, towards the same budget.
    """

    phases: Sequence[Phase]
    budget: Budget
    seed: int = 0
    resume: Step | SearchState | Packed | None = None
    spent: Cost = field(default_factory=Cost)

    @property
    def course(self) -> Course:
        """The phases and the budget."""
        return Course(self.phases, self.budget)


Until = Callable[[Sequence[tuple[int, Step]]], Sequence[str | None]]
"""A round's steps, each with which search it is of -> why each search ends, or None."""


def search_together(
    searches: Sequence[Search], until: Until | None = None
) -> Iterator[tuple[int, Step]]:
    """Run searches side by side, a round of each in turn; yields (which one, its step).

    What they render is rendered together where it can be (`core.together`), so a search finds what
    it finds alone, up to rounding. Each ends by its own budget.

    Args:
        searches: what is run.
        until: looks at each round before its first step is yielded, and may end searches.

    Raises:
        Incompatible, RunError: as `search_phases`.
    """
    return _rounds(searches, [_start(search) for search in searches], until)


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
    spent = search.spent
    nothing = SearchState(search.seed, -1, 0, 0, None, {}, None, None, None, spent, spent)
    return begin(search.phases, nothing, 0, None)


def _rounds(
    searches: Sequence[Search], stands: list[tuple[SearchState, Problem]], until: Until | None
) -> Iterator[tuple[int, Step]]:
    """The only loop."""
    running = [
        i for i, stand in enumerate(stands) if stopped_at(searches[i].course, *stand) is None
    ]
    while running:
        for i in running:
            stands[i] = in_phase(searches[i].course, *stands[i])
        asked = [_ask(searches[i], *stands[i]) for i in running]
        evaluations = evaluate_together([one.request for one in asked])
        steps = []
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
                stopped=stopped_at(searches[i].course, state, problem),
                state=state,
                problem=problem,
                relaxed=relaxed,
            )
            steps.append((i, step))
        if until is not None:
            steps = [
                (i, replace(step, stopped=reason or step.stopped))
                for (i, step), reason in zip(steps, until(steps), strict=True)
            ]
        yield from steps
        running = [i for i, step in steps if step.stopped is None]


@dataclass(frozen=True)
class _Asked:
    """What a round's `ask` gave, and what it used."""

    request: Request
    position: int
    cost: Cost


def _ask(search: Search, state: SearchState, problem: Problem) -> _Asked:
    space, objective, solver = problem.space, problem.objective, problem.solver
    with metered() as meter:
        stream = stream_of(state.seed, state.phase, state.position)
        z = solver.ask(space, state.solver, stream)
    left = candidates_left(search.course, state, problem)
    if solver.divisible and left is not None:
        z = z[: max(1, left)]
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
