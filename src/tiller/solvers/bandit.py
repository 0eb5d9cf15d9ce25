"""`bandit`: Thompson sampling with a model of what each option adds, for discrete spaces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Evaluation
from tiller.core.rng import Stream
from tiller.core.shapes import Choices
from tiller.core.solver import Solver
from tiller.core.space import Discrete, Space
from tiller.solvers._unseen import (
    Candidate,
    Known,
    Unseen,
    exhausted,
    integer,
    known_tensors,
    neighbour,
    rows,
    tensor,
)


@dataclass(frozen=True)
class BanditState:
    """All that was scored: z [m, positions], scores [m] float64, and the rounds done."""

    seen: Tensor
    scores: Tensor
    rounds: int


@dataclass(frozen=True)
class Bandit(Solver[BanditState]):
    """Draw what the options may be worth from what is known, and try what is best by that.

        score(z) = b + sum_j theta_j(z_j) + e,    theta_j(o) ~ N(0, .),  e ~ N(0, .)

    A normal prior on each option's worth and a normal rest that the sum does not say make the
    scores a Gaussian process whose covariance counts the positions where two candidates agree.
    Each candidate of a round is the best of a pool by a function of its own drawn from the
    posterior, so what is uncertain is tried as often as it may be best. The pool are neighbours of
    the best so far, which take some of their positions from other samples of the space. The first
    round is the space's samples. No candidate is tried twice.

    Attributes:
        startup: candidates of the first round.
        batch: candidates of each later round.
        parents: how many of the best the pool is drawn around.
        pool: candidates that the model chooses from in a round.
        rate: a position's probability to be drawn anew; one is in any case.
        rest: the part of the scores' variance that the sum is not expected to say.
        known: candidates with scores from before the search: learned from, not tried again.

    Raises:
        InvalidInput: a field is out of its range, or no candidate of the space is allowed.

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.testing.fakes import FakeMatch
        >>> match = FakeMatch(positions=12, options=2)
        >>> *_, last = search(match.space, match, Bandit(), Budget(steps=30))
        >>> last.best.score
        12.0

    Source: Thompson 1933; Russo et al. 2018, "A tutorial on Thompson sampling". A pool that the
    model filters is surrogate-assisted evolution (Jin 2011).
    """

    startup: int = 20
    batch: int = 10
    parents: int = 5
    pool: int = 60
    rate: float = 0.1
    rest: float = 0.3
    known: Known = ()

    spaces: ClassVar[tuple[type[Space[Any]], ...]] = (Discrete,)
    divisible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("startup", "batch", "parents", "pool"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if not (0 < self.rate <= 1 and 0 < self.rest < 1):
            raise InvalidInput(
                f"expected 0 < rate <= 1 and 0 < rest < 1, got {self.rate=}, {self.rest=}"
            )

    def init(self, space: Space[Any], rng: Stream) -> BanditState:
        """Nothing scored, but for what is known."""
        assert isinstance(space, Discrete), "check_compatible lets no other space in"
        return BanditState(*known_tensors(self.known, len(space.choices)), 0)

    def ask(self, space: Space[Any], state: BanditState, rng: Stream) -> Choices:
        """The first samples, then the best of the pool by as many drawn functions."""
        assert isinstance(space, Discrete)
        unseen = Unseen(space, state.seen)
        if state.rounds == 0:
            fresh = unseen.sampled(self.startup, rng)
            if not fresh:
                raise InvalidInput(
                    f"expected a candidate that is allowed and untried, got none: "
                    f"{space.describe()}"
                )
            return tensor(fresh, len(space.choices))
        order = torch.argsort(state.scores, descending=True, stable=True)[: self.parents]
        parents = rows(state.seen[order])
        pool: list[Candidate] = []
        while len(pool) < self.pool:
            child = unseen.proposed(partial(self._child, space, parents), rng)
            if child is None:
                break
            pool.append(child)
        z = tensor(pool, len(space.choices))
        return z[self._chosen(state, z, rng.next())]

    def _child(
        self, space: Discrete[Any], parents: list[Candidate], generator: Generator
    ) -> Candidate:
        parent = parents[integer(len(parents), generator)]
        return neighbour(space, parent, self.rate, generator)

    def _chosen(self, state: BanditState, pool: Tensor, generator: Generator) -> list[int]:
        """For each of `batch` functions drawn from the posterior, its best that is left."""
        n = min(self.batch, len(pool))
        mean, deviations = posterior(state.seen, state.scores, pool, self.rest)
        draws = torch.randn(n, len(pool), generator=generator, dtype=torch.float64)
        values = mean + draws @ deviations.T
        chosen: list[int] = []
        for row in values:
            row[chosen] = -torch.inf
            chosen.append(int(row.argmax()))
        return chosen

    def tell(
        self, space: Space[Any], state: BanditState, z: Choices, evaluation: Evaluation
    ) -> BanditState:
        """More to learn from."""
        scores = torch.cat([state.scores, evaluation.score.to(state.scores)])
        return BanditState(torch.cat([state.seen, z]), scores, state.rounds + 1)

    def finished(self, space: Space[Any], state: BanditState) -> str | None:
        """Once all that is allowed was tried."""
        assert isinstance(space, Discrete)
        return exhausted(space, state.seen)


def posterior(z: Tensor, scores: Tensor, pool: Tensor, rest: float) -> tuple[Tensor, Tensor]:
    """What the sum of the options' worths is believed to be at each of `pool`, given scores at z.

    Returns:
        The mean [p] and a square root [p, p] of the covariance, in standard deviations of the
        scores, whose mean is 0.
    """
    spread = scores.std(correction=0).clamp(min=1e-12)
    y = (scores - scores.mean()) / spread

    def alike(a: Tensor, b: Tensor) -> Tensor:
        """The part of the positions where two candidates agree, [len(a), len(b)]."""
        return (a[:, None] == b[None]).double().mean(dim=2)

    # A constant is added to what all have in common: it plays the role of the unknown mean b.
    scale = (1 - rest) / (1 - alike(z, z)).mean().clamp(min=1 / z.shape[1])
    known = scale * alike(z, z) + rest * torch.eye(len(z), dtype=torch.float64)
    cross = scale * alike(pool, z)
    factor = torch.linalg.cholesky(known)
    mean = cross @ torch.cholesky_solve(y[:, None], factor)[:, 0]
    explained = torch.linalg.solve_triangular(factor, cross.T, upper=False)
    left = scale * alike(pool, pool) - explained.T @ explained
    jitter = 1e-8 * scale * torch.eye(len(pool), dtype=torch.float64)
    return mean, torch.linalg.cholesky(left + jitter)
