"""One round: penalties and their gradients, chunking, the choice of the best, no graph left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.errors import RewardError
from tiller.core.evaluation import Autograd, evaluate
from tiller.core.objective import Regulariser
from tiller.core.rng import Draw, Stream
from tiller.testing.fakes import FakeMatch, FakeQuadratic


class Norm(Regulariser):
    """|z|^2, by autograd."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        return (z**2).flatten(1).sum(dim=1)


class ClosedNorm(Norm):
    """|z|^2 with its gradient 2 z in closed form."""

    calls = 0

    def gradient(self, z: Tensor, draw: Draw) -> Tensor:
        type(self).calls += 1
        return 2 * z


class Drawn(Norm):
    """(z . r)^2 for a direction r of the round."""

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        r = torch.randn(z.shape[1:], generator=draw.generator("direction"), dtype=z.dtype)
        return (z * r).flatten(1).sum(dim=1) ** 2


def at(regularisers: tuple[Regulariser, ...] = (), n: int = 5, **settings: Any) -> Any:
    problem = FakeQuadratic(3, condition=7.0, regularisers=regularisers, **settings)
    return problem, problem.space.sample(n, Stream(1))


def test_score_is_reward_less_the_weighted_penalties() -> None:
    problem, z = at((Norm(0.3), Drawn(0.2)))
    draw = Draw(0, 4)
    found = evaluate(problem.space, problem, z, draw)
    penalty = 0.3 * (z**2).sum(dim=1) + 0.2 * Drawn(1.0).value(z, draw)
    reward = -(problem.scale * (z - problem.target) ** 2).sum(dim=1)
    torch.testing.assert_close(found.reward, reward)
    torch.testing.assert_close(found.penalty, penalty)
    torch.testing.assert_close(found.score, reward - penalty)
    assert found.best == int((reward - penalty).argmax())
    assert torch.equal(found.best_y, z[found.best : found.best + 1])
    assert found.grad is None


def test_a_closed_form_gradient_equals_autograds() -> None:
    draw = Draw(0, 0)
    problem, z = at((Norm(0.3), Drawn(0.1)))
    by_autograd = evaluate(problem.space, problem, z, draw, Autograd())
    problem, z = at((ClosedNorm(0.3), Drawn(0.1)))
    before = ClosedNorm.calls
    closed = evaluate(problem.space, problem, z, draw, Autograd())
    assert ClosedNorm.calls == before + 1
    assert by_autograd.grad is not None
    assert closed.grad is not None
    torch.testing.assert_close(closed.grad, by_autograd.grad, rtol=1e-12, atol=1e-12)
    expected = -2 * problem.scale * (z - problem.target) - 0.6 * z
    problem, z = at((Norm(0.3),))
    alone = evaluate(problem.space, problem, z, draw, Autograd())
    assert alone.grad is not None
    torch.testing.assert_close(alone.grad, expected)


def test_the_gradient_against_central_differences() -> None:
    problem, z = at((Norm(0.3), Drawn(0.2)), n=2, noise=0.3)
    draw, h = Draw(3, 1), 1e-5
    grad = evaluate(problem.space, problem, z, draw, Autograd()).grad
    assert grad is not None
    for i in range(2):
        for j in range(3):
            step = torch.zeros_like(z)
            step[i, j] = h
            up, down = (evaluate(problem.space, problem, z + s, draw).score for s in (step, -step))
            assert float((up - down)[i]) / (2 * h) == pytest.approx(float(grad[i, j]), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("estimator", [None, Autograd()])
def test_chunks_change_nothing(size: int, estimator: Autograd | None) -> None:
    draw = Draw(0, 2)
    regularisers = (Norm(0.3), ClosedNorm(0.1), Drawn(0.2))
    problem, z = at(regularisers, noise=0.4)
    whole = evaluate(problem.space, problem, z, draw, estimator)
    problem, z = at(regularisers, noise=0.4, batch_size=size)
    parts = evaluate(problem.space, problem, z, draw, estimator)
    for name in ("score", "reward", "penalty", "best_y"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert parts.best == whole.best
    assert (parts.grad is None) == (whole.grad is None)
    if whole.grad is not None:
        torch.testing.assert_close(parts.grad, whole.grad)
    assert parts.cost.images == whole.cost.images == 5
    assert parts.cost.reward_calls == 5


@pytest.mark.parametrize("estimator", [None, Autograd()])
def test_no_more_candidates_at_once_than_there_is_room_for(estimator: Autograd | None) -> None:
    sizes: list[int] = []

    class Narrow(FakeQuadratic):
        def room(self, x: Tensor, gradient: bool) -> int | None:
            assert gradient == (estimator is not None)
            return 2

        def render(self, x: Tensor, draw: Draw) -> Tensor:
            sizes.append(len(x))
            return super().render(x, draw)

    problem = Narrow(dimension=3)
    evaluate(problem.space, problem, problem.space.sample(5, Stream(0)), Draw(0, 0), estimator)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("size", [None, 1, 2])
def test_the_first_of_equals_is_the_best(size: int | None) -> None:
    problem = FakeMatch(positions=3, batch_size=size)
    z = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]])
    found = evaluate(problem.space, problem, z, Draw(0, 0))
    assert found.best == 1
    assert torch.equal(found.best_y, z[1:2])


def test_no_graph_is_left() -> None:
    problem, z = at((Norm(0.1),))
    found = evaluate(problem.space, problem, z, Draw(0, 0), Autograd())
    held = [found.score, found.reward, found.penalty, found.grad, found.best_y]
    assert not any(tensor.requires_grad for tensor in held if tensor is not None)
    assert not z.requires_grad


def test_the_penalty_decides_the_best() -> None:
    problem, z = at((Norm(1e6),))
    found = evaluate(problem.space, problem, z, Draw(0, 0))
    assert found.best == int((z**2).sum(dim=1).argmin())


def test_shapes_are_checked_in_tests() -> None:
    from tiller.solvers.gradient import clip

    with pytest.raises(Exception, match="grad"):
        clip(torch.zeros(3, dtype=torch.int64), norm=1.0)


@pytest.mark.parametrize("estimator", [None, Autograd()])
def test_a_penalty_that_is_not_finite_is_an_error(estimator: Autograd | None) -> None:
    problem, z = at((Norm(float("inf")),))
    with pytest.raises(RewardError, match="a penalty must be finite"):
        evaluate(problem.space, problem, z, Draw(0, 0), estimator)


def test_a_reward_that_loses_its_gradient_later_is_an_error() -> None:
    class Detached(FakeQuadratic):
        def score(self, y: Tensor, draw: Draw) -> Tensor:
            return super().score(y, draw).detach()

    problem = Detached(3)
    z = problem.space.sample(2, Stream(0))
    with pytest.raises(RewardError, match="without a gradient"):
        evaluate(problem.space, problem, z, Draw(0, 0), Autograd())
