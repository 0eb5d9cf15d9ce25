"""What is never tried twice: candidates that mean the same, forbidden ones, those known before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.search import search
from tiller.core.solver import Solver
from tiller.core.space import starting_at
from tiller.solvers._unseen import Unseen
from tiller.solvers.evolution import Evolution
from tiller.solvers.random import Random
from tiller.spaces.product import product
from tiller.testing.conformance import check_solver, check_space
from tiller.testing.fakes import FakeChoices, FakeMatch


class Sets(FakeChoices):
    """The order does not count: 120 and 201 are the same. The sum may not be above `most`."""

    def __init__(self, choices: tuple[int, ...], most: int = 1000) -> None:
        super().__init__(choices)
        self.most = most

    def canonical(self, z: Tensor) -> Tensor:
        return z.sort(dim=1).values

    def allows(self, z: Tensor) -> Tensor:
        return z.sum(dim=1) <= self.most


def run(space: Any, solver: Solver[Any], images: int = 300, seed: int = 0) -> list[Any]:
    problem = FakeMatch()
    problem.space = space
    return list(search(space, problem, solver, Budget(images=images), seed=seed))


def tried(steps: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(row) for step in steps for row in step.z.tolist()]


@settings(deadline=None, max_examples=30)
@given(
    positions=st.integers(1, 4),
    options=st.integers(2, 4),
    most=st.integers(0, 12),
    seed=st.integers(0, 100),
    kind=st.sampled_from([Evolution(), Evolution(population=3, keep=1), Random(batch=3)]),
)
def test_all_that_is_allowed_and_different_is_tried_once(
    positions: int, options: int, most: int, seed: int, kind: Solver[Any]
) -> None:
    space = Sets((options,) * positions, most)
    steps = run(space, kind, seed=seed)
    everything = {
        tuple(sorted(z))
        for z in torch.cartesian_prod(*[torch.arange(options)] * positions)
        .reshape(-1, positions)
        .tolist()
        if sum(z) <= most
    }
    found = tried(steps)
    assert len(found) == len(set(found))
    assert set(found) == everything
    assert "candidates tried" in steps[-1].stopped


@pytest.mark.parametrize("kind", [Evolution(), Random()])
def test_such_spaces_keep_the_promises_of_solvers(kind: Solver[Any]) -> None:
    space = Sets((3,) * 4, most=5)
    check_space(space)
    check_solver(kind, space, FakeMatch(4, 3))


@pytest.mark.parametrize("kind", [Evolution(), Random()])
def test_a_space_where_nothing_is_allowed_is_refused(kind: Solver[Any]) -> None:
    with pytest.raises(InvalidInput, match="allowed and untried, got none: Sets: 3 positions"):
        run(Sets((3,) * 3, most=-1), kind)


def test_a_scan_of_a_large_space_ends() -> None:
    space = Sets((5,) * 30, most=0)  # one of 10^21 candidates is allowed
    steps = run(space, Random(batch=3))
    assert tried(steps) == [(0,) * 30]
    assert steps[-1].stopped == "all 1 candidates tried that are allowed and different"


@pytest.mark.parametrize("kind", [Evolution, Random])
def test_what_is_known_is_not_tried_and_not_forgotten(kind: Any) -> None:
    known = (((0, 0, 0), 0.0), ((1, 1, 1), 3.0))
    steps = run(FakeChoices((2, 2, 2)), kind(known=known))
    found = tried(steps)
    assert len(found) == 6
    assert {candidate for candidate, _ in known}.isdisjoint(found)
    assert steps[-1].stopped == "all 8 candidates tried"


def test_known_candidates_are_parents_from_the_start() -> None:
    solver = Evolution(population=2, known=(((0,) * 8, 0.0), ((1,) * 8, 8.0)), keep=2)
    space = FakeChoices((2,) * 8)
    state = solver.init(space, Stream(0))
    assert state.parents.tolist() == [[1] * 8, [0] * 8]
    first, second, *_ = run(space, solver, images=40)
    assert len(first.z) == 2
    assert second.state.solver.parents[0].tolist() == [1] * 8
    assert float(second.z.double().mean()) > 0.6  # most are mutants of the known best


def test_a_space_given_a_start_and_a_product_pass_their_rules_on() -> None:
    space = Sets((3, 3), most=3)
    z = torch.tensor([[2, 1], [2, 2]])
    started = starting_at(space, torch.tensor([[0, 1]]))
    both = product(space, FakeChoices((2,)))
    assert started.canonical(z).tolist() == [[1, 2], [2, 2]]
    assert started.allows(z).tolist() == [True, False]
    wide = torch.cat([z, torch.tensor([[1], [0]])], dim=1)
    assert both.canonical(wide).tolist() == [[1, 2, 1], [2, 2, 0]]
    assert both.allows(wide).tolist() == [True, False]
    assert started.notes(z, torch.zeros(2)) == both.notes(wide, torch.zeros(2)) == {}


def test_left_takes_nothing_away() -> None:
    unseen = Unseen(FakeChoices((2, 2)), torch.tensor([[0, 0], [0, 1], [1, 0]]))
    assert unseen.left()
    assert unseen.left()
    assert unseen.sampled(5, Stream(0)) == [(1, 1)]
    assert not unseen.left()
