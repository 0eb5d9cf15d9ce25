"""Preference: a stand-in for a human-preference model, trained on a synthetic rating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from tiller.rewards._tower import EMOJI, tower_for
from tiller.rewards.base import Reward


@dataclass(frozen=True)
class Preference(Reward):
    """What a small head on the bundled CLIP's image vector x predicts: r = head(x).

    The rating that it imitates is computed, not given by people: a subject that is centred, large
    and in contrast with its background rates high. Scores have about zero mean and unit deviation
    over the bundled scenes, and no bounds. The prompt is not read, as in aesthetic predictors.

    Raises:
        TillerError: at the first call, if the bundled weights are missing.

    Example:
        >>> Preference().name
        'preference'

    Source: this package; the rating is described in the bundled model's card.
    """

    @property
    def bundled(self) -> bool:
        """It is."""
        return True

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Predicted ratings [n] of images [n, 3, H, W] in [0, 1]; the prompts are not read."""
        tower = tower_for(EMOJI, images)
        features = tower.embed_images(images)
        scores: Tensor = _head(features.device, features.dtype)(features)
        return scores


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _head(device: torch.device, dtype: torch.dtype) -> nn.Module:
    from tiller.models.bundled import load_preference

    return load_preference().to(device=device, dtype=dtype).requires_grad_(False).eval()
