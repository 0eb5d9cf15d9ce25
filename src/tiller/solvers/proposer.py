"""`proposer`: somebody else proposes (a language model, a script), told what was tried so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Evaluation
from tiller.core.rng import Stream
from tiller.core.shapes import Candidates
from tiller.core.solver import Solver
from tiller.core.space import Space

Propose = Callable[[Tensor, Tensor, int], Tensor]
"""(what was tried z [k, ...], its scores [k], a seed of the round) -> new candidates z [n, ...]."""


@dataclass(frozen=True)
class ProposerState:
    """The history: all that was tried z [k, ...], None before the first round, and scores [k].

    Attributes:
        tried: in the order in which it was asked for.
        score: of each.
        rounds: told so far, the first one counted.
    """

    tried: Tensor | None
    score: Tensor
    rounds: int


@dataclass(frozen=True)
class Proposer(Solver[ProposerState]):
    """Optimization by proposals: round 1 tries the space's first sample, then `propose` is asked.

    What it answers may depend on the history and on the round's seed alone, so that a resumed
    search repeats it. Nothing here looks into z: prompts, programs and noises are all the same.

    Attributes:
        propose: who proposes; None for `batch` samples of the space, which is `best_of_n`.
        batch: samples a round without `propose`.
        iterations: rounds of proposals after the first round; None for as many as the budget
            allows.

    Raises:
        InvalidInput: `batch` or `iterations` is below 1, or a proposal is no point of the space.

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.testing.fakes import FakeQuadratic
        >>> quadratic = FakeQuadratic(dimension=1)                   # its best is at -1
        >>> def halfway(z, score, seed):
        ...     return (z[score.argmax()] - 1)[None] / 2
        >>> solver = Proposer(propose=halfway, iterations=20)
        >>> *_, last = search(quadratic.space, quadratic, solver, Budget(images=100))
        >>> last.cost.images, last.best.score > -1e-9
        (21, True)

    Source: Yang et al. 2023, "Large language models as optimizers" (OPRO): proposals from a history
    of solutions and scores.
    """

    propose: Propose | None = None
    batch: int = 8
    iterations: int | None = None

    divisible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.iterations is not None and self.iterations < 1):
            raise InvalidInput(
                f"batch and iterations must be at least 1, got batch={self.batch}, "
                f"iterations={self.iterations}"
            )

    def init(self, space: Space[Any], rng: Stream) -> ProposerState:
        """Nothing tried."""
        return ProposerState(None, torch.zeros(0, dtype=torch.float64), 0)

    def ask(self, space: Space[Any], state: ProposerState, rng: Stream) -> Candidates:
        """The space's first sample, then what is proposed [n, ...]."""
        if state.tried is None:
            return space.sample(1, rng)
        if self.propose is None:
            return space.sample(self.batch, rng)
        seed = int(torch.randint(2**31, (), generator=rng.next()))
        z = self.propose(state.tried, state.score, seed).detach()
        expected = state.tried
        if not len(z) or z.shape[1:] != expected.shape[1:] or z.dtype != expected.dtype:
            raise InvalidInput(
                f"expected proposals z [n >= 1, {', '.join(map(str, expected.shape[1:]))}] of "
                f"{expected.dtype}, got {list(z.shape)} of {z.dtype}; correct `propose`"
            )
        return z

    def tell(
        self,
        space: Space[Any],
        state: ProposerState,
        z: Candidates,
        evaluation: Evaluation,
    ) -> ProposerState:
        """The longer history."""
        tried = z.clone() if state.tried is None else torch.cat([state.tried, z])
        score = torch.cat([state.score, evaluation.score.detach().to(state.score)])
        return ProposerState(tried, score, state.rounds + 1)

    def finished(self, space: Space[Any], state: ProposerState) -> str | None:
        """Once there were `iterations` rounds of proposals."""
        if self.iterations is not None and state.rounds > self.iterations:
            rounds = "1 round" if self.iterations == 1 else f"all {self.iterations} rounds"
            return f"{rounds} of proposals tried"
        return None
