"""What a candidate decodes to for every method that draws."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tiller.models.base import Conditioning


@dataclass(frozen=True)
class Inputs:
    """All that a frozen text-to-image model is fed, for `n` candidates.

    A candidate that is drawn from several noises has a row for each, one after another.

    Attributes:
        noise: [n, slots, C, h, w] of standard normal numbers; see `Trajectory`.
        conditioning: n rows.
        prompts: n texts, where the conditioning is that of words that were searched.
        negative_prompts: likewise.
    """

    noise: Tensor
    conditioning: Conditioning
    prompts: tuple[str, ...] | None = None
    negative_prompts: tuple[str, ...] | None = None

    def extras(self) -> dict[str, Tensor]:
        """What else redraws the first candidate's picture, by name; saved beside its noise."""
        return {}
