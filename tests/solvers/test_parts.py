"""`Parts`: one rule, a rate and a clipping norm for each part."""

from __future__ import annotations

import pytest
import torch

from tiller.core.errors import InvalidInput
from tiller.solvers.gradient import clip
from tiller.solvers.parts import Part, Parts
from tiller.solvers.rules import Adam, Moments
from tiller.solvers.schedules import Exponential


def test_each_part_moves_as_it_would_alone() -> None:
    parts = (Part(3, 1e-3, Exponential(0.5, 2), clip_norm=1.0), Part(2, 0.1, clip_norm=0.2))
    rule = Parts(parts, Adam())
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, generator=generator)
    alone = [z[:, :3].clone(), z[:, 3:].clone()]
    state = rule.init(z)
    states: list[Moments] = [Adam().init(one) for one in alone]
    for step in range(5):
        grad = 3 * torch.randn(2, 5, generator=generator)
        move, state = rule.update(state, grad, z, 2.0, step)
        z = z + move
        for k, (part, piece) in enumerate(zip(parts, (grad[:, :3], grad[:, 3:]), strict=True)):
            cut = clip(piece, norm=part.clip_norm)
            rate = 2.0 * part.lr * part.schedule(step)
            own, states[k] = Adam().update(states[k], cut, alone[k], rate, step)
            alone[k] = alone[k] + own
    assert torch.allclose(z, torch.cat(alone, dim=1), atol=1e-6)


def test_parts_that_do_not_add_up_are_refused() -> None:
    rule = Parts((Part(3, 1.0),))
    z = torch.zeros(1, 4)
    with pytest.raises(InvalidInput, match=r"the parts have 3 numbers, expected those of z, \[4\]"):
        rule.update(rule.init(z), z, z, 1.0, 0)
    with pytest.raises(InvalidInput, match="lr must be positive"):
        Part(3, 0.0)
