"""Searches in turn: each phase starts from the best before, and keeps to its part of the budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget, count
from tiller.core.errors import InvalidInput
from tiller.core.rng import Draw
from tiller.core.search import Handover, Phase, Problem, search_phases
from tiller.core.solver import Solver
from tiller.core.space import starting_at
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.gradient import Gradient
from tiller.solvers.random import Random
from tiller.testing.conformance import check_resume
from tiller.testing.fakes import FakeQuadratic


def phases_of(objective: Any, *, sampled: int = 6) -> list[Phase]:
    """Sampling, then local search from the best, then ascent from the best."""

    def then(solver: Solver[Any]) -> Callable[[Handover | None], Problem]:
        def build(before: Handover | None) -> Problem:
            assert before is not None
            return Problem(starting_at(objective.space, before.best.z), objective, solver)

        return build

    sampling = Problem(objective.space, objective, BestOfN(batch=2, n=sampled))
    return [
        Phase("sampling", lambda _: sampling),
        Phase("local", then(Random(batch=3, radius=0.1, keep_norm=False)), share=0.25),
        Phase("ascent", then(Gradient(lr=0.05))),
    ]


# Phases


def test_each_phase_starts_from_the_best_before() -> None:
    problem = FakeQuadratic(3)
    steps = list(search_phases(phases_of(problem), Budget(steps=16)))
    names = [step.phase for step in steps]
    assert names == ["sampling"] * 3 + ["local"] * 4 + ["ascent"] * 9
    local, ascent = steps[3], steps[7]
    assert torch.equal(local.z[:1], steps[2].best.z)
    assert torch.equal(ascent.z, steps[6].best.z)
    assert all(b.best.score >= a.best.score for a, b in itertools.pairwise(steps))
    assert [step.index for step in steps] == list(range(1, 17))
    assert steps[-1].stopped == "budget: steps=16"
    assert all(step.stopped is None for step in steps[:-1])


def test_the_best_of_an_earlier_phase_is_kept() -> None:
    problem = FakeQuadratic(3)
    bad = problem.target[None] + 50

    def hopeless(before: Handover | None) -> Problem:
        return Problem(starting_at(problem.space, bad), problem, Gradient(lr=1e-6))

    first = Problem(problem.space, problem, BestOfN(n=8))
    steps = list(
        search_phases([Phase("a", lambda _: first), Phase("b", hopeless)], Budget(steps=4))
    )
    assert steps[-1].best.round == 1
    assert steps[-1].best.score == steps[0].best.score > float(steps[-1].evaluation.score.max())


def test_a_phase_learns_what_the_last_round_held() -> None:
    problem = FakeQuadratic(2)
    got: list[Handover] = []

    def second(before: Handover | None) -> Problem:
        assert before is not None
        got.append(before)
        return Problem(starting_at(problem.space, before.last), problem, BestOfN(batch=4))

    first = Problem(problem.space, problem, BestOfN(batch=4, n=8))
    steps = list(search_phases([Phase("a", lambda _: first), Phase("b", second)], Budget(steps=3)))
    assert torch.equal(got[0].last, steps[1].z)
    assert torch.equal(steps[2].z, steps[1].z)


@pytest.mark.parametrize("images", [1, 5, 6, 7, 20, 23])
def test_phases_of_divisible_solvers_end_exactly_on_an_image_budget(images: int) -> None:
    problem = FakeQuadratic(3)
    *_, last = search_phases(phases_of(problem)[:2], Budget(images=images))
    assert last.cost.images == images
    assert last.stopped == f"budget: images={images}"


def test_a_phases_share_is_exact_for_a_divisible_solver() -> None:
    problem = FakeQuadratic(3)
    first = Problem(problem.space, problem, BestOfN(batch=8))
    second = Problem(problem.space, problem, Gradient())
    phases = [Phase("a", lambda _: first, share=0.5), Phase("b", lambda _: second)]
    steps = list(search_phases(phases, Budget(images=26)))
    assert [step.cost.images for step in steps if step.phase == "a"] == [8, 13]
    assert steps[-1].cost.images == 26


def test_phases_draw_different_candidates() -> None:
    problem = FakeQuadratic(3)
    same_problem = Problem(problem.space, problem, BestOfN(batch=2, n=4))
    phases = [Phase("a", lambda _: same_problem), Phase("b", lambda _: same_problem)]
    z = torch.cat([step.z for step in search_phases(phases, Budget(steps=9))])
    assert len(z.unique(dim=0)) == len(z) == 8


def test_phases_must_be_there_and_have_a_share() -> None:
    with pytest.raises(InvalidInput, match="at least one phase"):
        search_phases([], Budget(steps=1))
    for share in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InvalidInput, match="share"):
            Phase("a", lambda _: None, share=share)  # type: ignore[arg-type, return-value]
        with pytest.raises(InvalidInput, match="until"):
            Phase("a", lambda _: None, until=share)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("images", [10, 20, 23])
def test_a_phase_ends_where_its_part_of_the_whole_is_used(images: int) -> None:
    problem = FakeQuadratic(3)
    sampling = Problem(problem.space, problem, BestOfN(batch=3))
    phases = [
        Phase("a", lambda _: sampling, share=0.2),
        Phase("b", lambda _: sampling, until=0.7),
        Phase("c", lambda _: sampling),
    ]
    steps = list(search_phases(phases, Budget(images=images)))
    ends = {step.phase: step.cost.images for step in steps}
    assert ends == {"a": round(0.2 * images), "b": round(0.7 * images), "c": images}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_phase_without_anything_to_do_leaves_its_part_to_the_one_before(wanted: bool) -> None:
    problem = FakeQuadratic(3)
    sampling = Problem(problem.space, problem, BestOfN(batch=3))
    short = Problem(problem.space, problem, BestOfN(batch=1, n=1))
    phases = [
        Phase("a", lambda _: short),
        Phase("b", lambda _: sampling, until=0.5),
        Phase(
            "c",
            lambda _: short,
            asks=lambda before: None if wanted and before.best.score < 0 else 0,
        ),
        Phase("d", lambda _: short, asks=lambda _: 0),
    ]
    steps = check_resume(phases, Budget(images=20))
    assert [step.phase for step in steps] == (
        ["a", "b", "b", "b", "c"] if wanted else ["a"] + ["b"] * 7
    )
    ended = "all 1 samples drawn" if wanted else "budget: images=20"
    assert steps[-1].stopped == ended


@pytest.mark.parametrize("asked", [0, 2, 20])
def test_what_a_phase_does_not_ask_for_goes_to_the_one_before(asked: int) -> None:
    problem = FakeQuadratic(3)
    sampling = Problem(problem.space, problem, BestOfN(batch=3))
    phases = [
        Phase("a", lambda _: sampling, until=0.5),
        Phase("b", lambda _: Problem(problem.space, problem, BestOfN(2)), asks=lambda _: asked),
    ]
    steps = check_resume(phases, Budget(images=20))
    used = max(step.cost.images for step in steps if step.phase == "a")
    assert used == {0: 20, 2: 18, 20: 10}[asked]
    assert steps[-1].cost.images == 20


def relaxed_phases(objective: Any) -> list[Phase]:
    """Sampling, a relaxation whose scores are a hundred too high, then ascent from its end."""

    class Flattering(FakeQuadratic):
        def score(self, y: Tensor, draw: Draw) -> Tensor:
            return 100 + super().score(y, draw)

    flattering = Flattering(3)
    sampling = Problem(objective.space, objective, BestOfN(batch=2, n=2))

    def relax(before: Handover | None) -> Problem:
        assert before is not None
        start = starting_at(objective.space, before.best.z)
        return Problem(start, flattering, Gradient(lr=0.05, steps=4))

    def ascent(before: Handover | None) -> Problem:
        assert before is not None
        return Problem(starting_at(objective.space, before.last), objective, Gradient(lr=0.05))

    return [
        Phase("sampling", lambda _: sampling),
        Phase("relaxed", relax, relaxed=True),
        Phase("ascent", ascent),
    ]


def test_a_relaxed_phase_finds_no_best_and_hands_on_where_it_stands() -> None:
    problem = FakeQuadratic(3)
    steps = list(search_phases(relaxed_phases(problem), Budget(steps=8)))
    assert [step.relaxed for step in steps] == [False] + 4 * [True] + 3 * [False]
    assert all(step.best.round == 1 for step in steps[:5])
    assert all(float(step.evaluation.score.max()) > 50 for step in steps[1:5])
    assert steps[-1].best.score < 0
    # after four steps, not where the fourth was evaluated
    assert torch.equal(steps[5].z, steps[4].state.solver.z)
    assert not torch.equal(steps[5].z, steps[4].z)


def test_a_relaxed_phase_cannot_be_the_first() -> None:
    with pytest.raises(InvalidInput, match="'relaxed', is relaxed"):
        search_phases(relaxed_phases(FakeQuadratic(3))[1:], Budget(steps=2))


class Drawn(FakeQuadratic):
    """Four forwards a candidate."""

    forwards_per_candidate = 4

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        count(forwards=4 * len(x))
        return super().render(x, draw)


def test_a_phase_that_overruns_is_not_ended_by_what_the_one_before_would_need() -> None:
    """Six forwards are one candidate and a half: an ascent makes its round, sampling stops."""
    quadratic = Drawn(dimension=2)
    first = Problem(quadratic.space, quadratic, BestOfN(batch=1, n=1))

    def phases_with(solver: Solver[Any]) -> list[str]:
        second = Problem(quadratic.space, quadratic, solver)
        phases = [Phase("first", lambda _: first), Phase("second", lambda _: second)]
        return [step.phase for step in search_phases(phases, Budget(forwards=6))]

    assert phases_with(BestOfN(batch=1, n=9)) == ["first"]
    assert phases_with(Gradient(lr=0.05)) == ["first", "second"]
