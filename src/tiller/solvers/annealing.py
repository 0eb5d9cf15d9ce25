"""`annealing`: chains that walk downhill a little, and less and less, for discrete spaces."""

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
    known_tensors,
    neighbour,
    rows,
    tensor,
)


@dataclass(frozen=True)
class AnnealingState:
    """Where the chains stand, and everything that was scored.

    Attributes:
        chains: [k, positions], k <= the solver's chains.
        scores: [k] float64.
        seen: [m, positions].
        every: [m] float64, the scores of all that was seen.
        rounds: done.
    """

    chains: Tensor
    scores: Tensor
    seen: Tensor
    every: Tensor
    rounds: int


@dataclass(frozen=True)
class Annealing(Solver[AnnealingState]):
    """Each chain tries a neighbour a round, and goes there unless it is worse by the threshold.

        z' accepted  if  score(z') >= score(z) - heat cooling^round s

    with s the standard deviation of all scores so far. The threshold in place of Metropolis' chance
    makes acceptance a function of the scores. The first round is the space's samples; the best of
    them, and of what was known, are where the chains begin. A neighbour takes some of its positions
    from another sample of the space. No candidate is tried twice.

    Attributes:
        chains: that walk side by side.
        heat: of the first threshold, in standard deviations.
        cooling: what it is multiplied by after each round.
        rate: a position's probability to be drawn anew; one is in any case.
        known: candidates with scores from before the search: not tried again.

    Raises:
        InvalidInput: a field is out of its range, or no candidate of the space is allowed.

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.testing.fakes import FakeMatch
        >>> match = FakeMatch(positions=12, options=2)
        >>> *_, last = search(match.space, match, Annealing(), Budget(steps=100))
        >>> last.best.score
        12.0

    Source: Dueck and Scheuer 1990, "Threshold accepting: a general purpose optimization algorithm
    appearing superior to simulated annealing".
    """

    chains: int = 8
    heat: float = 0.5
    cooling: float = 0.8
    rate: float = 0.1
    known: Known = ()

    spaces: ClassVar[tuple[type[Space[Any]], ...]] = (Discrete,)
    divisible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.chains < 1:
            raise InvalidInput(f"chains must be at least 1, got {self.chains=}")
        if not (0 <= self.heat < float("inf") and 0 < self.cooling <= 1 and 0 < self.rate <= 1):
            raise InvalidInput(
                "expected heat >= 0, 0 < cooling <= 1 and 0 < rate <= 1, got "
                f"{self.heat=}, {self.cooling=}, {self.rate=}"
            )

    def init(self, space: Space[Any], rng: Stream) -> AnnealingState:
        """No chain yet, but for what is known."""
        assert isinstance(space, Discrete), "check_compatible lets no other space in"
        known, scores = known_tensors(self.known, len(space.choices))
        return AnnealingState(known[: self.chains], scores[: self.chains], known, scores, 0)

    def ask(self, space: Space[Any], state: AnnealingState, rng: Stream) -> Choices:
        """A neighbour of each chain [n, positions]; in the first round the space's samples."""
        assert isinstance(space, Discrete)
        unseen = Unseen(space, state.seen)
        fresh: list[Candidate] = []
        if state.rounds == 0:
            fresh = unseen.sampled(self.chains, rng)
        else:
            for chain in rows(state.chains):
                child = unseen.proposed(partial(self._neighbour, space, chain), rng)
                if child is None:
                    break
                fresh.append(child)
        if not fresh:
            raise InvalidInput(
                f"expected a candidate that is allowed and untried, got none: {space.describe()}"
            )
        return tensor(fresh, len(space.choices))

    def _neighbour(self, space: Discrete[Any], chain: Candidate, generator: Generator) -> Candidate:
        return neighbour(space, chain, self.rate, generator)

    def tell(
        self,
        space: Space[Any],
        state: AnnealingState,
        z: Choices,
        evaluation: Evaluation,
    ) -> AnnealingState:
        """Each chain's next place; after the first round the best of all are where they begin."""
        new = evaluation.score.to(state.scores)
        seen, every = torch.cat([state.seen, z]), torch.cat([state.every, new])
        if state.rounds == 0:
            everyone, scores = torch.cat([state.chains, z]), torch.cat([state.scores, new])
            best = torch.argsort(scores, descending=True, stable=True)[: self.chains]
            chains, scores = everyone[best], scores[best]
        else:
            threshold = self.heat * self.cooling**state.rounds * every.std(correction=0)
            accepted = new >= state.scores[: len(z)] - threshold
            chains, scores = state.chains.clone(), state.scores.clone()
            chains[: len(z)][accepted] = z[accepted]
            scores[: len(z)][accepted] = new[accepted]
        return AnnealingState(chains, scores, seen, every, state.rounds + 1)

    def finished(self, space: Space[Any], state: AnnealingState) -> str | None:
        """Once all that is allowed was tried."""
        assert isinstance(space, Discrete)
        return exhausted(space, state.seen)
