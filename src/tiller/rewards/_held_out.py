"""What a run reports beside the rewards that it optimizes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from tiller.core.errors import InvalidInput, TillerNotice
from tiller.rewards._compose import RewardSum
from tiller.rewards.parse import make_reward

_USUAL = ("clip_heldout", "clip", "brightness", "preference", "jpeg")


def default_held_out(reward: RewardSum) -> list[str]:
    """The first of some that is not optimized: the second CLIP, else the first.

    Raises:
        InvalidInput: all of them are.
    """
    used = {part.name for part in reward.parts}
    free = [name for name in _USUAL if name not in used]
    if not free:
        raise InvalidInput(
            f"{', '.join(_USUAL)} are all optimized, and none is left to report beside them; name "
            "another held-out reward"
        )
    return free[:1]


def notice_bundled(optimized: RewardSum, watched: RewardSum) -> None:
    """Say which rewards of another model's pictures know the bundled model's scenes alone."""
    strange = [part.name for part in (*optimized.parts, *watched.parts) if part.reward.bundled]
    if strange:
        warnings.warn(
            f"{', '.join(strange)}: trained on the bundled model's 64x64 emoji scenes, and of "
            "little use for this model's pictures; name other rewards, such as --reward "
            "clip:openai/clip-vit-large-patch14 --held-out clip:openai/clip-vit-base-patch32",
            TillerNotice,
            stacklevel=3,
        )


def held_out_of(
    asked: str | Sequence[str] | None,
    optimized: RewardSum,
    *,
    probe_size: int,
    device: torch.device | str,
) -> RewardSum:
    """What to report beside the optimized rewards, tried as they are.

    Raises:
        InvalidInput: it is optimized as well, or is a Python object.
    """
    watched = make_reward(
        asked or default_held_out(optimized), probe_size=probe_size, device=device, trial=True
    )
    both = {part.name for part in watched.parts} & {part.name for part in optimized.parts}
    if both:
        raise InvalidInput(
            f"{', '.join(sorted(both))} cannot be held out, it is optimized; choose another one"
        )
    if watched.spec is None:
        raise InvalidInput("held-out rewards must be names or files, got a Python object")
    return watched
