"""The length of a noise: a regulariser that keeps it where N(0, I) has it.

In d dimensions nearly all of N(0, I) lies close to a sphere of radius sqrt(d), and a sampler was
trained on no other length. |z| follows the chi distribution, whose density is largest at
sqrt(d - 1).

Source: Samuel et al. 2023, "Norm-guided latent space exploration for text-to-image generation";
as a penalty in Eyring et al. 2024, "ReNO".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.objective import Regulariser
from tiller.core.rng import Draw


@dataclass(frozen=True)
class ChiNorm(Regulariser):
    """The negative log density of the norm, less its smallest value: 0 at |z| = sqrt(d - 1).

        value(z) = |z|^2 / 2 - (d - 1) ln|z| - min,      d value / dz = (1 - (d - 1) / |z|^2) z

    All numbers of a candidate count together, d of them. About .5 for a draw of N(0, I), infinite
    at z = 0. It sees the length of z and nothing else: a noise of the right length can still be one
    that the model never saw (see `Prno`).

    Attributes:
        weight: lambda (ReNO: .01).

    Raises:
        InvalidInput: the weight is negative or not finite; later, a candidate has one number only.

    Example:
        >>> z = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        >>> penalty = ChiNorm().value(torch.cat([z, 0.5 * z, 2 * z]), Draw(seed=0, round=0))
        >>> [round(one) for one in penalty.tolist()]
        [0, 1303, 3305]

    Source: ReNO, the term K of its objective, equation 7.
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InvalidInput(
                f"weight (gamma) must be finite and not negative, got weight={self.weight!r}; "
                "0 leaves the norm free"
            )

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        """The penalty [n] of z [n, ...], at least 0; differentiable."""
        d, ratio = self._ratio(z)
        excess = ratio - 1
        return ((d - 1) / 2 * (excess - torch.log1p(excess))).to(z.dtype)

    def gradient(self, z: Tensor, draw: Draw) -> Tensor:
        """d value.sum() / dz [n, ...]."""
        _, ratio = self._ratio(z)
        factor = (1 - 1 / ratio).to(z.dtype)
        return factor.view(-1, *[1] * (z.ndim - 1)) * z.detach()

    @torch.no_grad()
    def value_and_gradient(self, z: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Both in closed form, without a graph."""
        return self.value(z, draw), self.gradient(z, draw)

    def _ratio(self, z: Tensor) -> tuple[int, Tensor]:
        """d, and |z|^2 / (d - 1) [n] in float64: the penalty is a small difference of large sums.

        The ratio is 1 where the penalty is 0.
        """
        d = z[0].numel()
        if d < 2:
            raise InvalidInput(f"the norm of a noise needs at least 2 numbers, got {d} a candidate")
        return d, z.double().flatten(1).square().sum(dim=1) / (d - 1)
