"""One round's answer: scores, gradients and cost. It holds no autograd graph.

Because gradients travel inside an `Evaluation`, white-box and black-box solvers share one loop and
an evaluation can cross processes. How a gradient is had is a value of its own, an `Estimator`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tiller.core.budget import Cost, metered
from tiller.core.errors import RewardError
from tiller.core.objective import Objective
from tiller.core.rng import STEADY, Draw
from tiller.core.space import Space


@dataclass(frozen=True)
class Evaluation:
    """What `n` candidates were found to be worth.

    Attributes:
        score: [n] reward - penalty; what solvers and the choice of the best use.
        reward: [n] what the objective's `score` returned.
        penalty: [n] the weighted sum of the regularisers.
        grad: [n, ...] d score_i / d z_i, or None without an estimator.
        best: the index of the highest score.
        best_y: what was rendered for that candidate, a batch of one.
        cost: what the evaluation used.
    """

    score: Tensor
    reward: Tensor
    penalty: Tensor
    grad: Tensor | None
    best: int
    best_y: Any
    cost: Cost


@dataclass(frozen=True)
class Estimate:
    """What an estimator returns for one batch: rewards [n], d reward / dz [n, ...], and y."""

    reward: Tensor
    grad: Tensor | None
    y: Any


@dataclass(frozen=True)
class Request:
    """One search's round: the arguments of `evaluate`."""

    space: Space[Any]
    objective: Objective[Any, Any]
    z: Tensor
    draw: Draw
    estimator: Estimator | None = None


class Estimator(ABC):
    """How the gradient of the reward with respect to z is had.

    Attributes:
        joint: it asks for several searches at once (`jointly`), each finding what it finds alone.
        needs_gradient: of the whole objective; False for estimators that compare scores.
        needs_render_gradient: of what is rendered, for estimators that compare scores and
            propagate what they find through the renderer.
    """

    joint: bool = False
    needs_gradient: bool = True
    needs_render_gradient: bool = False

    @abstractmethod
    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """Rewards and gradients of the candidates z [n, ...], none of them holding a graph."""

    def jointly(self, requests: Sequence[Request]) -> list[Estimate]:
        """The same for several searches whose objectives have one `joint_key`, in order."""
        return [self(one.space, one.objective, one.z, one.draw) for one in requests]


