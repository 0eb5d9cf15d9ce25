"""The noise of a trajectory as a space: x_T and, for eta > 0, the noise of each step.

Source: direct noise optimization (DNO), section 3: optimize what the sampler injects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tiller.core.rng import Stream
from tiller.core.space import Continuous
from tiller.models.base import Conditioning
from tiller.models.inputs import Inputs


class Noise(Continuous[Inputs]):
    """All noises of one picture, z ~ N(0, I), at a fixed conditioning.

    z [n, slots, C, h, w]: slot 0 is x_T, the others are the noises that the steps add; the last
    step adds none and has no slot, so eta = 0 leaves one slot.

    Args:
        shape: (slots, C, h, w), the trajectory's `noise_shape`.
        conditioning: one row, used for every candidate.
    """

    def __init__(self, shape: tuple[int, ...], conditioning: Conditioning) -> None:
        self._shape = shape
        self.conditioning = conditioning

    @property
    def shape(self) -> tuple[int, ...]:
        """(slots, C, h, w)."""
        return self._shape

    def sample(self, n: int, rng: Stream) -> Tensor:
        """`n` standard normal noises; candidate i depends on its own generator alone.

        Slots are drawn one after another, so equal seeds share x_T whatever eta is.
        """
        slots, *rest = self.shape

        def one(generator: torch.Generator) -> Tensor:
            return torch.stack([torch.randn(rest, generator=generator) for _ in range(slots)])

        return torch.stack([one(rng.next()) for _ in range(n)])

    def decode(self, z: Tensor) -> Inputs:
        """The noises beside the fixed conditioning, one row a candidate."""
        return Inputs(noise=z, conditioning=self.conditioning.expand(len(z)))

    def describe(self) -> str:
        """How many numbers, in how many slots."""
        slots, *rest = self.shape
        return f"noise: {self.dimension} numbers, {slots} slots of {'x'.join(map(str, rest))}"
