"""`evolution`: mutation and crossover of the best, for discrete spaces."""

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
    rows,
    tensor,
    uniform,
)


@dataclass(frozen=True)
class EvolutionState:
    """The survivors, best first, and everything that was scored.

    Attributes:
        parents: [k, positions], k <= keep; before the first round what was known.
        scores: [k] float64, descending.
        seen: [m, positions].
        generations: rounds done.
    """

    parents: Tensor
    scores: Tensor
    seen: Tensor
    generations: int


@dataclass(frozen=True)
class Evolution(Solver[EvolutionState]):
    """The best `keep` live on; their mutants and crossovers are tried. No candidate is tried twice.

    The first generation are the space's samples. A mutant changes each position of one parent
    with probability `mutation_rate` to another option; a crossover takes each position from
    either of two parents, equally likely. A child that was seen or is not allowed is drawn again;
    where the surroundings are exhausted a candidate from anywhere takes its place, so that small
    spaces are searched through, which ends the search.

    Attributes:
        population: size of the first generation.
        keep: survivors of a generation, the parents of the next.
        mutants: children by mutation, a generation.
        crossovers: children by crossover, a generation.
        mutation_rate: a position's probability to change.
        known: candidates with scores from before the search: parents from the start, not tried.

    Raises:
        InvalidInput: a field is out of its range, or no candidate of the space is allowed.

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.testing.fakes import FakeMatch
        >>> match = FakeMatch(positions=12, options=2)
        >>> *_, last = search(match.space, match, Evolution(), Budget(steps=60))
        >>> last.best.score
        12.0

    Source: Wang et al. 2024, "On discrete prompt optimization for diffusion models" (DPO-Diff),
    the evolutionary prompt optimization (EPO) and its defaults.
    """

    population: int = 20
    keep: int = 10
    mutants: int = 10
    crossovers: int = 10
    mutation_rate: float = 0.1
    known: Known = ()

    spaces: ClassVar[tuple[type[Space[Any]], ...]] = (Discrete,)
    divisible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.population < 1 or self.keep < 1:
            raise InvalidInput(
                f"population and keep must be at least 1, got population={self.population}, "
                f"keep={self.keep}"
            )
        if self.mutants < 0 or self.crossovers < 0 or self.mutants + self.crossovers < 1:
            raise InvalidInput(
                "a generation needs at least one child, got "
                f"mutants={self.mutants}, crossovers={self.crossovers}; set mutants=10 and "
                "crossovers=10"
            )
        if not 0 < self.mutation_rate <= 1:
            raise InvalidInput(
                f"expected 0 < mutation_rate <= 1, got mutation_rate={self.mutation_rate}"
            )

    def init(self, space: Space[Any], rng: Stream) -> EvolutionState:
        """Nobody yet, but for what is known."""
        assert isinstance(space, Discrete), "check_compatible lets no other space in"
        parents, scores = known_tensors(self.known, len(space.choices))
        return EvolutionState(parents[: self.keep], scores[: self.keep], parents, 0)

    def ask(self, space: Space[Any], state: EvolutionState, rng: Stream) -> Choices:
        """The next generation [n, positions]: all different, allowed, none seen before."""
        assert isinstance(space, Discrete)
        unseen = Unseen(space, state.seen)
        fresh: list[Candidate] = []
        if state.generations == 0:
            fresh = unseen.sampled(self.population, rng)
        else:
            parents = rows(state.parents)
            for kind in [self._mutant] * self.mutants + [self._crossover] * self.crossovers:
                child = unseen.proposed(partial(kind, parents, space.choices), rng)
                if child is None:
                    break
                fresh.append(child)
        if not fresh:
            raise InvalidInput(
                f"expected a candidate that is allowed and untried, got none: {space.describe()}"
            )
        return tensor(fresh, len(space.choices))

    def _mutant(
        self, parents: list[Candidate], choices: tuple[int, ...], generator: Generator
    ) -> Candidate:
        """One parent, each position changed with probability `mutation_rate`."""
        parent = parents[integer(len(parents), generator)]
        changed = torch.rand(len(choices), generator=generator) < self.mutation_rate
        others = uniform([max(limit - 1, 1) for limit in choices], generator)
        return tuple(
            (old + 1 + other) % limit if change else old
            for old, other, limit, change in zip(
                parent, others, choices, changed.tolist(), strict=True
            )
        )

    def _crossover(
        self, parents: list[Candidate], choices: tuple[int, ...], generator: Generator
    ) -> Candidate:
        """Each position from either of two different parents."""
        if len(parents) == 1:
            return self._mutant(parents, choices, generator)
        first = integer(len(parents), generator)
        second = (first + 1 + integer(len(parents) - 1, generator)) % len(parents)
        coins = torch.rand(len(choices), generator=generator) < 0.5
        pairs = zip(parents[first], parents[second], coins.tolist(), strict=True)
        return tuple(a if coin else b for a, b, coin in pairs)

    def tell(
        self,
        space: Space[Any],
        state: EvolutionState,
        z: Choices,
        evaluation: Evaluation,
    ) -> EvolutionState:
        """The best `keep` of parents and children; at equal scores the older one lives."""
        everyone = torch.cat([state.parents, z])
        scores = torch.cat([state.scores, evaluation.score.to(state.scores)])
        order = torch.argsort(scores, descending=True, stable=True)[: self.keep]
        seen = torch.cat([state.seen, z])
        return EvolutionState(everyone[order], scores[order], seen, state.generations + 1)

    def finished(self, space: Space[Any], state: EvolutionState) -> str | None:
        """Once all that is allowed was tried."""
        assert isinstance(space, Discrete)
        return exhausted(space, state.seen)
