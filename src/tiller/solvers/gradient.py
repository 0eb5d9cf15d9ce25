"""`gradient`: ascent along the gradients that evaluations bring.

Where the gradients come from (back-propagation, a zeroth-order estimate) is the `estimator`'s
business, how they become moves the `rule`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Autograd, Estimator, Evaluation
from tiller.core.rng import Stream
from tiller.core.shapes import Points
from tiller.core.solver import Solver
from tiller.core.space import Continuous, Space
from tiller.solvers.rules import Adam, Moments, UpdateRule
from tiller.solvers.schedules import Constant, Schedule


@dataclass(frozen=True)
class GradientState:
    """Where the candidates stand: z [n, ...], the rule's memory, and the steps done."""

    z: Tensor
    moments: Moments
    step: int


@dataclass(frozen=True)
class Gradient(Solver[GradientState]):
    """z <- project(z + rule(clip(d score / dz))), for `population` candidates side by side.

    The candidates start at the space's first samples and never meet: each has its own clipping
    and moments, so a population that is not thinned equals as many runs of one. A step is
    evaluated where it begins; the point after the last step is in the state, not scored.

    Attributes:
        rule: how a gradient becomes a move.
        lr: the learning rate.
        schedule: what multiplies it, by the step.
        clip_value: each number of the gradient is cut to [-clip_value, clip_value]; None for not.
        clip_norm: then the gradient of one candidate is shortened to this length; None for not.
        population: candidates moved together.
        halve_every: after so many steps, and again after as many, the worse half of the candidates
            is dropped, until one is left; 0 keeps all. (Jamieson and Talwalkar 2016, successive
            halving.)
        estimator: how the gradient is had.
        steps: steps in all; None for as many as the budget allows.

    Raises:
        InvalidInput: a field is out of its range.

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.testing.fakes import FakeQuadratic
        >>> quadratic = FakeQuadratic(dimension=2)
        >>> *_, last = search(quadratic.space, quadratic, Gradient(lr=0.1), Budget(steps=100))
        >>> last.best.score > -1e-3
        True
    """

    rule: UpdateRule = Adam()  # noqa: RUF009  # frozen, safe to share
    lr: float = 0.01
    schedule: Schedule = Constant()  # noqa: RUF009  # frozen, safe to share
    clip_value: float | None = None
    clip_norm: float | None = None
    population: int = 1
    halve_every: int = 0
    estimator: Estimator = Autograd()  # noqa: RUF009  # frozen, safe to share
    steps: int | None = None

    spaces: ClassVar[tuple[type[Space[Any]], ...]] = (Continuous,)

    def __post_init__(self) -> None:
        for name in ("lr", "clip_value", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidInput(f"{name} must be positive and finite, got {name}={value!r}")
        if self.population < 1:
            raise InvalidInput(f"population must be at least 1, got population={self.population}")
        if self.halve_every < 0:
            raise InvalidInput(
                f"halve_every must be at least 0, got halve_every={self.halve_every}"
            )
        if self.steps is not None and self.steps < 1:
            raise InvalidInput(f"steps must be at least 1 or None, got steps={self.steps}")

    def init(self, space: Space[Any], rng: Stream) -> GradientState:
        """The space's first `population` samples, at rest."""
        z = space.sample(self.population, rng)
        return GradientState(z, self.rule.init(z), 0)

    def ask(self, space: Space[Any], state: GradientState, rng: Stream) -> Points:
        """Where the candidates stand [population, ...]."""
        return state.z

    def tell(
        self,
        space: Space[Any],
        state: GradientState,
        z: Points,
        evaluation: Evaluation,
    ) -> GradientState:
        """One step uphill from z [population, ...]."""
        assert isinstance(space, Continuous), "check_compatible lets no other space in"
        assert evaluation.grad is not None, "a solver with an estimator is told gradients"
        grad = clip(evaluation.grad, value=self.clip_value, norm=self.clip_norm)
        lr = self.lr * self.schedule(state.step)
        move, moments = self.rule.update(state.moments, grad, z, lr, state.step)
        z, step = space.project(z + move), state.step + 1
        if self.halve_every and step % self.halve_every == 0:
            better = evaluation.score.topk((len(z) + 1) // 2).indices.sort().values
            z, moments = z[better], tuple(m[better] for m in moments)
        return GradientState(z, moments, step)

    def finished(self, space: Space[Any], state: GradientState) -> str | None:
        """Once `steps` were made."""
        if self.steps is not None and state.step >= self.steps:
            return f"all {self.steps} steps made"
        return None

    def stands(self, state: GradientState) -> Points:
        """Where the last step led [population, ...]."""
        return state.z

    def gradient(self) -> Estimator:
        """The estimator."""
        return self.estimator


def clip(grad: Points, *, value: float | None = None, norm: float | None = None) -> Points:
    """Cut each number of grad [n, ...] to +-value, then each candidate's length to `norm`.

        g_i <- g_i min(1, norm / (|g_i| + 1e-6))

    The small number is torch.nn.utils.clip_grad_norm_'s, which this equals for one candidate.
    """
    if value is not None:
        grad = grad.clamp(-value, value)
    if norm is not None:
        lengths = grad.flatten(1).norm(dim=1)
        factors = (norm / (lengths + 1e-6)).clamp(max=1.0)
        grad = grad * factors.view(-1, *[1] * (grad.ndim - 1))
    return grad
