"""Colour: how near the pixels are to a named colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import ImageColor
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.settings import meant
from tiller.rewards.base import Reward

_HEX = re.compile(r"#(?:[0-9a-f]{3}|[0-9a-f]{6})")


@dataclass(frozen=True)
class Colour(Reward):
    """How near a picture is to one colour c: r = -mean over pixels of ||p - c||, in [-sqrt 3, 0].

    Distances are Euclidean in RGB, each channel in [0, 1].

    Args:
        colour: a CSS name (the eleven colours of the bundled model are among them) or a hex value
            such as `#ff8800`; case does not matter.

    Raises:
        InvalidInput: no such colour.

    Example:
        >>> import torch
        >>> Colour("white")(torch.zeros(1, 3, 8, 8), ["a"]).item()  # black is sqrt 3 away
        -1.7320507764816284
    """

    colour: str
    argument: ClassVar[str | None] = "colour"

    def __post_init__(self) -> None:
        name = str(self.colour).strip().lower()
        if name not in ImageColor.colormap and not _HEX.fullmatch(name):
            raise InvalidInput(
                "colour must be a CSS colour name such as red or darkgreen, or a hex value such as "
                f"#ff8800; got {self.colour!r}.{meant(name, ImageColor.colormap)}"
            )
        object.__setattr__(self, "colour", name)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Negated mean distance [n] of images [n, 3, H, W] in [0, 1]; the prompts are not read."""
        red, green, blue = ImageColor.getrgb(self.colour)[:3]
        target = images.new_tensor([red, green, blue]) / 255
        distance: Tensor = torch.linalg.vector_norm(images - target.view(1, 3, 1, 1), dim=1)
        return -distance.mean(dim=(1, 2))
