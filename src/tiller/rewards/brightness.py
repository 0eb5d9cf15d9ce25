"""Brightness: the mean of all pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.rewards.base import Reward

LUMA: dict[str, tuple[float, float, float]] = {
    "equal": (1 / 3, 1 / 3, 1 / 3),
    "rec601": (0.299, 0.587, 0.114),
    "rec709": (0.2126, 0.7152, 0.0722),
}


@dataclass(frozen=True)
class Brightness(Reward):
    """How white a picture is: r = mean over pixels of w_R R + w_G G + w_B B, in [0, 1].

    Args:
        luma: the channel weights. `equal`, a third each, is the paper's reward; `rec601` and
            `rec709` are the luma of the two video standards (applied to the stored values).

    Raises:
        InvalidInput: another `luma`.

    Example:
        >>> import torch
        >>> Brightness()(torch.ones(2, 3, 8, 8), ["a", "b"]).tolist()
        [1.0, 1.0]

    Source: DNO, sections 3 and 5.1, the "whiteness" reward: the average value of all
    pixels of an image.
    """

    luma: str = "equal"

    def __post_init__(self) -> None:
        if self.luma not in LUMA:
            raise InvalidInput(f"luma must be one of {', '.join(LUMA)}; got {self.luma!r}")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean brightness [n] of images [n, 3, H, W] in [0, 1]; the prompts are not read."""
        weights = images.new_tensor(LUMA[self.luma])
        return (images.mean(dim=(2, 3)) * weights).sum(dim=1)
