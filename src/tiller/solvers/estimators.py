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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.evaluation import (
    Estimate,
    Estimator,
    Request,
    at_once,
    check_scores,
    detached,
)
from tiller.core.objective import Objective
from tiller.core.rng import Draw
from tiller.core.shapes import Points
from tiller.core.space import Continuous, Space

MOST = 65_536  # perturbations; all of a round's are held at once


class Comparing(Estimator):
    """An estimator that compares scores, of several searches in the same calls."""

    joint = True
    needs_gradient = False

    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """Rewards [n], directions [n, ...] and what was rendered for z."""
        (found,) = self.jointly([Request(space, objective, z, draw, self)])
        return found


@dataclass(frozen=True)
class ZerothOrder(Comparing):
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

    def __post_init__(self) -> None:
        _check(self.q, self.mu)

    @torch.no_grad()
    def jointly(self, requests: Sequence[Request]) -> list[Estimate]:
        """Each one's rewards [n], directions [n, ...] and what was rendered for z."""
        ys = _rendered(requests, [one.z for one in requests])
        base = _scored(requests, ys, [len(one.z) for one in requests])
        moves = [_perturbed(one.space, one.z, self.q, self.mu, one.draw) for one in requests]
        tried = _compared(requests, [moved.flatten(0, 1) for moved in moves], keep=False)
        found = []
        for one, y, reward, moved, (_, rewards) in zip(
            requests, ys, base, moves, tried, strict=True
        ):
            gain = rewards.view(len(one.z), self.q) - reward[:, None]
            grad = _direction(gain, moved - one.z[:, None], self.mu, self.normalise)
            found.append(Estimate(reward, grad.to(one.z.dtype), detached(y)))
        return found


@dataclass(frozen=True)
class Hybrid1(Comparing):
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

    needs_render_gradient = True

    def __post_init__(self) -> None:
        _check(self.q, self.mu)

    def jointly(self, requests: Sequence[Request]) -> list[Estimate]:
        """Each one's rewards [n], directions [n, ...] and what was rendered for z."""
        leaves, ys = _with_graphs(requests)
        with torch.no_grad():
            bases = [_wide(y) for y in ys]
            moves = [self._moved(one, base) for one, base in zip(requests, bases, strict=True)]
            plain = [y.detach() for y in ys]
            rewards = _scored(requests, plain, [len(one.z) for one in requests])
            tried = _scores(requests, [moved.flatten(0, 1) for moved in moves])
            directions = [
                _direction(
                    scores.view(len(base), self.q) - reward[:, None],
                    moved - base[:, None],
                    self.mu,
                    self.normalise,
                )
                for base, moved, reward, scores in zip(bases, moves, rewards, tried, strict=True)
            ]
        return _pulled(leaves, ys, directions, rewards)

    def _moved(self, one: Request, base: Tensor) -> Tensor:
        """What is rendered with noise on it, [n, q, ...]."""
        noise = self.mu * _normals(base, self.q, one.draw)
        return torch.stack([one.objective.nearest(base + xi) for xi in noise], dim=1)


@dataclass(frozen=True)
class Hybrid2(Comparing):
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

    needs_render_gradient = True

    def __post_init__(self) -> None:
        _check(self.q, self.mu)

    def jointly(self, requests: Sequence[Request]) -> list[Estimate]:
        """Each one's rewards [n], directions [n, ...] and what was rendered for z."""
        with torch.no_grad():  # first, so that the graph below is not held meanwhile
            moves = [
                _perturbed(one.space, one.z, self.q, self.mu, one.draw).flatten(0, 1)
                for one in requests
            ]
            tried = _compared(requests, moves, keep=True)
        leaves, ys = _with_graphs(requests)
        with torch.no_grad():
            plain = [y.detach() for y in ys]
            rewards = _scored(requests, plain, [len(one.z) for one in requests])
            directions = []
            for y, reward, (pictures, scores) in zip(ys, rewards, tried, strict=True):
                base = _wide(y)
                gain = scores.view(len(y), self.q) - reward[:, None]
                moved = pictures.to(base).view(len(y), self.q, *base.shape[1:])
                directions.append(_direction(gain, moved - base[:, None], self.mu, self.normalise))
        return _pulled(leaves, ys, directions, rewards)


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


