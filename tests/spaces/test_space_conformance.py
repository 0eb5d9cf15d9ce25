"""Every space that the folder holds passes the shipped suite; a new file needs one line here."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiller.spaces
from tiller.core.rng import Stream
from tiller.core.space import Space, starting_at
from tiller.models.base import Conditioning
from tiller.spaces.noise import Noise
from tiller.spaces.product import product
from tiller.testing.conformance import check_space
from tiller.testing.fakes import FakeBox, FakeChoices

CONDITIONING = Conditioning(torch.zeros(1, 3, 5), torch.ones(1, 3, 5))

SPACES: dict[str, Callable[[], list[Space[Any]]]] = {
    "noise": lambda: [Noise((1, 2, 4, 4), CONDITIONING), Noise((3, 2, 4, 4), CONDITIONING)],
    "product": lambda: [
        product(FakeBox((2,), dtype=torch.float32), Noise((2, 2, 2, 2), CONDITIONING)),
        product(FakeChoices((3, 3)), FakeChoices((2,))),
    ],
}


NO_SPACES = {"probability", "norm"}  # measures over a space's points


def test_no_space_is_forgotten() -> None:
    files = {info.name for info in pkgutil.iter_modules(tiller.spaces.__path__)}
    assert files - NO_SPACES == set(SPACES)


@pytest.mark.parametrize("name", SPACES)
def test_space(name: str) -> None:
    for space in SPACES[name]():
        check_space(space)


def test_a_space_with_a_given_start_conforms_too() -> None:
    space = Noise((2, 2, 2, 2), CONDITIONING)
    given = torch.full((2, *space.shape), 0.5)
    started = starting_at(space, given)
    z = started.sample(3, Stream(0))
    assert torch.equal(z[:2], given)
    assert torch.equal(z[2], space.sample(3, Stream(0))[2])
    check_space(started)


def test_equal_seeds_share_x_t_whatever_the_number_of_slots() -> None:
    one, many = (Noise((slots, 4, 8, 8), CONDITIONING) for slots in (1, 20))
    assert torch.equal(one.sample(2, Stream(5))[:, 0], many.sample(2, Stream(5))[:, 0])
