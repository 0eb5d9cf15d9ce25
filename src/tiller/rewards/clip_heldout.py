"""The held-out CLIP: trained from another seed on other scenes, to report and not to optimize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tiller.rewards._tower import EMOJI_HELD_OUT
from tiller.rewards.base import Reward
from tiller.rewards.clip import Clip


@dataclass(frozen=True)
class ClipHeldout(Reward):
    """The second bundled CLIP's cosine between picture and prompt, in [-1, 1].

    A score that rises in `clip` and not here was won from one model's blind spots. For pictures of
    models other than the bundled one, report another CLIP by its name, `clip:HUB_ID`.

    Example:
        >>> ClipHeldout().name
        'clip_heldout'

    Source: as `clip`; its weights are described in the bundled model's card.
    """

    @property
    def bundled(self) -> bool:
        """It is."""
        return True

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [n] of images [n, 3, H, W] in [0, 1] with the n prompts."""
        return Clip(EMOJI_HELD_OUT)(images, prompts)
