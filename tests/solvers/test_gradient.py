"""Gradient ascent against torch.optim, and what a population, clipping and schedules promise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.search import search
from tiller.core.space import starting_at
from tiller.solvers.gradient import Gradient, clip
from tiller.solvers.rules import Adam, AdamW, Normalized, RmsProp, Sgd, UpdateRule
from tiller.solvers.schedules import Constant, Cosine, Exponential, Schedule, Warmup
from tiller.testing.fakes import FakeBox, FakeQuadratic

Optimizer = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]

PAIRS: list[tuple[UpdateRule, Optimizer]] = [
    (Sgd(), lambda p, lr: torch.optim.SGD(p, lr, maximize=True)),
    (Sgd(momentum=0.9), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, maximize=True)),
    (
        Sgd(momentum=0.8, dampening=0.3, weight_decay=0.1),
        lambda p, lr: torch.optim.SGD(
            p, lr, momentum=0.8, dampening=0.3, weight_decay=0.1, maximize=True
        ),
    ),
    (
        Sgd(momentum=0.9, nesterov=True),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True, maximize=True),
    ),
    (Adam(), lambda p, lr: torch.optim.Adam(p, lr, maximize=True)),
    (
        Adam(beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.1),
        lambda p, lr: torch.optim.Adam(
            p, lr, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1, maximize=True
        ),
    ),
    (AdamW(), lambda p, lr: torch.optim.AdamW(p, lr, maximize=True)),
    (
        AdamW(beta1=0.5, weight_decay=0.3),
        lambda p, lr: torch.optim.AdamW(p, lr, betas=(0.5, 0.999), weight_decay=0.3, maximize=True),
    ),
    (RmsProp(), lambda p, lr: torch.optim.RMSprop(p, lr, maximize=True)),
    (
        RmsProp(alpha=0.9, momentum=0.7, weight_decay=0.05),
        lambda p, lr: torch.optim.RMSprop(
            p, lr, alpha=0.9, momentum=0.7, weight_decay=0.05, maximize=True
        ),
    ),
]


def wavy(x: Tensor) -> Tensor:
    """A score [n] with curvature of both signs and numbers of several sizes."""
    scale = torch.logspace(-2, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    return (torch.cos(x * scale) - scale * x**2).flatten(1).sum(dim=1)


class Wavy(FakeQuadratic):
    """`wavy` as an objective."""

    def score(self, y: Tensor, draw: object) -> Tensor:
        return wavy(y)


def by_torch(
    z: Tensor,
    make: Optimizer,
    lr: float,
    steps: int,
    *,
    schedule: Schedule | None = None,
    norm: float | None = None,
    value: float | None = None,
) -> list[Tensor]:
    """The points that torch.optim visits on `wavy`, the start first."""
    parameter = z.clone().requires_grad_()
    optimizer = make([parameter], lr)
    points = [z.clone()]
    for step in range(steps):
        optimizer.zero_grad()
        wavy(parameter).sum().backward()
        if value is not None:
            torch.nn.utils.clip_grad_value_([parameter], value)
        if norm is not None:
            torch.nn.utils.clip_grad_norm_([parameter], norm)
        optimizer.param_groups[0]["lr"] = lr * (schedule(step) if schedule else 1.0)
        optimizer.step()
        points.append(parameter.detach().clone())
    return points


@pytest.mark.parametrize(("rule", "make"), PAIRS, ids=[repr(rule) for rule, _ in PAIRS])
@pytest.mark.parametrize(("dtype", "n"), [(torch.float64, 30), (torch.float32, 8)])
def test_each_rule_equals_torch_optim(
    rule: UpdateRule, make: Optimizer, dtype: torch.dtype, n: int
) -> None:
    # Fewer steps in float32: where the score is curved, later steps multiply early rounding.
    problem = Wavy(dimension=12, dtype=dtype)
    schedule = Warmup(3, Cosine(20, floor=0.1))
    solver = Gradient(rule=rule, lr=0.03, schedule=schedule)
    steps = list(search(problem.space, problem, solver, Budget(steps=n)))
    expected = by_torch(steps[0].z, make, 0.03, n, schedule=schedule)
    for step, point in zip(steps, expected, strict=False):
        torch.testing.assert_close(step.z, point, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(steps[-1].state.solver.z, expected[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [None, 0.5])
@pytest.mark.parametrize("value", [None, 0.2])
def test_clipping_equals_torch_nn_utils(norm: float | None, value: float | None) -> None:
    problem = Wavy(dimension=12)
    solver = Gradient(rule=Sgd(momentum=0.9), lr=0.1, clip_norm=norm, clip_value=value)
    steps = list(search(problem.space, problem, solver, Budget(steps=10)))
    expected = by_torch(steps[0].z, PAIRS[1][1], 0.1, 10, norm=norm, value=value)
    for step, point in zip(steps, expected, strict=False):
        torch.testing.assert_close(step.z, point, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 5), st.floats(0.01, 100), st.integers(0, 2**31))
def test_clipping_is_per_candidate_and_keeps_the_direction(n: int, norm: float, seed: int) -> None:
    grad = 10 * torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(seed)).double()
    clipped = clip(grad, norm=norm)
    for before, after in zip(grad, clipped, strict=True):
        assert after.norm() <= norm
        if before.norm() < norm - 1e-4:
            assert torch.allclose(after, before, rtol=1e-4)
        cosine = torch.dot(before.flatten(), after.flatten()) / (before.norm() * after.norm())
        assert cosine == pytest.approx(1.0)


@pytest.mark.parametrize("rule", [*(rule for rule, _ in PAIRS), Normalized()], ids=repr)
def test_a_population_is_as_many_runs_of_one(rule: UpdateRule) -> None:
    problem = Wavy(dimension=6)
    solver = Gradient(rule=rule, lr=0.05, clip_norm=0.7, population=4)
    together = list(search(problem.space, problem, solver, Budget(steps=8)))
    for i in range(4):
        space = starting_at(problem.space, together[0].z[i : i + 1])
        alone = Gradient(rule=rule, lr=0.05, clip_norm=0.7)
        for a, b in zip(together, search(space, problem, alone, Budget(steps=8)), strict=True):
            torch.testing.assert_close(a.z[i : i + 1], b.z, rtol=1e-12, atol=1e-12)


def test_normalized_moves_every_part_by_the_rate_along_its_mean_gradient() -> None:
    """Against the mean of the gradients with the weights written out; a part without one stays."""
    grads = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    grads[:, :, 1] *= 1e-6  # a part whose gradient is small moves as far
    grads[:, 0, 2] = 0
    rule, z = Normalized(momentum=0.7, eps=1e-12), torch.zeros(2, 3, 4).double()
    state = rule.init(z)
    for step, grad in enumerate(grads):
        move, state = rule.update(state, grad, z, 0.1, step)
        weights = [0.7 ** (step - i) for i in range(step + 1)]
        mean = sum(w * grads[i] for i, w in enumerate(weights)) / sum(weights)
        ahead = 0.3 * grad + 0.7 * mean
        expected = 0.2 * ahead / ahead.norm(dim=2, keepdim=True)  # .1 times the root of 4 numbers
        torch.testing.assert_close(move, expected.nan_to_num(0.0), rtol=1e-5, atol=1e-9)
    flat = grads[0].flatten(1)
    move, _ = rule.update(rule.init(flat), flat, flat, 0.1, 0)
    torch.testing.assert_close(move.square().mean(dim=1).sqrt(), torch.full((2,), 0.1).double())


def test_the_update_projects_onto_the_space() -> None:
    problem = FakeQuadratic(dimension=2)
    space = FakeBox((2,), limit=0.25)
    *_, last = search(space, problem, Gradient(rule=Sgd(), lr=0.3), Budget(steps=30))
    assert last.best.z.tolist() == [[-0.25, 0.25]]


def test_steepest_ascent_converges_at_the_known_rate() -> None:
    # On -sum s_i (x_i - t_i)^2 with step 1/(s_min + s_max) the error shrinks by
    # (k - 1) / (k + 1) a step, k the condition number: the classical rate of Cauchy's method.
    k = 10.0
    problem = FakeQuadratic(dimension=2, condition=k)
    solver = Gradient(rule=Sgd(), lr=1 / (1 + k))
    steps = list(search(problem.space, problem, solver, Budget(steps=20)))
    for a, b in pairwise(steps):
        before, after = (a.z - problem.target).norm(), (b.z - problem.target).norm()
        assert float(after / before) == pytest.approx((k - 1) / (k + 1), rel=1e-6)


def test_schedules_by_their_formulas() -> None:
    assert [Constant()(k) for k in (0, 5, 100)] == [1.0, 1.0, 1.0]
    assert [Exponential(0.5, 2)(k) for k in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    cosine = Cosine(10, floor=0.2)
    assert [cosine(k) for k in (0, 5, 10, 50)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert [Warmup(4)(k) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    chained = Warmup(2, Exponential(0.5, 1))
    assert [chained(k) for k in range(4)] == [0.5, 1.0, 1.0, 0.5]


def test_cosine_equals_torchs() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=17)
    ours = Cosine(17)
    for step in range(17):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours(step), abs=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gradient(lr=0.0),
        lambda: Gradient(lr=math.inf),
        lambda: Gradient(clip_norm=-1.0),
        lambda: Gradient(population=0),
        lambda: Sgd(nesterov=True),
        lambda: Sgd(momentum=1.0),
        lambda: Adam(beta2=1.0),
        lambda: AdamW(weight_decay=-0.1),
        lambda: RmsProp(alpha=1.5),
        lambda: Normalized(momentum=1.0),
        lambda: Exponential(factor=0.0),
        lambda: Cosine(steps=0),
        lambda: Warmup(steps=0),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput, match="="):
        make()


def test_halving_drops_the_worse_with_their_moments() -> None:
    """Five become three, two, one; who is left moves as it would alone."""
    problem = FakeQuadratic(dimension=3)
    solver = Gradient(lr=0.05, population=5, halve_every=2)
    steps = list(search(problem.space, problem, solver, Budget(steps=8)))
    assert [len(step.z) for step in steps] == [5, 5, 3, 3, 2, 2, 1, 1]
    free = list(search(problem.space, problem, replace(solver, halve_every=0), Budget(steps=8)))
    alone = free[-1].z
    assert bool((steps[-1].z[0] == alone).all(dim=1).any())
    assert float(steps[1].evaluation.score.max()) == float(free[1].evaluation.score.max())
