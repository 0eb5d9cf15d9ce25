"""The solvers without a model: best of n, random and evolution, against their laws."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.search import search
from tiller.core.solver import Solver
from tiller.core.space import starting_at
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.evolution import Evolution
from tiller.solvers.random import Random
from tiller.testing.fakes import FakeBox, FakeChoices, FakeMatch, FakeQuadratic


def all_z(solver: Solver[Any], problem: Any, budget: Budget, seed: int = 0) -> torch.Tensor:
    return torch.cat([s.z for s in search(problem.space, problem, solver, budget, seed=seed)])


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
def test_best_of_n_draws_the_same_candidates_in_any_batch(batch: int) -> None:
    problem = FakeQuadratic(3)
    z = all_z(BestOfN(batch=batch), problem, Budget(images=20))
    assert torch.equal(z, problem.space.sample(20, Stream(0)))


@pytest.mark.parametrize(("batch", "n", "images"), [(8, 20, 100), (8, 1, 100), (4, 50, 10)])
def test_best_of_n_stops_at_the_smaller_of_n_and_the_budget(
    batch: int, n: int, images: int
) -> None:
    problem = FakeQuadratic(3)
    *_, last = search(problem.space, problem, BestOfN(batch, n), Budget(images=images))
    assert last.cost.images == min(n, images)
    assert ("samples" in str(last.stopped)) == (n < images)


def test_random_keeps_the_noise_normal() -> None:
    # z' = sqrt(1 - s^2) z + s e leaves N(0, I) as it is: over many steps of acceptance by chance
    # the norm stays where noise's norm is, sqrt(d) +- 1/sqrt(2) (here 4 sigma).
    class Coin(FakeQuadratic):
        def score(self, y: torch.Tensor, draw: Any) -> torch.Tensor:
            return torch.rand(len(y), generator=draw.generator("coin")).double() + draw.round

    problem = Coin(400)
    z = all_z(Random(batch=2, radius=0.5), problem, Budget(steps=60))
    assert (z.norm(dim=1) - 20).abs().max() < 4 / 2**0.5
    drifting = all_z(Random(batch=2, radius=0.5, keep_norm=False), problem, Budget(steps=60))
    assert drifting.norm(dim=1).max() > 40


def test_random_moves_around_the_best_and_only_upwards() -> None:
    problem = FakeQuadratic(20)
    solver = Random(batch=5, radius=0.1, keep_norm=False)
    steps = list(search(problem.space, problem, solver, Budget(steps=40)))
    for before, after in pairwise(steps):
        distance = (after.z - before.best.z).norm(dim=1)
        assert distance.max() < 0.1 * (20**0.5 + 4)
        assert after.best.score >= before.best.score
    assert torch.equal(steps[0].z[:1], problem.space.sample(1, Stream(0)))


def test_local_search_beats_sampling_where_a_neighbour_is_better() -> None:
    problem = FakeQuadratic(20)
    budget = Budget(images=300)
    for seed in range(3):
        scores = [
            [*search(problem.space, problem, solver, budget, seed=seed)][-1].best.score
            for solver in (Random(radius=0.15, keep_norm=False), BestOfN())
        ]
        assert scores[0] > scores[1]


@settings(deadline=None, max_examples=40)
@given(
    choices=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    kind=st.sampled_from([Evolution(), Evolution(population=3, keep=1), Random(batch=3)]),
)
def test_small_spaces_are_searched_through_without_repeats(
    choices: list[int], seed: int, kind: Solver[Any]
) -> None:
    problem = FakeMatch()
    space = FakeChoices(choices)
    problem.space = space
    steps = list(search(space, problem, kind, Budget(steps=400), seed=seed))
    tried = [tuple(row) for step in steps for row in step.z.tolist()]
    assert len(set(tried)) == len(tried) == space.size
    one = "nothing to search: the space has one candidate"
    assert steps[-1].stopped == (one if space.size == 1 else f"all {space.size} candidates tried")
    assert steps[-1].best.score == len(choices)


def test_nearly_all_of_a_large_space_seen() -> None:
    # 2^9 candidates one generation at a time: the last ones must be found, not waited for.
    problem = FakeMatch(positions=9)
    *_, last = search(problem.space, problem, Evolution(), Budget(steps=1000))
    assert last.cost.images == 512
    assert last.stopped == "all 512 candidates tried"


def test_one_max_is_solved_far_below_exhaustion() -> None:
    # 2^30 candidates, of which one scores 30. The best of 1,000 uniform draws is near
    # 15 + 3.2 sqrt(30) / 2 = 24 (the expected maximum of as many normal numbers).
    problem = FakeMatch(positions=30)
    budget = Budget(images=1000)
    for seed in range(2):
        *_, last = search(problem.space, problem, Evolution(), budget, seed=seed)
        *_, drawn = search(problem.space, problem, Random(), budget, seed=seed)
        assert last.best.score == 30
        assert drawn.best.score < 28


def test_evolution_begins_with_what_it_is_given() -> None:
    problem = FakeMatch(positions=10)
    start = torch.tensor([[1] * 9 + [0], [1] * 9 + [0], [0, 1] * 5])  # one of them twice
    space = starting_at(problem.space, start)
    first = next(search(space, problem, Evolution(), Budget(steps=5)))
    rows = [tuple(row) for row in first.z.tolist()]
    assert len(set(rows)) == len(rows) == 20
    assert tuple(start[0].tolist()) in rows
    assert tuple(start[2].tolist()) in rows


def test_mutation_rate_and_crossover_by_their_laws() -> None:
    solver = Evolution(mutation_rate=0.1)
    parents = [(0,) * 50, (1,) * 50]
    choices = (5,) * 50
    stream = Stream(0)
    mutants = [solver._mutant(parents[:1], choices, stream.next()) for _ in range(400)]
    changed = sum(option != 0 for mutant in mutants for option in mutant) / (400 * 50)
    assert changed == pytest.approx(0.1, abs=4 * (0.09 / 20_000) ** 0.5)
    seen = {option for mutant in mutants for option in mutant}
    assert seen == {0, 1, 2, 3, 4}
    children = [solver._crossover(parents, choices, stream.next()) for _ in range(400)]
    ones = sum(map(sum, children)) / (400 * 50)
    assert ones == pytest.approx(0.5, abs=4 * (0.25 / 20_000) ** 0.5)


def test_evolution_keeps_the_best_and_the_older_of_equals() -> None:
    problem = FakeMatch(positions=6, options=2)
    *_, last = search(problem.space, problem, Evolution(keep=4), Budget(steps=2))
    state = last.state.solver
    assert state.parents.shape == (4, 6)
    assert torch.equal(state.scores, state.parents.sum(dim=1).double())
    everyone = state.seen.sum(dim=1)
    cut = state.scores[-1]
    assert (everyone > cut).sum() == (state.scores > cut).sum()
    expected = state.seen[everyone == cut][: int((state.scores == cut).sum())]
    assert torch.equal(state.parents[state.scores == cut], expected)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (BestOfN, {"batch": 0}),
        (BestOfN, {"n": 0}),
        (Random, {"batch": 0}),
        (Random, {"radius": 1.5}),
        (Random, {"radius": 0.0}),
        (Evolution, {"population": 0}),
        (Evolution, {"keep": 0}),
        (Evolution, {"mutants": 0, "crossovers": 0}),
        (Evolution, {"mutation_rate": 0.0}),
    ],
)
def test_bad_settings_are_refused(kind: type[Any], bad: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        kind(**bad)


def test_the_box_is_respected() -> None:
    problem = FakeQuadratic(2)
    space = FakeBox((2,), limit=0.5)
    steps = search(space, problem, Random(keep_norm=False), Budget(steps=20))
    assert max(float(step.z.abs().max()) for step in steps) <= 0.5
