"""The norm's penalty: its value, its gradient, its minimum, and what it is of N(0, I)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Draw
from tiller.spaces.norm import ChiNorm

DRAW = Draw(0, 0)


def points(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def reference(z: Tensor) -> Tensor:
    """The formula as ReNO writes it."""
    norm, d = z.flatten(1).norm(dim=1), z[0].numel()
    return 0.5 * norm**2 - (d - 1) * norm.log()


def test_it_is_the_papers_less_its_smallest_value() -> None:
    z = points(4, 2, 3, 5) * torch.tensor([0.2, 1.0, 2.0, 9.0]).view(4, 1, 1, 1)
    d = z[0].numel()
    least = reference(torch.full((1, d), math.sqrt((d - 1) / d), dtype=torch.float64))
    assert torch.allclose(ChiNorm().value(z, DRAW), reference(z) - least)


def test_the_closed_form_is_autograds_gradient_of_the_papers_formula() -> None:
    z = points(3, 2, 4, 4) * torch.tensor([0.3, 1.0, 4.0]).view(3, 1, 1, 1)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(reference(leaf).sum(), leaf)
    value, gradient = ChiNorm().value_and_gradient(z, DRAW)
    assert torch.allclose(gradient, expected)
    assert torch.equal(gradient, ChiNorm().gradient(z, DRAW))
    assert torch.equal(value, ChiNorm().value(z, DRAW))
    (own,) = torch.autograd.grad(ChiNorm().value(leaf, DRAW).sum(), leaf)
    assert torch.allclose(own, expected)
    assert not gradient.requires_grad


def test_the_minimum_is_where_the_norms_density_is_largest() -> None:
    z = points(1, 7, 9)
    radius = math.sqrt(z[0].numel() - 1)
    unit = z / z.norm()
    value, gradient = ChiNorm().value_and_gradient(unit * radius, DRAW)
    assert float(value) == pytest.approx(0, abs=1e-12)
    assert float(gradient.norm()) == pytest.approx(0, abs=1e-12)
    for off in (0.9, 0.99, 1.01, 1.1):
        value, gradient = ChiNorm().value_and_gradient(unit * radius * off, DRAW)
        assert float(value) > 0
        outwards = float((gradient * unit).sum())
        assert (outwards > 0) == (off > 1), "downhill leads back to the radius"


def test_a_typical_draw_costs_a_half() -> None:
    """|z|^2 is chi-square: the mean of its squared deviation over 4 d is a half."""
    z = torch.randn(400, 1000, generator=torch.Generator().manual_seed(1))
    assert float(ChiNorm().value(z, DRAW).mean()) == pytest.approx(0.5, abs=0.15)


def test_large_noises_in_float32_keep_their_digits() -> None:
    z = torch.randn(2, 16384, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(
        ChiNorm().value(z, DRAW).double(), ChiNorm().value(z.double(), DRAW), rtol=1e-6
    )
    assert ChiNorm().gradient(z, DRAW).dtype == torch.float32


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(InvalidInput, match="weight"):
        ChiNorm(weight=weight)


def test_one_number_has_no_norm_to_hold() -> None:
    with pytest.raises(InvalidInput, match="at least 2 numbers"):
        ChiNorm().value(torch.ones(3, 1), DRAW)
