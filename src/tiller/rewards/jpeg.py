"""JPEG compressibility: how small the picture's file is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.rewards.base import Reward


@dataclass(frozen=True)
class Jpeg(Reward):
    """How well a picture compresses: r = -(size of its JPEG file) / 1000, in kB; always below 0.

    A real encoder (Pillow's, at its default 4:2:0 chroma subsampling) writes each picture, rounded
    to 8 bits, so there is no gradient.

    Args:
        quality: Pillow's setting, 1 to 95.

    Raises:
        InvalidInput: `quality` is not a whole number in that range.

    Example:
        >>> import torch
        >>> flat, noisy = torch.full((3, 64, 64), 0.5), torch.rand(3, 64, 64)
        >>> scores = Jpeg()(torch.stack([flat, noisy]), ["a", "b"])
        >>> bool(scores[0] > scores[1])
        True

    Source: DNO, section 5.3, after Black et al. 2023, who use quality 95.
    """

    quality: int = 95
    differentiable = False

    def __post_init__(self) -> None:
        if type(self.quality) is not int or not 1 <= self.quality <= 95:
            raise InvalidInput(f"quality must be a whole number, 1 to 95; got {self.quality!r}")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Negated file sizes [n], kB, of images [n, 3, H, W] in [0, 1]; prompts are not read."""
        pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        sizes = [self._size(picture) for picture in pixels.permute(0, 2, 3, 1)]
        return torch.tensor(sizes, dtype=torch.float32) / -1000

    def _size(self, picture: Tensor) -> int:
        file = io.BytesIO()
        Image.fromarray(picture.numpy()).save(file, "JPEG", quality=self.quality)
        return file.tell()