class Autograd(Estimator):
    """The exact gradient by back-propagation through decode, render and score."""

    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """Rewards [n], their gradients [n, ...] and what was rendered."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            y = objective.render(space.decode(leaf), draw)
            reward = objective.score(y, draw)
            check_scores(reward, len(z))
            (grad,) = gradients([reward], [leaf])
        return Estimate(reward.detach(), grad, detached(y))


def gradients(rewards: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """d reward_i.sum() / d leaf_i, all from one back-propagation.

    Raises:
        RewardError: a reward does not depend on its leaf.
    """
    found: Sequence[Tensor | None] = [None]
    if all(reward.requires_grad for reward in rewards):
        whole = torch.cat([reward.flatten() for reward in rewards]).sum()
        found = torch.autograd.grad(whole, list(leaves), allow_unused=True)
    held = [grad for grad in found if grad is not None]
    if len(held) != len(leaves):
        raise RewardError(
            "the reward gave a score without a gradient, though it had one when it was tried; "
            "keep its computation in torch on every path, or use an estimator for black boxes"
        )
    return held


def evaluate(
    space: Space[Any],
    objective: Objective[Any, Any],
    z: Tensor,
    draw: Draw,
    estimator: Estimator | None = None,
) -> Evaluation:
    """Score the candidates z [n, ...] on the round's common randomness.

    score = reward - sum_k weight_k * penalty_k(z), with the gradient of the same sum where an
    `estimator` is given. Candidates go through the objective as many at a time as
    there is room for.

    Raises:
        RewardError: scores of a wrong shape, NaN or infinite, a penalty or gradient that is not
            finite, or a reward that lost its gradient.
    """
    n = len(z)
    size = at_once(space, objective, z, gradient=estimator is not None)
    rewards: list[Tensor] = []
    grads: list[Tensor] = []
    best_y: list[tuple[float, Any]] = []
    with metered() as meter:
        penalty, slope = penalties(objective, z, draw, wanted=estimator is not None)
        for first in range(0, n, size):
            part = z[first : first + size]
            estimate = (estimator or _no_gradient)(space, objective, part, draw)
            check_scores(estimate.reward, len(part))
            rewards.append(estimate.reward)
            if estimate.grad is not None:
                grads.append(estimate.grad)
            total = estimate.reward.to(penalty) - penalty[first : first + size]
            k = int(total.argmax())
            best_y.append((float(total[k]), objective.pick(estimate.y, k)))
    grad = torch.cat(grads) if grads else None
    evaluation = assembled(torch.cat(rewards), grad, penalty, slope, cost=meter.cost)
    return replace(evaluation, best_y=max(best_y, key=lambda entry: entry[0])[1])


def at_once(space: Space[Any], objective: Objective[Any, Any], z: Tensor, *, gradient: bool) -> int:
    """How many of the candidates z [n, ...] go through the objective in one call, at least 1."""
    if objective.batch_size or len(z) <= 1:
        return objective.batch_size or 1
    return objective.room(space.decode(z[:1]), gradient) or len(z)


def assembled(
    reward: Tensor, grad: Tensor | None, penalty: Tensor, slope: Tensor | None, *, cost: Cost
) -> Evaluation:
    """Reward less penalty, and the gradients likewise; what was rendered is left to the caller.

    Raises:
        RewardError: the gradient is not finite.
    """
    if grad is not None:
        grad = grad if slope is None else grad - slope
        if not bool(torch.isfinite(grad).all()):
            raise RewardError(
                "the gradient of the score is not finite; expected finite numbers everywhere. "
                "Try a smaller step (lr), another reward, or a higher precision (dtype)"
            )
    reward = reward.to(penalty)
    score = reward - penalty
    return Evaluation(score, reward, penalty, grad, int(score.argmax()), None, cost)


@torch.no_grad()
def _no_gradient(
    space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
) -> Estimate:
    y = objective.render(space.decode(z), draw)
    return Estimate(objective.score(y, draw), None, y)


def penalties(
    objective: Objective[Any, Any], z: Tensor, draw: Draw, *, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The weighted penalties [n] in float64 and, if `wanted`, their gradient.

    The penalties of one draw for all rounds, so that they compare; the gradient of the round's.
    """
    total = torch.zeros(len(z), dtype=torch.float64)
    gradient: Tensor | None = None
    for regulariser in objective.regularisers:
        if wanted:
            value, slope = regulariser.value_and_gradient(z, draw)
            part = regulariser.weight * slope
            gradient = part if gradient is None else gradient + part
        if regulariser.random or not wanted:
            with torch.no_grad():
                value = regulariser.value(z, STEADY if regulariser.random else draw)
        total += regulariser.weight * value.to(total)
    if not bool(torch.isfinite(total).all()):
        raise RewardError(
            f"a penalty must be finite, got {total.tolist()}; check the regularisers' weights"
        )
    return total, gradient


def check_scores(score: Tensor, n: int) -> None:
    """Refuse what is not one finite score a candidate.

    Raises:
        RewardError: `score` has another shape than [n], or holds NaN or infinities.
    """
    check_shape(score, n)
    if not bool(torch.isfinite(score).all()):
        raise RewardError(
            f"a reward must return finite scores, got {score.detach().tolist()}; "
            "check the reward for division by zero, log of zero and overflow in half precision"
        )


def check_shape(score: Tensor, n: int) -> None:
    """The part of `check_scores` that does not wait for the accelerator.

    Raises:
        RewardError: `score` has another shape than [n].
    """
    if not isinstance(score, Tensor) or score.shape != (n,):
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise RewardError(f"a reward must return one score a candidate, shape [{n}]; got {got}")


def detached(y: Any) -> Any:
    """What was rendered, without its graph."""
    if isinstance(y, Tensor):
        return y.detach()
    if isinstance(y, (list, tuple)):
        return type(y)(detached(item) for item in y)
    return y
