"""Solvers: what to try next. They propose (`ask`) and learn (`tell`); the loop evaluates.

Batching, budgets, caching, retries and progress are written once, in `search`, never in a solver.
Settings are the frozen dataclass's fields; what evolves is a separate state dataclass that holds
everything, so that generic code can save it and a resumed run continues bit-exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from tiller.core.errors import Incompatible
from tiller.core.evaluation import Estimator, Evaluation
from tiller.core.objective import Objective
from tiller.core.rng import Stream
from tiller.core.space import Continuous, Discrete, Space

S = TypeVar("S")


class Solver(ABC, Generic[S]):
    """What to try next. Subclasses are frozen dataclasses; `init` names its state's type.

    Attributes:
        spaces: the kinds of space it works on.
        divisible: a round may be cut short (its candidates are independent), which lets the loop
            hit an image budget exactly. The candidates that were cut are not tried later, should
            the search be given more budget.
    """

    spaces: ClassVar[tuple[type[Space[Any]], ...]] = (Continuous, Discrete)
    divisible: ClassVar[bool] = False

    @abstractmethod
    def init(self, space: Space[Any], rng: Stream) -> S:
        """The state before the first round."""

    @abstractmethod
    def ask(self, space: Space[Any], state: S, rng: Stream) -> Tensor:
        """The next candidates z [n, ...], at least one."""

    @abstractmethod
    def tell(self, space: Space[Any], state: S, z: Tensor, evaluation: Evaluation) -> S:
        """The state after learning what z [n, ...] was worth."""

    def finished(self, space: Space[Any], state: S) -> str | None:
        """Why nothing is left to try (converged, every candidate seen), or None."""
        return None

    def stands(self, state: S) -> Tensor | None:
        """Where it stands after a round [n, ...], for what goes on from there.

        None for solvers that stand at the candidates that they last asked for.
        """
        return None

    def gradient(self) -> Estimator | None:
        """How the gradients it learns from are had; None for solvers that use scores alone."""
        return None


def check_compatible(
    space: Space[Any], objective: Objective[Any, Any], solver: Solver[Any]
) -> None:
    """Refuse what cannot work, before the first model call.

    Raises:
        Incompatible: the solver does not search this kind of space, or needs gradients that the
            objective does not give.
    """
    name = type(solver).__name__
    if not isinstance(space, solver.spaces):
        kinds = " or ".join(kind.__name__ for kind in solver.spaces)
        raise Incompatible(
            f"solver {name} searches a {kinds} space, got {type(space).__name__}; "
            "choose another solver or another space"
        )
    estimator = solver.gradient()
    if estimator is None:
        return
    if not isinstance(space, Continuous):
        raise Incompatible(
            f"solver {name} needs a Continuous space for its gradients, "
            f"got {type(space).__name__}; relax the space or choose evolution"
        )
    if estimator.needs_gradient and not objective.differentiable:
        raise Incompatible(
            f"solver {name} needs a differentiable objective, and {type(objective).__name__} is "
            "not; take a differentiable reward, or a solver or estimator that compares scores"
        )
    renders = objective.differentiable or objective.render_differentiable
    if estimator.needs_render_gradient and not renders:
        raise Incompatible(
            f"estimator {type(estimator).__name__} needs gradients of what is rendered, and "
            f"{type(objective).__name__} gives none; choose ZerothOrder, which compares scores"
        )
