"""Products search their parts as the parts are, and refuse what cannot be one space."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.objective import Objective
from tiller.core.rng import Draw, Stream
from tiller.core.search import search
from tiller.core.space import Continuous, Discrete, starting_at
from tiller.solvers.evolution import Evolution
from tiller.solvers.gradient import Gradient
from tiller.spaces.product import product
from tiller.testing.conformance import check_space
from tiller.testing.fakes import FakeBox, FakeChoices


def test_both_kinds_conform() -> None:
    check_space(product(FakeBox((2, 3)), FakeBox((4,), limit=0.5), FakeBox((1, 1, 2))))
    check_space(product(FakeChoices([2, 5]), FakeChoices([1]), FakeChoices([3, 3, 3])))
    check_space(product(product(FakeBox((2,)), FakeBox((3,))), FakeBox((4,))))


def test_parts_are_split_and_projected_apart() -> None:
    space = product(FakeBox((2, 2), limit=1.0), FakeBox((3,), limit=2.0))
    assert isinstance(space, Continuous)
    assert space.shape == (7,)
    z = torch.arange(7, dtype=torch.float64)[None] - 3
    a, b = space.decode(space.project(z))
    assert a.tolist() == [[[-1.0, -1.0], [-1.0, 0.0]]]
    assert b.tolist() == [[1.0, 2.0, 2.0]]
    assert "7" not in space.describe()
    assert " x " in space.describe()


def test_choices_are_concatenated() -> None:
    space = product(FakeChoices([2, 5]), FakeChoices([3]))
    assert isinstance(space, Discrete)
    assert space.choices == (2, 5, 3)
    assert space.size == 30
    a, b = space.decode(torch.tensor([[1, 4, 2]]))
    assert a.tolist() == [[1, 4]]
    assert b.tolist() == [[2]]


def test_equal_parts_are_drawn_differently() -> None:
    a, b = product(FakeBox((3,)), FakeBox((3,))).decode(
        product(FakeBox((3,)), FakeBox((3,))).sample(4, Stream(0))
    )
    assert not torch.isclose(a, b).any()


def test_a_start_inside_a_part() -> None:
    start = torch.tensor([[9.0, 9.0]], dtype=torch.float64)
    space = product(FakeBox((1,)), starting_at(FakeBox((2,)), start))
    z = space.sample(2, Stream(0))
    assert z[0, 1:].tolist() == [9.0, 9.0]
    assert z[1, 1:].tolist() != [9.0, 9.0]


class Both(Objective[Any, Tensor]):
    """Every part's sum, near 1 each."""

    differentiable = True

    def render(self, x: tuple[Tensor, ...], draw: Draw) -> Tensor:
        return torch.stack([part.double().flatten(1).sum(dim=1) for part in x], dim=1)

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        return -((y - 1) ** 2).sum(dim=1)


def test_they_are_searched_like_any_space() -> None:
    continuous = product(FakeBox((2, 2)), FakeBox((3,)))
    *_, last = search(continuous, Both(), Gradient(lr=0.1), Budget(steps=100))
    assert last.best.score > -1e-3
    discrete = product(FakeChoices([2] * 6), FakeChoices([3] * 4))
    *_, last = search(discrete, Both(), Evolution(), Budget(steps=20))
    assert last.best.score == 0


def test_mixtures_and_nothing_are_refused() -> None:
    with pytest.raises(Incompatible, match=r"all Continuous or all Discrete, got FakeBox, FakeC"):
        product(FakeBox((2,)), FakeChoices([2]))
    with pytest.raises(InvalidInput, match="at least one space"):
        product()
