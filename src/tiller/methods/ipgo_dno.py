"""`ipgo_dno`: the tokens around the prompt and the noises of the sampler, ascended together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Autograd
from tiller.core.search import Handover, Phase, Problem
from tiller.methods._affixed import AffixMethod, at
from tiller.methods.base import Task
from tiller.models.base import FrozenModel, SamplerSettings
from tiller.models.trajectory import Gradient
from tiller.solvers.estimators import Hybrid2
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.solvers.parts import Part, Parts
from tiller.spaces.noise import Noise


@dataclass(frozen=True)
class IpgoDno(AffixMethod):
    """Ascend r(M(z, T)) in the noises z and the tokens of T = [V_pre, f(C), V_suf] at once (ours).

        (E, Z, theta) <- project(. + lr decay^(step / 10) Adam(clip(d L / d .)))
        z <- z + noise_lr Adam(clip(d L / dz)),     L = r - gamma |mean T - mean f(C)|^2

    What words can say and what only noise can is found under one budget: `ipgo` alone keeps the
    layout that the noise fixes, `dno` alone keeps the prompt's states. Each part has the learning
    rate, the schedule and the clipping of its own method, and one back-propagation serves both. A
    reward without gradients is compared (hybrid 2).

    Attributes:
        eta: 1 moves every step's noise, 0 the initial noise alone (as `dno`).
        noise_lr: Adam's learning rate of the noises (DNO, appendix D.2: .01).
        noise_clip_norm: largest norm of the noises' gradient (DNO's release: 1).
        trust: largest distance of each step's noise from the norm sqrt(d) that N(0, I) has; none
            lets the noise go anywhere (as `dno`).
        gradient: what of the trajectory is differentiated: full, or last(K), K > 1, with
            eta > 0.

    Example:
        >>> tiller.steer("emoji", "a purple owl", method="ipgo_dno", reward="preference",
        ...              budget="steps=20")                                      # doctest: +SKIP

    Source: Ye et al. 2025, "IPGO"; Tang et al., "Inference-time alignment of diffusion models with
    direct noise optimization". Together: ours.
    """

    eta: float = 1.0
    noise_lr: float = 0.01
    noise_clip_norm: float | None = 1.0
    trust: float | None = None
    gradient: str = "full"

    default_budget: ClassVar[Budget] = Budget(steps=31)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise_lr", "noise_clip_norm"):
            got = getattr(self, name)
            if got is not None and not 0 < got < float("inf"):
                raise InvalidInput(f"{name} must be positive and finite, got {name}={got}")

    def sampler(self, model: FrozenModel) -> SamplerSettings:
        """DDIM with this method's eta; other schedulers have no noise of their own to search."""
        if self.scheduler not in (None, "ddim"):
            raise InvalidInput(
                "ipgo_dno searches the noises of the ddim scheduler, got "
                f"scheduler={self.scheduler!r}; leave it out, or use ipgo"
            )
        return replace(super().sampler(model), scheduler="ddim", eta=self.eta)

    def noise(self, task: Task, trust: float | None = None) -> Noise:
        """The space of the noises, near where N(0, I) has them with `trust`."""
        return super().noise(task, self.trust if trust is None else trust)

    def build(self, task: Task) -> list[Phase]:
        """The unsteered picture, then the ascent from its noise.

        Raises:
            InvalidInput: a field is out of its range, or the gradient does not reach the noises.
        """
        mode = Gradient.parse(self.gradient)
        if mode.mode != "full" and not (mode.mode == "last" and mode.k > 1 and self.eta > 0):
            raise InvalidInput(
                "the gradient must reach the noises: full, or with eta > 0 last(K) with K > 1; got "
                f"{self.gradient!r} with eta={self.eta:g}"
            )
        space = self.space(task, noise_moves=True)
        assert space.moving is not None, "it was asked for"
        objective = self.pictures(task, mode, self.conformity(space))
        tokens = Part(space.affixes.dimension, self.lr, self.schedule(), self.clip_norm)
        noises = Part(space.moving.dimension, self.noise_lr, clip_norm=self.noise_clip_norm)
        solver = GradientSolver(
            rule=Parts((tokens, noises)),
            lr=1.0,
            estimator=Autograd() if task.reward.differentiable else Hybrid2(),
        )
        Problem(space, objective, solver)  # refused now, and not after the first picture

        def ascent(before: Handover | None) -> Problem:
            assert before is not None, "the unsteered picture comes first"
            return Problem(at(space, before.best.z), objective, solver)

        return [self.unsteered(task), Phase("ascent", ascent)]
