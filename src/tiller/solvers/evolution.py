"""`evolution`: mutation and crossover of the best, for discrete spaces."""

from __future__ import annotations

from collections.abc import Callable
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
from tiller.solvers._unseen import Candidate, integer, rows, tensor, uniform, unseen


@dataclass(frozen=True)
class EvolutionState:
    """The survivors, best first, and everything that was scored.

    Attributes:
        parents: [k, positions], k <= keep; none before the first round.
        scores: [k] float64, descending.
        seen: [m, positions].
    """

    parents: Tensor
    scores: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Evolution(Solver[EvolutionState]):
    """The best `keep` live on; their mutants and crossovers are tried. No candidate is tried twice.

    The first generation are the space's samples. A mutant changes each position of one parent
    with probability `mutation_rate` to another option; a crossover takes each position from
    either of two parents, equally likely. A child that was seen is drawn again; where the
    surroundings are exhausted a candidate from anywhere takes its place, so that small spaces are
    searched through, which ends the search.

    Attributes:
        population: size of the first generation.
        keep: survivors of a generation, the parents of the next.
        mutants: children by mutation, a generation.
        crossovers: children by crossover, a generation.
        mutation_rate: a position's probability to change.

    Raises:
        InvalidInput: a field is out of its range.

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

    spaces: ClassVar[tuple[type[Space[Any]], ...]] = (Discrete,)
    divisible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.population < 1 or self.keep < 1:
            raise InvalidInput(
                f"population and keep must be at least 1, got {self.population=}, {self.keep=}"
            )
        if self.mutants < 0 or self.crossovers < 0 or self.mutants + self.crossovers < 1:
            raise InvalidInput(
                "a generation needs at least one child, got "
                f"{self.mutants=}, {self.crossovers=}; set mutants=10 and crossovers=10"
            )
        if not 0 < self.mutation_rate <= 1:
            raise InvalidInput(f"expected 0 < mutation_rate <= 1, got {self.mutation_rate=}")

    def init(self, space: Space[Any], rng: Stream) -> EvolutionState:
        """Nobody yet."""
        assert isinstance(space, Discrete), "check_compatible lets no other space in"
        nobody = tensor([], len(space.choices))
        return EvolutionState(nobody, torch.zeros(0, dtype=torch.float64), nobody)

    def ask(self, space: Space[Any], state: EvolutionState, rng: Stream) -> Choices:
        """The next generation [n, positions]: all different, none seen before."""
        assert isinstance(space, Discrete)
        seen = set(rows(state.seen))
        left = space.size - len(seen)
        fresh: list[Candidate] = []

        def add(propose: Callable[[Generator], Candidate]) -> None:
            fresh.append(unseen(space.choices, seen, propose, rng.next()))
            seen.add(fresh[-1])

        if len(state.parents) == 0:
            for sampled in rows(space.sample(min(self.population, left), rng)):
                if sampled in seen:
                    add(partial(uniform, space.choices))
                else:
                    fresh.append(sampled)
                    seen.add(sampled)
            return tensor(fresh, len(space.choices))
        parents = rows(state.parents)
        kinds = [self._mutant] * self.mutants + [self._crossover] * self.crossovers
        for kind in kinds[:left]:
            add(partial(kind, parents, space.choices))
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
        return EvolutionState(everyone[order], scores[order], torch.cat([state.seen, z]))

    def finished(self, space: Space[Any], state: EvolutionState) -> str | None:
        """Once the whole space was tried."""
        assert isinstance(space, Discrete)
        if len(state.seen) >= space.size:
            return f"all {space.size} candidates tried"
        return None
