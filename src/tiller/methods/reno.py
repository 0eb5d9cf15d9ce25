"""`reno`: reward-based noise optimization, Nesterov ascent on the initial noise of an ODE."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.objective import Regulariser
from tiller.core.search import Phase, Problem
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel, SamplerSettings
from tiller.models.trajectory import Gradient
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.solvers.rules import Sgd
from tiller.spaces.norm import ChiNorm


@dataclass(frozen=True)
class Reno(Method):
    """Ascend r(M(x_T)) in the initial noise alone, by Nesterov's momentum, its length held.

        g = clip(d (r(M(x_T)) - gamma (|x_T|^2 / 2 - (d - 1) ln|x_T|)) / dx_T)
        m <- momentum m + g,      x_T <- x_T + lr (g + momentum m)

    The sampler is an ODE (eta = 0). Made for distilled models that draw in one step, where a
    gradient is cheap and short; it works with any number of steps. `dno` moves the noise of every
    step instead, and so does this with samplers that draw noise whatever eta is (euler_a, lcm) in
    more than one step.

    Attributes:
        lr: the learning rate (the authors' release: 5).
        momentum: Nesterov's; 0 for plain ascent (the authors' release: .9).
        clip_norm: largest gradient norm of one candidate (the authors' release: .1).
        gamma: weight of the penalty on |x_T| (the authors' release: .01; 0 leaves it out).

    Example:
        >>> tiller.steer("emoji", "a red cat", method="reno", budget="steps=20")  # doctest: +SKIP

    Source: Eyring et al. 2024, "ReNO", equation 7 and algorithm 1.
    """

    lr: float = 5.0
    momentum: float = 0.9
    clip_norm: float | None = 0.1
    gamma: float = 0.01

    citation: ClassVar[str] = (
        "Eyring et al., ReNO: enhancing one-step text-to-image models through reward-based noise "
        "optimization, 2024"
    )
    needs_gradient: ClassVar[bool] = True
    default_budget: ClassVar[Budget] = Budget(steps=50)

    def sampler(self, model: FrozenModel) -> SamplerSettings:
        """The model's own sampling without noise after x_T."""
        return replace(super().sampler(model), eta=0.0)

    def build(self, task: Task) -> list[Phase]:
        """One ascent from the run's own noise.

        Raises:
            InvalidInput: a field is out of its range.
            Incompatible: the reward has no gradient.
        """
        if not task.reward.differentiable:
            raise Incompatible(
                f"reno needs a differentiable reward, and {task.reward.name} is not; choose dno, "
                "which also compares scores, or best_of_n"
            )
        problem = Problem(
            self.noise(task),
            self.pictures(task, Gradient.full(), self._regularisers()),
            GradientSolver(
                rule=Sgd(momentum=self.momentum, nesterov=self.momentum > 0),
                lr=self.lr,
                clip_norm=self.clip_norm,
            ),
        )
        return [Phase("ascent", lambda _: problem)]

    def _regularisers(self) -> tuple[Regulariser, ...]:
        if not 0 <= self.gamma < float("inf"):
            raise InvalidInput(
                f"gamma must be finite and not negative, got gamma={self.gamma}; 0 leaves the "
                "penalty on the norm out"
            )
        return (ChiNorm(weight=self.gamma),) if self.gamma else ()
