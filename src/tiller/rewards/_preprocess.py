"""A CLIP image processor as a differentiable function of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tiller.core.errors import InvalidInput

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the images that OpenAI's CLIP was trained on
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as the configuration files hold them


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop in the centre, normalize: images of any size to what a vision tower takes.

    Agrees with the processors of transformers up to their rounding to 8 bits after resizing; like
    them, it cuts what bicubic interpolation puts outside [0, 1].

    Attributes:
        shortest_edge: the shorter side after resizing, keeping the shape; None to use `size`.
        size: (height, width) after resizing, whatever the shape was; None for no such resizing.
        crop: (height, width) cut from the centre, padded with black if larger; None for no crop.
        mode: of `F.interpolate`.
        mean: per channel, subtracted.
        std: per channel, divided by.
    """

    shortest_edge: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mode: str = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocess:
        """Read what a `preprocessor_config.json` says, old forms (plain numbers) included.

        Raises:
            InvalidInput: a way of resizing that CLIP models do not use.
        """
        edge, size = (
            _sides(config.get("size", 224)) if config.get("do_resize", True) else (None,) * 2
        )
        crop = None
        if config.get("do_center_crop", True):
            square, crop = _sides(config.get("crop_size", 224))
            crop = crop or (square, square) if square else crop
        resample = config.get("resample", 3)
        if resample not in _MODES:
            raise InvalidInput(
                f"expected an image processor that resizes bilinearly (2) or bicubically (3), got "
                f"{resample=}; use a CLIP model with one of these"
            )
        normalize = config.get("do_normalize", True)
        return cls(
            edge,
            size,
            crop,
            _MODES[resample],
            tuple(config.get("image_mean", CLIP_MEAN)) if normalize else (0.0, 0.0, 0.0),
            tuple(config.get("image_std", CLIP_STD)) if normalize else (1.0, 1.0, 1.0),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [0, 1] -> the tower's input [n, 3, h, w]; differentiable."""
        height, width = images.shape[-2:]
        target = self.size
        if self.shortest_edge is not None:
            short, edge = min(height, width), self.shortest_edge
            target = (edge * height // short, edge * width // short)
        if target is not None and target != (height, width):
            images = F.interpolate(images, target, mode=self.mode, antialias=True).clamp(0, 1)
        if self.crop is not None:
            images = _crop(images, *self.crop)
        mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std


def _crop(images: Tensor, height: int, width: int) -> Tensor:
    """The centre, where negative padding cuts and an odd difference leaves the spare row below."""
    below, right = images.shape[-2] - height, images.shape[-1] - width
    top, left = (below // 2, right // 2)
    return F.pad(images, (-left, left - right, -top, top - below))


def _sides(value: Any) -> tuple[int | None, tuple[int, int] | None]:
    """(shortest edge, None) or (None, (height, width)) of a size as configurations write it."""
    if isinstance(value, int):
        return value, None
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), None
    return None, (int(value["height"]), int(value["width"]))
