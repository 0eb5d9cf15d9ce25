"""The noise of a trajectory as a space: x_T and, for eta > 0, the noise of each step.

Source: direct noise optimization (DNO), equation 7: optimize what the sampler injects.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
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
        trust: what is moved is projected to where noise is found: each slot's d numbers to a norm
            within `trust` of sqrt(d), the norm of nearly all of N(0, I) (its standard deviation is
            .71 whatever d is). None lets z go anywhere.
    """

    def __init__(
        self, shape: tuple[int, ...], conditioning: Conditioning, trust: float | None = None
    ) -> None:
        if trust is not None and not 0 <= trust < float("inf"):
            raise InvalidInput(f"trust must be finite and not negative, got {trust=}")
        self._shape = shape
        self.conditioning = conditioning
        self.trust = trust

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

    def project(self, z: Tensor) -> Tensor:
        """z itself, or with `trust` its slots at a norm that N(0, I) has."""
        if self.trust is None:
            return z
        norm = z.flatten(2).norm(dim=2)
        typical = math.prod(self.shape[1:]) ** 0.5
        wanted = norm.clamp(max(0.0, typical - self.trust), typical + self.trust)
        factors: Tensor = wanted / norm.clamp(min=1e-12)
        return z * factors[:, :, None, None, None]

    def decode(self, z: Tensor) -> Inputs:
        """The noises beside the fixed conditioning, one row a candidate."""
        return Inputs(noise=z, conditioning=self.conditioning.expand(len(z)))

    def describe(self) -> str:
        """How many numbers, in how many slots."""
        slots, *rest = self.shape
        return f"noise: {self.dimension} numbers, {slots} slots of {'x'.join(map(str, rest))}"
