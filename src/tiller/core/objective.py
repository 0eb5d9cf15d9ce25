"""Objectives: what a candidate is worth. Higher is better, always.

An objective has two stages. `render` is the frozen machine (a sampler, a supernet), differentiable
where the objective says so; `score` is the reward, perhaps a black box. Objectives without a
picture render trivially.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from tiller.core.rng import Draw

X_contra = TypeVar("X_contra", contravariant=True)
Y = TypeVar("Y")


class Regulariser(ABC):
    """A penalty over z, subtracted from the reward: score = reward - weight * value(z).

    The journal keeps reward and penalty apart; the best candidate is chosen by their sum.

    Attributes:
        weight: of the penalty.
        random: `value` depends on the draw. Gradients are of the round's own; the penalty by which
            rounds are compared is of one draw, `STEADY`, or else the luckiest round would be best.
    """

    weight: float = 1.0
    random: ClassVar[bool] = False

    @abstractmethod
    def value(self, z: Tensor, draw: Draw) -> Tensor:
        """The penalty [n] of z [n, ...], before the weight; differentiable in z."""

    def gradient(self, z: Tensor, draw: Draw) -> Tensor | None:
        """d value.sum() / dz [n, ...] in closed form, or None to use autograd on `value`."""
        return None

    def value_and_gradient(self, z: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """`value` and its gradient, holding no graph; override where they share their work."""
        closed = self.gradient(z, draw)
        leaf = z.detach().requires_grad_(closed is None)
        with torch.set_grad_enabled(leaf.requires_grad):
            value = self.value(leaf, draw)
        if closed is None:
            (closed,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), closed


class Objective(ABC, Generic[X_contra, Y]):
    """What a candidate is worth.

    Attributes:
        differentiable: `score(render(x))` carries gradients to x.
        render_differentiable: `render(x)` does, whatever `score` is; implied by `differentiable`.
        stateful: evaluation changes the objective (a supernet trains); `state` is checkpointed.
        batch_size: candidates evaluated at once; None for all of a round's.
        images_per_candidate: pictures drawn for one candidate, to end exactly on an image budget.
        forwards_per_candidate: denoiser forwards for one, to end exactly on a budget of those; 0
            where that is not known beforehand.
        regularisers: penalties over z.
    """

    differentiable: bool = False
    render_differentiable: bool = False
    stateful: bool = False
    batch_size: int | None = None
    images_per_candidate: int = 1
    forwards_per_candidate: int = 0
    regularisers: tuple[Regulariser, ...] = ()

    @abstractmethod
    def render(self, x: X_contra, draw: Draw) -> Y:
        """The frozen machine's output for the candidates x."""

    @abstractmethod
    def score(self, y: Y, draw: Draw) -> Tensor:
        """The reward [n] of what was rendered; higher is better."""

    def pick(self, y: Y, index: int) -> Any:
        """Candidate `index` of y, kept as a batch of one; override where y is no tensor."""
        return y[index : index + 1]  # type: ignore[index]  # tensors and lists; others override

    def nearest(self, y: Y) -> Y:
        """The y that `score` takes, nearest to one that was perturbed; y itself by default."""
        return y

    def joint_key(self) -> Hashable | None:
        """Objectives with equal keys render in one call (`render_jointly`); None: only alone."""
        return None

    def render_jointly(self, xs: Sequence[X_contra], draws: Sequence[Draw]) -> list[Y]:
        """`render` for the candidates of several objectives with this one's key, in order.

        Each with its own search's randomness of the round.
        """
        raise NotImplementedError("an objective with a joint_key renders jointly")

    def score_key(self) -> Hashable | None:
        """Of those, objectives with equal keys score in one call too; None: each by itself."""
        return None

    @classmethod
    def score_jointly(
        cls, objectives: Sequence[Any], ys: Sequence[Y], draws: Sequence[Draw]
    ) -> list[Tensor]:
        """`score` of what several objectives with one `score_key` rendered, in order."""
        several = zip(objectives, ys, draws, strict=True)
        return [objective.score(y, draw) for objective, y, draw in several]

    def room(self, x: X_contra, gradient: bool) -> int | None:
        """How many candidates like x (a batch of one) fit in one call; None for any number."""
        return self.batch_size

    def state(self) -> dict[str, Tensor]:
        """Copies of what a stateful objective needs to continue bit-exactly."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
