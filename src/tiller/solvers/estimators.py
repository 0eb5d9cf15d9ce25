"""Gradients of rewards that have none: comparisons of scores, for every Continuous space.

With M(z) = render(decode(z)) and a reward r that is a black box, three estimators of the direction
in which r(M(z)) grows; each compares the scores of q perturbed points with that of z.

    zeroth order   h = mean_j (r(M(z_j)) - r(M(z))) (z_j - z)         z_j = z + mu xi_j
    hybrid 1       H = mean_j (r(y_j) - r(y)) (y_j - y),  h = J^T H   y_j = y + mu xi_j
    hybrid 2       H = mean_j (r(y_j) - r(y)) (y_j - y),  h = J^T H   y_j = M(z + mu xi_j)

J = dM/dz is exact, from one back-propagation of <H, M(z)>. The xi_j ~ N(0, I) are the round's: all
candidates share them (common random numbers), and however they are batched, they stay the same.
The renders of perturbed points go as many at a time as there is room for, and hold no graph.

The direction (h for the zeroth order, H for the hybrids, before J^T) is scaled to length 1 unless
`normalise` is off. Then it is divided by mu^2, so that zeroth order and hybrid 1 tend to the true
gradient as mu -> 0 and q -> infinity, and hybrid 2 to J^T J J^T grad r. Penalties over z keep their
own size: with `normalise` they are weighed against a reward's direction of length 1.

Where a space or an objective has bounds, the perturbed points are projected onto them, and the
moves that were really made are what is weighed.

Source: Tang et al., "Inference-time alignment of diffusion models with direct noise optimization",
section 4 and appendix D.1, D.2; Nesterov and Spokoiny 2017, "Random gradient-free minimization of
convex functions", for the zeroth order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.evaluation import Estimate, Estimator, at_once, check_scores, detached
from tiller.core.objective import Objective
from tiller.core.rng import Draw
from tiller.core.shapes import Points
from tiller.core.space import Continuous, Space

MOST = 65_536  # perturbations; all of a round's are held at once


@dataclass(frozen=True)
class ZerothOrder(Estimator):
    """ZO-SGD's estimator: perturb z, and go where the scores grow. Nothing is differentiated.

    Attributes:
        q: perturbations; a candidate costs q + 1 renders and scores (the paper: 16).
        mu: their size (the paper: .01).
        normalise: scale the gradient of each candidate to length 1.

    Raises:
        InvalidInput: a field is out of its range.

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.solvers.gradient import Gradient
        >>> from tiller.testing.fakes import FakeQuadratic
        >>> problem = FakeQuadratic(dimension=2, black_box=True)
        >>> solver = Gradient(lr=0.1, estimator=ZerothOrder())
        >>> *_, last = search(problem.space, problem, solver, Budget(steps=100))
        >>> last.best.score > -1e-2
        True

    Source: DNO, section 4, method 1; q and mu in appendix D.2.
    """

    q: int = 16
    mu: float = 0.01
    normalise: bool = True

    needs_gradient = False

    def __post_init__(self) -> None:
        _check(self.q, self.mu)

    @torch.no_grad()
    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """Rewards [n], directions [n, ...] and what was rendered for z."""
        y = objective.render(space.decode(z), draw)
        reward = _scored(objective, y, draw, len(z))
        moved = _perturbed(space, z, self.q, self.mu, draw)
        _, rewards = _rendered(space, objective, moved.flatten(0, 1), draw, keep=False)
        gain = rewards.view(len(z), self.q) - reward[:, None]
        grad = _direction(gain, moved - z[:, None], self.mu, self.normalise)
        return Estimate(reward, grad.to(z.dtype), detached(y))


@dataclass(frozen=True)
class Hybrid1(Estimator):
    """Perturb what was rendered, and propagate the direction in which the score grows back to z.

    One render a candidate, whatever q is. The reward is asked about pictures with noise on them,
    which are off the model's manifold: fit for rewards that are defined there.

    Attributes:
        q: perturbations; a candidate costs q + 1 scores and one differentiated render (the
            paper: 8).
        mu: their size, in the units of what is rendered (the paper: .01).
        normalise: scale the direction over what is rendered to length 1, for each candidate.

    Raises:
        InvalidInput: a field is out of its range.

    Source: DNO, equation 13; q and mu in appendix D.2.
    """

    q: int = 8
    mu: float = 0.01
    normalise: bool = True

    needs_gradient = False
    needs_render_gradient = True

    def __post_init__(self) -> None:
        _check(self.q, self.mu)

    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """Rewards [n], directions [n, ...] and what was rendered for z."""
        leaf, y = _with_graph(space, objective, z, draw)
        with torch.no_grad():
            base = _wide(y)
            reward = _scored(objective, y.detach(), draw, len(z))
            noise = self.mu * _normals(base, self.q, draw)
            moved = torch.stack([objective.nearest(base + one) for one in noise], dim=1)
            rewards = _scores(objective, moved.flatten(0, 1), draw)
            gain = rewards.view(len(z), self.q) - reward[:, None]
            direction = _direction(gain, moved - base[:, None], self.mu, self.normalise)
        (grad,) = torch.autograd.grad(y, leaf, direction.to(y))
        return Estimate(reward, grad, y.detach())


@dataclass(frozen=True)
class Hybrid2(Estimator):
    """Perturb z, compare what is rendered, and propagate the direction back to z.

    The reward sees only what the model draws, so it may be a black box that means nothing off the
    model's manifold.

    Attributes:
        q: perturbations; a candidate costs q + 1 renders and scores, one of them differentiated
            (the paper: 4).
        mu: their size over z (the paper: .02).
        normalise: scale the direction over what is rendered to length 1, for each candidate.

    Raises:
        InvalidInput: a field is out of its range.

    Source: DNO, equations 14 and 18; q and mu in appendix D.2.
    """

    q: int = 4
    mu: float = 0.02
    normalise: bool = True

    needs_gradient = False
    needs_render_gradient = True

    def __post_init__(self) -> None:
        _check(self.q, self.mu)

    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """Rewards [n], directions [n, ...] and what was rendered for z."""
        with torch.no_grad():  # first, so that the graph below is not held meanwhile
            moved = _perturbed(space, z, self.q, self.mu, draw)
            pictures, rewards = _rendered(space, objective, moved.flatten(0, 1), draw, keep=True)
        leaf, y = _with_graph(space, objective, z, draw)
        with torch.no_grad():
            base = _wide(y)
            reward = _scored(objective, y.detach(), draw, len(z))
            gain = rewards.view(len(z), self.q) - reward[:, None]
            moves = pictures.to(base).view(len(z), self.q, *base.shape[1:]) - base[:, None]
            direction = _direction(gain, moves, self.mu, self.normalise)
        (grad,) = torch.autograd.grad(y, leaf, direction.to(y))
        return Estimate(reward, grad, y.detach())


def _normals(like: Tensor, q: int, draw: Draw) -> Tensor:
    """The round's xi [q, ...], of one candidate's shape; the first of many are those of few."""
    generator = draw.generator("perturbations")
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    shape = like.shape[1:]
    drawn = [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(q)]
    return torch.stack(drawn).to(like)


def _perturbed(space: Space[Any], z: Points, q: int, mu: float, draw: Draw) -> Tensor:
    """z_j = project(z + mu xi_j) [n, q, ...]."""
    assert isinstance(space, Continuous), "check_compatible lets no other space in"
    noise = mu * _normals(z, q, draw)
    return torch.stack([space.project(z + one) for one in noise], dim=1)


def _rendered(
    space: Space[Any], objective: Objective[Any, Any], z: Points, draw: Draw, *, keep: bool
) -> tuple[Tensor, Tensor]:
    """What is rendered for z [p, ...] (nothing unless `keep`) and its scores [p], in batches."""
    pictures, scores = [], []
    for part in torch.split(z, at_once(space, objective, z, gradient=False)):
        y = objective.render(space.decode(part), draw)
        scores.append(_scored(objective, y, draw, len(part)))
        if keep:
            pictures.append(_one_tensor(objective, y))
    return torch.cat(pictures) if keep else z.new_empty(0), torch.cat(scores)


def _scores(objective: Objective[Any, Any], y: Tensor, draw: Draw) -> Tensor:
    """The scores [p] of y [p, ...], in batches."""
    parts = torch.split(y, objective.batch_size or len(y))
    return torch.cat([_scored(objective, part, draw, len(part)) for part in parts])


def _scored(objective: Objective[Any, Any], y: Any, draw: Draw, n: int) -> Tensor:
    score = objective.score(y, draw)
    check_scores(score, n)
    return score.detach()


def _with_graph(
    space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
) -> tuple[Tensor, Tensor]:
    """A leaf at z [n, ...], and what is rendered from it."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        y = _one_tensor(objective, objective.render(space.decode(leaf), draw))
    if not y.requires_grad:
        raise Incompatible(
            f"{type(objective).__name__} says that what it renders can be differentiated, and it "
            "carries no gradient to z; choose the estimator ZerothOrder"
        )
    return leaf, y


