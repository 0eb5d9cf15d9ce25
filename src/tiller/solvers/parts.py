"""Parts: one update rule over a product of spaces, each part at a rate of its own.

Affixes and noises searched together differ in their units; a rule that works number by number can
serve both, but not at one learning rate and not under one clipping norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tiller.core.errors import InvalidInput
from tiller.core.shapes import Points
from tiller.solvers.gradient import clip
from tiller.solvers.rules import Adam, Moments, UpdateRule
from tiller.solvers.schedules import Constant, Schedule


@dataclass(frozen=True)
class Part:
    """Some of z's numbers, and how they move.

    Attributes:
        size: how many numbers, of those that the parts before left.
        lr: the learning rate, times the solver's.
        schedule: what multiplies it, by the step.
        clip_norm: the gradient's part is shortened to this length; None for not.
    """

    size: int
    lr: float
    schedule: Schedule = Constant()  # noqa: RUF009  # frozen, safe to share
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.size < 0:
            raise InvalidInput(f"a part's size must not be negative, got {self.size}")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidInput(f"{name} must be positive and finite, got {name}={value!r}")


@dataclass(frozen=True)
class Parts(UpdateRule):
    """`rule`, each part of z [n, d] with its own clipping, learning rate and schedule.

    Equal to `rule` on each part alone, if that works number by number.

    Attributes:
        parts: in the order of z, together d numbers.
        rule: how a gradient becomes a move.

    Raises:
        InvalidInput: later, where the parts do not add up to d.

    Example:
        >>> both = Parts((Part(2, lr=1e-3), Part(1, lr=1e-2)))
        >>> z = torch.zeros(1, 3)
        >>> move, _ = both.update(both.init(z), torch.ones(1, 3), z, 1.0, 0)
        >>> [round(number, 4) for number in move[0].tolist()]
        [0.001, 0.001, 0.01]
    """

    parts: tuple[Part, ...]
    rule: UpdateRule = Adam()  # noqa: RUF009  # frozen, safe to share

    def init(self, z: Points) -> Moments:
        """The rule's own memory."""
        return self.rule.init(z)

    def update(
        self,
        state: Moments,
        grad: Points,
        z: Points,
        lr: float,
        step: int,
    ) -> tuple[Points, Moments]:
        """The rule's move at rate 1 for gradients clipped part by part, times each part's rate."""
        sizes = [part.size for part in self.parts]
        if grad.ndim != 2 or sum(sizes) != grad.shape[1]:
            raise InvalidInput(
                f"the parts have {sum(sizes)} numbers, expected those of z, {list(grad.shape[1:])}"
            )
        pieces = torch.split(grad, sizes, dim=1)
        pairs = zip(pieces, self.parts, strict=True)
        clipped = torch.cat([clip(piece, norm=part.clip_norm) for piece, part in pairs], dim=1)
        move, moments = self.rule.update(state, clipped, z, 1.0, step)
        rates = [torch.full((p.size,), lr * p.lr * p.schedule(step)) for p in self.parts]
        return move * torch.cat(rates).to(move), moments
