"""What a candidate decodes to for every method that draws."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tiller.models.base import Conditioning


@dataclass(frozen=True)
class Inputs:
    """All that a frozen text-to-image model is fed, for `n` candidates.

    Attributes:
        noise: [n, slots, C, h, w] of standard normal numbers; see `Trajectory`.
        conditioning: n rows.
    """

    noise: Tensor
    conditioning: Conditioning