def _rendered(requests: Sequence[Request], zs: Sequence[Tensor]) -> list[Any]:
    """What is rendered for each one's zs, in one call."""
    xs = [one.space.decode(z) for one, z in zip(requests, zs, strict=True)]
    if len(requests) == 1:  # an objective that is never shared need not render jointly
        return [requests[0].objective.render(xs[0], requests[0].draw)]
    return requests[0].objective.render_jointly(xs, [one.draw for one in requests])


def _compared(
    requests: Sequence[Request], zs: Sequence[Points], *, keep: bool
) -> list[tuple[Tensor, Tensor]]:
    """What is rendered for each one's zs [p, ...] (nothing unless `keep`) and its scores [p].

    As many at a time as there is room for.
    """
    first = requests[0]
    like = zs[0][:1].expand(sum(len(z) for z in zs), *zs[0].shape[1:])  # others may be longer
    room = at_once(first.space, first.objective, like, gradient=False)
    pictures: list[list[Tensor]] = [[] for _ in requests]
    scores: list[list[Tensor]] = [[] for _ in requests]
    for piece in _pieces(zs, room):
        some, parts = [requests[i] for i, _ in piece], [part for _, part in piece]
        ys = _rendered(some, parts)
        found = _scored(some, ys, [len(part) for part in parts])
        for (i, _), one, y, score in zip(piece, some, ys, found, strict=True):
            scores[i].append(score)
            if keep:
                pictures[i].append(_one_tensor(one.objective, y))
    return [
        (torch.cat(own) if keep else z.new_empty(0), torch.cat(each))
        for z, own, each in zip(zs, pictures, scores, strict=True)
    ]


def _pieces(several: Sequence[Tensor], room: int) -> Iterator[list[tuple[int, Tensor]]]:
    """(which one, some of its rows), in lists of at most `room` rows."""
    piece: list[tuple[int, Tensor]] = []
    for i, rows in enumerate(several):
        for part in torch.split(rows, room):
            if piece and sum(len(one) for _, one in piece) + len(part) > room:
                yield piece
                piece = []
            piece.append((i, part))
    if piece:
        yield piece


def _scores(requests: Sequence[Request], ys: Sequence[Tensor]) -> list[Tensor]:
    """The scores [p] of each one's ys [p, ...], in batches."""
    room = requests[0].objective.batch_size or sum(len(y) for y in ys)
    found: list[list[Tensor]] = [[] for _ in requests]
    for piece in _pieces(ys, room):
        some, parts = [requests[i] for i, _ in piece], [part for _, part in piece]
        scores = _scored(some, parts, [len(part) for part in parts])
        for (i, _), score in zip(piece, scores, strict=True):
            found[i].append(score)
    return [torch.cat(own) for own in found]


def _scored(requests: Sequence[Request], ys: Sequence[Any], counts: Sequence[int]) -> list[Tensor]:
    """The scores of each one's ys, of so many candidates; one call for all with one `score_key`."""
    objectives, draws = [one.objective for one in requests], [one.draw for one in requests]
    keys = {(type(one), one.score_key()) for one in objectives}
    if len(requests) > 1 and len(keys) == 1 and objectives[0].score_key() is not None:
        found = type(objectives[0]).score_jointly(objectives, ys, draws)
    else:
        found = [one.objective.score(y, one.draw) for one, y in zip(requests, ys, strict=True)]
    for score, n in zip(found, counts, strict=True):
        check_scores(score, n)
    return [score.detach() for score in found]


def _with_graphs(requests: Sequence[Request]) -> tuple[list[Tensor], list[Tensor]]:
    """A leaf at each one's z [n, ...], and what is rendered from it."""
    with torch.enable_grad():
        leaves = [one.z.detach().requires_grad_() for one in requests]
        ys = _rendered(requests, leaves)
    for one, y in zip(requests, ys, strict=True):
        if not _one_tensor(one.objective, y).requires_grad:
            raise Incompatible(
                f"{type(one.objective).__name__} says that what it renders can be differentiated, "
                "and it carries no gradient to z; choose the estimator ZerothOrder"
            )
    return leaves, ys


def _pulled(
    leaves: Sequence[Tensor],
    ys: Sequence[Tensor],
    directions: Sequence[Tensor],
    rewards: Sequence[Tensor],
) -> list[Estimate]:
    """J^T of each direction over what was rendered, from one back-propagation."""
    grads = torch.autograd.grad(
        list(ys), list(leaves), [way.to(y) for way, y in zip(directions, ys, strict=True)]
    )
    return [
        Estimate(reward, grad, y.detach())
        for reward, grad, y in zip(rewards, grads, ys, strict=True)
    ]


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
