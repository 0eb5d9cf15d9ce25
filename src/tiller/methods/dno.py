"""`dno`: direct noise optimization, gradient ascent on the noises of a frozen sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.search import Handover, Phase, Problem
from tiller.core.space import starting_at
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel, SamplerSettings
from tiller.models.trajectory import Gradient
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.solvers.rules import Adam


@dataclass(frozen=True)
class Dno(Method):
    """Ascend r(M(z)) in z = (x_T, w_1 .. w_{T-1}), the noises of DDIM with eta = 1.

        z <- z + Adam(clip(d r(M(z)) / dz))

    With eta = 0 the sampler is an ODE and z is x_T alone. `warm_start` > 0 first draws that many
    pictures and ascends from the best (ours: it saves runs from bad seeds).

    Attributes:
        eta: 1 optimizes every step's noise, 0 the initial noise alone (DNO section 3).
        lr: Adam's learning rate (DNO appendix: .01).
        clip_norm: largest gradient norm of one candidate (the authors' release: 1).
        warm_start: pictures drawn before the ascent; 0 starts at the run's own seed.
    """

    eta: float = 1.0
    lr: float = 0.01
    clip_norm: float | None = 1.0
    warm_start: int = 0

    citation: ClassVar[str] = (
        "Tang et al., Inference-time alignment of diffusion models with direct noise optimization"
    )
    needs_gradient: ClassVar[bool] = True
    default_budget: ClassVar[Budget] = Budget(steps=30)

    def sampler(self, model: FrozenModel) -> SamplerSettings:
        """DDIM with this method's eta; other schedulers have no noise of their own to search."""
        if self.scheduler not in (None, "ddim"):
            raise InvalidInput(
                f"dno searches the noises of the ddim scheduler, got scheduler={self.scheduler!r}; "
                "leave it out, or use method best_of_n with other schedulers"
            )
        return replace(super().sampler(model), scheduler="ddim", eta=self.eta)

    def build(self, task: Task) -> list[Phase]:
        """The ascent, after a warm start where one is asked for."""
        space = self.noise(task)
        objective = self.pictures(task, Gradient.full())
        solver = GradientSolver(rule=Adam(), lr=self.lr, clip_norm=self.clip_norm)

        def ascent(before: Handover | None) -> Problem:
            start = space if before is None else starting_at(space, before.best.z)
            return Problem(start, objective, solver)

        phases = [Phase("ascent", ascent)]
        if self.warm_start:
            sampling = BestOfN(batch=8, n=self.warm_start)
            phases.insert(0, Phase("warm start", lambda _: Problem(space, objective, sampling)))
        return phases
