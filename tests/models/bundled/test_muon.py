"""Muon: orthogonal steps for matrices, AdamW's steps for the rest."""

from __future__ import annotations

import pytest
import torch

from tiller.models.bundled.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_orthogonalising_moves_every_singular_value_to_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, after = (torch.linalg.svdvals(m) for m in (matrix, *orthogonalise([matrix])))
    assert before.max() / before.min() > 2
    assert after.min() > 0.6
    assert after.max() < 1.3


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    u, _, v = torch.linalg.svd(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))
    matrix = u @ torch.diag(torch.linspace(0.5, 2.0, 12)) @ v
    (found,) = orthogonalise([matrix])
    core = u.T @ found @ v.T
    assert (core - torch.diag(core.diagonal())).abs().max() < 0.05


def test_vectors_move_as_adamw_moves_them() -> None:
    ours = torch.linspace(-1, 1, 7).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    mine = Muon([ours], 1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], 1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(20):
        for p, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            (p**4 + p).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 40), (8, 4, 3, 3)])
def test_a_step_of_a_matrix_is_as_large_as_adamw_makes_it(shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape, requires_grad=True)
    weight.grad = 1e-3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], 0.1).step()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.2)
