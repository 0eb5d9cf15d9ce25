"""`random`: random local search. It learns one thing, where the best candidate so far is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Evaluation
from tiller.core.rng import Stream
from tiller.core.shapes import Candidates
from tiller.core.solver import Solver
from tiller.core.space import Continuous, Discrete, Space
from tiller.solvers._unseen import Known, Unseen, exhausted, known_tensors, tensor


@dataclass(frozen=True)
class RandomState:
    """The best candidate z [1, ...] and its score; for discrete spaces all that was tried.

    Attributes:
        best: None before the first round.
        score: of `best`.
        seen: [k, positions], None for continuous spaces.
    """

    best: Tensor | None
    score: float
    seen: Tensor | None


@dataclass(frozen=True)
class Random(Solver[RandomState]):
    """Perturb the best candidate so far; move to a perturbation where it scores higher.

        z' = sqrt(1 - radius^2) z + radius e,   e ~ N(0, I)

    which leaves N(0, I) as it is: perturbed noise is noise, of the same norm in expectation. In a
    space that is not noise, set keep_norm=False for z' = z + radius e. The first round is the
    space's first sample and its neighbours. In a discrete space, where no distance is known, the
    candidates are the space's samples without repeats, uniform ones unless the space has a
    distribution of its own. `best_of_n` differs: its samples are independent and it moves nowhere.

    Attributes:
        batch: candidates a round.
        radius: size of a perturbation, 0 to 1 where the norm is kept.
        keep_norm: shrink z as it is perturbed, by the equation above.
        known: candidates of a discrete space with scores from before the search: not tried again.

    Raises:
        InvalidInput: a field is out of its range, or no candidate of the space is allowed.

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.testing.fakes import FakeQuadratic
        >>> quadratic = FakeQuadratic(dimension=2)
        >>> solver = Random(radius=0.1, keep_norm=False)
        >>> *_, last = search(quadratic.space, quadratic, solver, Budget(images=400))
        >>> last.best.score > -1e-2
        True

    Source: Ma et al. 2025, "Inference-time scaling for diffusion models beyond scaling denoising
    steps": their zero-order search over noises. Ours keeps the pivot until something beats it.
    """

    batch: int = 4
    radius: float = 0.3
    keep_norm: bool = True
    known: Known = ()

    divisible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InvalidInput(f"batch must be at least 1, got batch={self.batch}")
        largest = 1.0 if self.keep_norm else math.inf
        if not 0 < self.radius <= largest:
            raise InvalidInput(f"expected 0 < radius <= {largest:g}, got radius={self.radius}")

    def init(self, space: Space[Any], rng: Stream) -> RandomState:
        """Nothing tried, but for what is known."""
        if not isinstance(space, Discrete):
            return RandomState(None, -math.inf, None)
        tried, scores = known_tensors(self.known, len(space.choices))
        return RandomState(
            tried[:1] if len(tried) else None, max(scores.tolist(), default=-math.inf), tried
        )

    def ask(self, space: Space[Any], state: RandomState, rng: Stream) -> Candidates:
        """The best candidate's neighbours, or what is left of a discrete space [batch, ...]."""
        if isinstance(space, Discrete):
            assert state.seen is not None
            return self._untried(space, state.seen, rng)
        assert isinstance(space, Continuous)
        if state.best is not None:
            return self._around(space, state.best, self.batch, rng)
        first = space.sample(1, rng)
        return torch.cat([first, self._around(space, first, self.batch - 1, rng)])

    def _around(self, space: Continuous[Any], z: Tensor, n: int, rng: Stream) -> Tensor:
        """`n` perturbations of z [1, ...]."""
        if n == 0:
            return z[:0]
        e = torch.stack(
            [torch.randn(space.shape, generator=rng.next(), dtype=torch.float64) for _ in range(n)]
        ).to(z)
        kept = math.sqrt(1 - self.radius**2) if self.keep_norm else 1.0
        return space.project(kept * z + self.radius * e)

    def _untried(self, space: Discrete[Any], seen: Tensor, rng: Stream) -> Tensor:
        """Up to `batch` allowed candidates outside `seen`, from the space's samples."""
        fresh = Unseen(space, seen).sampled(self.batch, rng)
        if not fresh:
            raise InvalidInput(
                f"expected a candidate that is allowed and untried, got none: {space.describe()}"
            )
        return tensor(fresh, len(space.choices))

    def tell(
        self,
        space: Space[Any],
        state: RandomState,
        z: Candidates,
        evaluation: Evaluation,
    ) -> RandomState:
        """The best so far, and what was tried."""
        best, score, k = state.best, state.score, evaluation.best
        if float(evaluation.score[k]) > score:
            best, score = z[k : k + 1].clone(), float(evaluation.score[k])
        seen = None if state.seen is None else torch.cat([state.seen, z])
        return RandomState(best, score, seen)

    def finished(self, space: Space[Any], state: RandomState) -> str | None:
        """Once all that is allowed of a discrete space was tried."""
        if state.seen is None:
            return None
        assert isinstance(space, Discrete)
        return exhausted(space, state.seen)