def _one_tensor(objective: Objective[Any, Any], y: Any) -> Tensor:
    if not isinstance(y, Tensor) or not y.is_floating_point():
        got = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise Incompatible(
            f"hybrid estimators need {type(objective).__name__}.render to return one tensor of "
            f"real numbers, got {got}; choose the estimator ZerothOrder"
        )
    return y


def _wide(y: Tensor) -> Tensor:
    """y in float32 at least: half precision loses small moves."""
    return y.detach().to(torch.promote_types(y.dtype, torch.float32))


def _direction(gain: Tensor, moves: Tensor, mu: float, normalise: bool) -> Tensor:
    """mean_j gain_j moves_j / mu^2 [n, ...] for gain [n, q] and moves [n, q, ...].

    With `normalise`, of length 1 for each candidate; 0 where no score changed.
    """
    weights = (gain / mu).to(moves).view(*gain.shape, *[1] * (moves.ndim - 2))
    direction = (weights * (moves / mu)).mean(dim=1)
    if not normalise:
        return direction
    flat = direction.flatten(1)
    largest = flat.abs().amax(dim=1, keepdim=True)  # first, so that no square over- or underflows
    flat = flat / torch.where(largest > 0, largest, 1)
    length = flat.norm(dim=1, keepdim=True)
    return (flat / torch.where(length > 0, length, 1)).view_as(direction)


def _check(q: int, mu: float) -> None:
    if type(q) is not int or not 1 <= q <= MOST:
        raise InvalidInput(f"q must be a whole number in [1, {MOST}], got {q=}")
    if not 0 < mu < math.inf:
        raise InvalidInput(f"mu must be positive and finite, got {mu=}")
