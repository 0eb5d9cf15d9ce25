"""`best_of_n`: independent samples of the space, the best is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Evaluation
from tiller.core.rng import Stream
from tiller.core.shapes import Candidates
from tiller.core.solver import Solver
from tiller.core.space import Space


@dataclass(frozen=True)
class BestOfNState:
    """How many candidates were evaluated."""

    evaluated: int


@dataclass(frozen=True)
class BestOfN(Solver[BestOfNState]):
    """argmax_i score(z_i), each z_i drawn from the space's own distribution (its prior).

    Nothing is learnt from one candidate for the next, which makes it the baseline that every
    other solver must beat at equal cost. Candidate i is the same whatever the batch. `random`
    differs: it searches around the best candidate so far.

    Attributes:
        batch: candidates a round.
        n: candidates in all; None for as many as the budget allows.

    Raises:
        InvalidInput: `batch` or `n` is below 1.

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.testing.fakes import FakeQuadratic
        >>> quadratic = FakeQuadratic(dimension=2)
        >>> *_, last = search(quadratic.space, quadratic, BestOfN(n=20), Budget(images=100))
        >>> last.cost.images
        20
    """

    batch: int = 8
    n: int | None = None

    divisible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.n is not None and self.n < 1):
            raise InvalidInput(
                f"batch and n must be at least 1, got batch={self.batch}, n={self.n}"
            )

    def init(self, space: Space[Any], rng: Stream) -> BestOfNState:
        """Nothing evaluated."""
        return BestOfNState(0)

    def ask(self, space: Space[Any], state: BestOfNState, rng: Stream) -> Candidates:
        """The next samples [batch, ...], fewer where `n` leaves fewer."""
        left = self.batch if self.n is None else self.n - state.evaluated
        return space.sample(min(self.batch, left), rng)

    def tell(
        self,
        space: Space[Any],
        state: BestOfNState,
        z: Candidates,
        evaluation: Evaluation,
    ) -> BestOfNState:
        """Counted; the loop itself remembers the best."""
        return BestOfNState(state.evaluated + len(z))

    def finished(self, space: Space[Any], state: BestOfNState) -> str | None:
        """Once `n` candidates were drawn."""
        if self.n is not None and state.evaluated >= self.n:
            return f"all {self.n} samples drawn"
        return None
