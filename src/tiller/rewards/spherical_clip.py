"""Spherical CLIP: the squared angle between picture and prompt, negated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tiller.rewards._tower import BUNDLED, EMOJI, tower_for
from tiller.rewards.base import Reward


@dataclass(frozen=True)
class SphericalClip(Reward):
    """r = -2 arcsin(||x - y|| / 2)^2 of the unit CLIP vectors x, y; in [-pi^2 / 2, 0].

    Half the squared angle between them, negated: unlike the cosine its slope does not vanish for
    opposite vectors. The papers print the loss, so their .75 to .85 are -.75 to -.85 here.

    Args:
        model: as in `clip`.

    Raises:
        InvalidInput: at the first call, if the model cannot be loaded.

    Example:
        >>> SphericalClip().name
        'spherical_clip'

    Source: DPO-Diff, section 5.1 (optimization parameters), after crumb 2022.
    """

    model: str = EMOJI
    argument: ClassVar[str | None] = "model"

    @property
    def bundled(self) -> bool:
        """Whether the CLIP is."""
        return self.model in BUNDLED

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1] for the n prompts."""
        tower = tower_for(self.model, images)
        return spherical(tower.embed_images(images), tower.embed_texts(prompts))


def spherical(x: Tensor, y: Tensor) -> Tensor:
    """-2 arcsin(||x - y|| / 2)^2 [n] of unit vectors x, y [n, D].

    Rounding may carry the argument past 1, where arcsin is undefined and its slope infinite; it is
    held just below, which matters for opposite vectors only.
    """
    half_chord = torch.linalg.vector_norm(x - y, dim=-1) / 2
    return -2 * torch.arcsin(half_chord.clamp(max=1 - 1e-7)) ** 2
