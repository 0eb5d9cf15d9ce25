"""CLIP: how well a picture fits its prompt, by the angle between their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tiller.rewards._tower import BUNDLED, EMOJI, tower_for
from tiller.rewards.base import Reward


@dataclass(frozen=True)
class Clip(Reward):
    """The cosine between picture and prompt: r = <x, y>, x and y unit CLIP vectors; in [-1, 1].

    Args:
        model: `emoji` for the bundled CLIP, or the folder or hub id of any
            `transformers.CLIPModel`, which brings its own preprocessing; pictures may have any
            size. A name sets it too: `clip:openai/clip-vit-base-patch32`.

    Raises:
        InvalidInput: at the first call, if the model cannot be loaded.

    Example:
        >>> from tiller.rewards import make_reward
        >>> make_reward("clip:openai/clip-vit-base-patch32:0.5").spec
        ['clip:openai/clip-vit-base-patch32:0.5']

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision".
    """

    model: str = EMOJI
    argument: ClassVar[str | None] = "model"

    @property
    def bundled(self) -> bool:
        """Whether the CLIP is."""
        return self.model in BUNDLED

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [n] of images [n, 3, H, W] in [0, 1] with the n prompts."""
        tower = tower_for(self.model, images)
        return (tower.embed_images(images) * tower.embed_texts(prompts)).sum(dim=-1)
