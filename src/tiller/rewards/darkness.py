"""Darkness: brightness, negated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tiller.rewards.base import Reward
from tiller.rewards.brightness import Brightness


@dataclass(frozen=True)
class Darkness(Reward):
    """How black a picture is: r = -brightness, in [-1, 0].

    Args:
        luma: the channel weights, as in `brightness`.

    Raises:
        InvalidInput: another `luma`.

    Example:
        >>> import torch
        >>> Darkness()(torch.ones(1, 3, 8, 8), ["a"]).tolist()
        [-1.0]

    Source: DNO, section 5.1, the "blackness" reward: the negated whiteness.
    """

    luma: str = "equal"

    def __post_init__(self) -> None:
        Brightness(self.luma)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Negated mean brightness [n] of images [n, 3, H, W]; the prompts are not read."""
        return -Brightness(self.luma)(images, prompts)
