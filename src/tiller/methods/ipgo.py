"""`ipgo`: indirect prompt gradient optimization, learned tokens before and after the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.search import Handover, Phase, Problem
from tiller.core.solver import Solver
from tiller.core.space import starting_at
from tiller.methods._affixed import AffixMethod, at
from tiller.methods._resampled import ResampledGradient
from tiller.methods.base import MOST_NOISES, Task
from tiller.models.trajectory import Gradient
from tiller.rewards.base import Reward
from tiller.solvers.bayes import Bayes, check_optuna
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.cma import CmaEs
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.spaces.insertion import AffixedPrompt

SOLVERS = ("auto", "gradient", "cma", "bayes")
FEW = 32  # numbers up to which a Gaussian process is worth its time


@dataclass(frozen=True)
class Ipgo(AffixMethod):
    """Ascend r(picture(T)) in the tokens around one prompt, T = [V_pre, f(C), V_suf].

        V = R2 R1 E Z for each side;   (E, Z, theta) <- project(. + Adam(clip(d L / d .)))
        L = r(picture(T), C) - gamma |mean T - mean f(C)|^2

    One noise, the run's own, unless `resample`. The gradient is that of the last sampling step
    alone by default. The first round draws the prompt as it is; the best of all rounds is kept.
    A reward without gradients is searched over the coefficients Z and the angles of a fixed random
    basis: by Bayesian optimization where those are few, else by CMA-ES.

    Attributes:
        gradient: what of the trajectory is differentiated: last(K), full, or shortcut(t, K), whose
            rounds score an estimate and whose last one draws (IPGO, section 4.1: last(1)).
        resample: draw each step from a new noise (the release keeps one).
        solver: gradient, cma, bayes, or auto: by what the reward allows.
        popsize: candidates a round of cma and bayes; none for cma's own and 1.

    Example:
        >>> tiller.steer("emoji", "a purple owl", method="ipgo", reward="preference",
        ...              budget="steps=50")                                      # doctest: +SKIP

    Source: Ye et al. 2025, "IPGO", algorithm 1 and appendix B.
    """

    gradient: str = "last(1)"
    resample: bool = False
    solver: str = "auto"
    popsize: int | None = None

    default_budget: ClassVar[Budget] = Budget(steps=51)  # the prompt as it is, then 50 epochs

    def build(self, task: Task) -> list[Phase]:
        """The unsteered picture; the search from its noise; after a shortcut, the picture.

        Raises:
            InvalidInput: a field is out of its range.
            Incompatible: the solver does not fit the reward.
            MissingDependency: the solver is not installed.
        """
        mode, solver = Gradient.parse(self.gradient), self._solver(task)
        white = isinstance(solver, (GradientSolver, ResampledGradient))
        space = self.space(
            task, moves="all" if white else "coefficients", noise_moves=self.resample
        )
        objective = self.pictures(task, mode if white else None, self.conformity(space))
        Problem(space, objective, solver)  # refused now, and not after the first picture

        def ascent(before: Handover | None) -> Problem:
            assert before is not None, "the unsteered picture comes first"
            return Problem(at(space, before.best.z), objective, solver)

        phases = [self.unsteered(task), Phase("ascent", ascent)]
        if not (white and mode.mode == "shortcut"):
            return phases
        drawn = self.pictures(task, None, self.conformity(space))

        def picture(before: Handover | None) -> Problem:
            assert before is not None, "the ascent comes first"
            found = AffixedPrompt(space.affixes, space.words, before.best.z)
            return Problem(starting_at(found, before.last), drawn, BestOfN(batch=1, n=1))

        relaxed = Phase("ascent", ascent, until=0.9, relaxed=True)
        return [phases[0], relaxed, Phase("picture", picture, asks=lambda _: 1)]

    def ascent(self) -> GradientSolver:
        """The solver for rewards that have a gradient.

        Raises:
            InvalidInput: a field of the other solvers is set.
        """
        if self.popsize is not None:
            raise InvalidInput(
                f"popsize belongs to cma and bayes, and this run takes the reward's gradient, "
                f"got popsize={self.popsize}; leave it out, or set solver=cma"
            )
        return GradientSolver(lr=self.lr, schedule=self.schedule(), clip_norm=self.clip_norm)

    def kind(self, reward: Reward, dimension: Callable[[], int]) -> str:
        """Which solver it is: gradient, cma or bayes.

        Args:
            reward: what is to be raised.
            dimension: the numbers that a solver that compares scores would search.

        Raises:
            InvalidInput: there is no such solver.
            Incompatible: the reward has no gradient, and the solver needs one.
        """
        if self.solver not in SOLVERS:
            raise InvalidInput(f"solver must be one of {', '.join(SOLVERS)}; got {self.solver!r}")
        if self.solver == "gradient" and not reward.differentiable:
            raise Incompatible(
                f"solver=gradient needs a differentiable reward, got {reward.name}; leave solver "
                "out, or set solver=cma"
            )
        if self.solver != "auto":
            return self.solver
        if reward.differentiable:
            return "gradient"
        return "bayes" if dimension() <= FEW else "cma"

    def black_box(self, kind: str) -> Solver[Any]:
        """The solver for rewards that have no gradient: cma or bayes.

        Raises:
            InvalidInput: popsize is out of its range.
            MissingDependency: optuna is not installed.
        """
        if self.popsize is not None and not 1 <= self.popsize <= MOST_NOISES:
            raise InvalidInput(
                f"popsize must lie in [1, {MOST_NOISES}], or none; got popsize={self.popsize}"
            )
        if kind == "cma":
            return CmaEs(popsize=self.popsize)
        check_optuna()  # now, and not after the first picture
        return Bayes(batch=1 if self.popsize is None else self.popsize)

    def _solver(self, task: Task) -> Solver[Any]:
        name = self.kind(task.reward, lambda: self._dimension(task))
        if name == "gradient":
            return ResampledGradient(self.ascent()) if self.resample else self.ascent()
        if self.resample:
            raise InvalidInput(
                f"{name} ranks candidates on one noise, got resample={self.resample}; leave it out"
            )
        return self.black_box(name)

    def _dimension(self, task: Task) -> int:
        """How many numbers a solver that compares scores would search."""
        longest = self._longest(task)
        return self.affixes(task.model, longest=longest, moves="coefficients").dimension
