"""`dno`: direct noise optimization, gradient ascent on the noises of a frozen sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Autograd, Estimator
from tiller.core.objective import Regulariser
from tiller.core.search import Handover, Phase, Problem
from tiller.core.space import starting_at
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel, SamplerSettings
from tiller.models.trajectory import Gradient
from tiller.rewards.base import Reward
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.estimators import Hybrid1, Hybrid2, ZerothOrder
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.solvers.rules import Adam, AdamW, Normalized, UpdateRule
from tiller.spaces.probability import AsStored, OfLast, OwnOrder, Prno

# The estimators for rewards without gradients; their own defaults are the paper's.
COMPARING: dict[str, type[ZerothOrder | Hybrid1 | Hybrid2]] = {
    "zeroth_order": ZerothOrder,
    "hybrid1": Hybrid1,
    "hybrid2": Hybrid2,
}
LARGEST_POPULATION = 1024  # more are a search of another kind, and do not fit into memory


@dataclass(frozen=True)
class Dno(Method):
    """Ascend r(M(z)) in z = (x_T, w_1 .. w_{T-1}), the noises of DDIM with eta = 1.

        z <- z + Adam(clip(d (r(M(z)) + gamma E[log p1 + log p2]) / dz))

    With eta = 0 the sampler is an ODE and z is x_T alone. With gamma > 0 this is PRNO: the noise
    is kept where the model's training noise lies. A reward without gradients is ascended by
    comparing scores. `warm_start` > 0 first draws that many pictures and ascends from the best.

    Attributes:
        eta: 1 optimizes every step's noise, 0 the initial noise alone (DNO section 2.2).
        gradient: full, through every step, or last(K): the noises of the last K steps alone are
            optimized, for K steps' backward (the release's `opt_time`).
        lr: Adam's learning rate (DNO appendix: .01; .03 with gamma = .1 gains more in few steps,
            and on preference keeps a little less of the picture).
        rule: adam, or normalized: each step's noise moves by as much and in the gradient's own
            proportions; with lr = .03 it gains more in few steps (ours).
        weight_decay: AdamW's pull towards 0 (the authors' release: .01; the paper has none).
        clip_norm: largest gradient norm of one candidate (the authors' release: 1).
        warm_start: pictures drawn before the ascent, for at most half of the budget; 0 starts at
            the run's own seed (ours; at equal cost it was level with the ascent alone).
        population: candidates that ascend side by side, each from a seed of its own (ours).
        halve_every: after so many steps the worse half of them is given up, again and again until
            one is left; 0 keeps all. A bad seed then costs a few steps and not the run (ours).
        trust: largest distance of each step's noise from the norm sqrt(d) that N(0, I) has, 2 holds
            nearly all of it; None lets the noise go anywhere (ours).
        gamma: weight of the probability regulariser (DNO appendix: 1 for brightness, .1 for
            rewards learned from people; 0 leaves it out).
        k: length of the vectors that the regulariser cuts z into (DNO appendix: 2).
        b: random orders of z a step for the regulariser (DNO appendix: 100).
        own_order: with gamma, also bound the means of z's stretches in its own order (ours; off: it
            was measured on a toy alone).
        as_stored: with gamma, also take both bounds of z's own order, k neighbours a vector, as the
            authors' release does, whose k is 4.
        estimator: how the reward's gradient is had: autograd, zeroth_order, hybrid1 or hybrid2;
            auto takes autograd where the reward has gradients, else hybrid2.
        q: perturbations a step of the estimators that compare scores; None for the paper's 16, 8
            and 4.
        mu: their size; None for the paper's .01, .01 and .02.
    """

    eta: float = 1.0
    gradient: str = "full"
    lr: float = 0.01
    rule: str = "adam"
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    warm_start: int = 0
    population: int = 1
    halve_every: int = 0
    trust: float | None = None
    gamma: float = 0.0
    k: int = 2
    b: int = 100
    own_order: bool = False
    as_stored: bool = False
    estimator: str = "auto"
    q: int | None = None
    mu: float | None = None

    citation: ClassVar[str] = (
        "Tang et al., Inference-time alignment of diffusion models with direct noise optimization"
    )
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
        self._check()
        space = self.noise(task, self.trust)
        objective = self.pictures(task, Gradient.parse(self.gradient), self._regularisers(task))
        objective.trajectory.check_reaches_noise(objective.gradient)
        solver = GradientSolver(
            rule=self._rule(),
            lr=self.lr,
            clip_norm=self.clip_norm,
            population=self.population,
            halve_every=self.halve_every,
            estimator=self._estimator(task.reward),
        )

        Problem(space, objective, solver)  # refused now, and not after the warm start is paid for

        def ascent(before: Handover | None) -> Problem:
            start = space if before is None else starting_at(space, before.best.z)
            return Problem(start, objective, solver)

        phases = [Phase("ascent", ascent)]
        if self.warm_start:
            first = Problem(space, objective, BestOfN(batch=8, n=self.warm_start))
            phases.insert(0, Phase("warm start", lambda _: first, until=0.5))
        return phases

    def _check(self) -> None:
        if Gradient.parse(self.gradient).mode not in ("full", "last"):
            raise InvalidInput(
                f"dno draws whole pictures: gradient must be full or last(K), got {self.gradient!r}"
            )
        if self.warm_start < 0:
            raise InvalidInput(
                f"warm_start must be at least 0, got {self.warm_start}; 0 leaves it out"
            )
        if not 1 <= self.population <= LARGEST_POPULATION:
            raise InvalidInput(
                f"population must lie in [1, {LARGEST_POPULATION}], got {self.population}"
            )
        if self.warm_start and self.population > 1:
            raise InvalidInput(
                f"a warm start ascends from one picture, got warm_start={self.warm_start} and "
                f"population={self.population}; choose one of them"
            )
        if self.halve_every and self.population == 1:
            raise InvalidInput(
                f"halve_every gives up the worse half of a population, got halve_every="
                f"{self.halve_every} with population=1; set population=4, or leave it out"
            )
        if not 0 <= self.gamma < float("inf"):
            raise InvalidInput(
                f"gamma must be finite and not negative, got gamma={self.gamma}; 0 leaves the "
                "probability regulariser out"
            )
        for name in ("own_order", "as_stored"):
            if getattr(self, name) and not self.gamma:
                raise InvalidInput(f"{name} is a part of the regulariser; set gamma=1 as well")

    def _rule(self) -> UpdateRule:
        """What `rule` and `weight_decay` mean."""
        if self.rule not in ("adam", "normalized"):
            raise InvalidInput(f"rule must be adam or normalized, got {self.rule!r}")
        if self.rule == "adam":
            return AdamW(weight_decay=self.weight_decay) if self.weight_decay else Adam()
        if self.weight_decay:
            raise InvalidInput(
                f"weight_decay belongs to adam, got weight_decay={self.weight_decay:g} and "
                "rule=normalized; leave it out"
            )
        return Normalized()

    def _regularisers(self, task: Task) -> tuple[Regulariser, ...]:
        """Those over the noises that the reward's gradient reaches; none with gamma = 0."""
        prno = Prno(k=self.k, b=self.b, weight=self.gamma, device=task.model.device)
        trajectory = self.trajectory(task.model)
        slots, *shape = trajectory.noise_shape
        start = Gradient.parse(self.gradient).window(trajectory.num_steps).start
        moved = sum(index >= start for index in trajectory.noisy_steps) if start else slots
        if not self.gamma or not moved:
            return ()
        numbers = moved * math.prod(shape)
        if self.k > numbers:
            raise InvalidInput(f"k must be at most {numbers}, the noise's numbers, got k={self.k}")
        found: tuple[Regulariser, ...] = (prno,)
        found += (OwnOrder(self.gamma),) if self.own_order else ()
        found += (AsStored(self.k, self.gamma),) if self.as_stored else ()
        return found if moved == slots else tuple(OfLast(f, moved, self.gamma) for f in found)

    def _estimator(self, reward: Reward) -> Estimator:
        """What `estimator` means for this reward, with its q and mu."""
        name = self.estimator
        if name == "auto":
            name = "autograd" if reward.differentiable else "hybrid2"
        given: dict[str, Any] = {"q": self.q, "mu": self.mu}
        given = {field: value for field, value in given.items() if value is not None}
        if name == "autograd":
            if given:
                raise InvalidInput(
                    f"{' and '.join(given)} belong to the estimators that compare scores, and "
                    f"this run takes the reward's own gradient, got {given}; leave them out, or "
                    "set estimator=hybrid2"
                )
            return Autograd()
        if name not in COMPARING:
            raise InvalidInput(
                f"estimator must be one of auto, autograd, {', '.join(COMPARING)}; got {name!r}"
            )
        return COMPARING[name](**given)
