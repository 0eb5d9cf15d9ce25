"""Weights as a space: a low-rank adapter's, or all of a network's, beside inputs that stay.

Source: Hu et al. 2021, "LoRA: low-rank adaptation of large language models", equation 3: a frozen
matrix W becomes W + B A, with A [r, in] random and B [out, r] zero at the start, so that a search
begins at the frozen model itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.space import Continuous
from tiller.models.inputs import Inputs

PREFIX = "unet."  # what diffusers' LoRA files put before the names of a UNet's tensors


@dataclass(frozen=True)
class Layout:
    """How one flat vector [d] is cut into a network's tensors.

    Attributes:
        names: of the tensors in the network, as diffusers' files have them after `PREFIX`.
        shapes: theirs, in the same order.

    Example:
        >>> layout = Layout(("a.lora_A.weight", "a.lora_B.weight"), ((2, 3), (3, 2)))
        >>> [list(tensor.shape) for tensor in layout.cut(torch.zeros(layout.size)).values()]
        [[2, 3], [3, 2]]
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """d, how many numbers there are in all."""
        return sum(math.prod(shape) for shape in self.shapes)

    def cut(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors of flat [..., d] by name; views, so that a gradient goes back to it."""
        parts = torch.split(flat, [math.prod(shape) for shape in self.shapes], dim=-1)
        return {
            name: part.view(*part.shape[:-1], *shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def flat(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The vector [d] on the CPU that `cut` cuts into these tensors."""
        return torch.cat([tensors[n].detach().to("cpu", dtype).flatten() for n in self.names])


@dataclass(frozen=True, kw_only=True)
class Adapted(Inputs):
    """What a denoiser that takes weights is fed, for `n` candidates.

    Attributes:
        weights: [n, d] of the changed tensors.
        layout: how they are cut.
    """

    weights: Tensor
    layout: Layout

    def extras(self) -> dict[str, Tensor]:
        """The first candidate's tensors, under the names that diffusers' LoRA files have."""
        cut = self.layout.cut(self.weights[0].detach())
        return {PREFIX + name: tensor for name, tensor in cut.items()}


class Lora(Continuous[Adapted]):
    """The weights of an adapter, z [n, d], beside one noise and one conditioning.

    Every candidate starts at the frozen model: A is drawn as peft draws it, uniform in
    +-1/sqrt(in), and B is zero. With `start` all weights are searched, from there.

    Args:
        layout: the tensors.
        inputs: one row, used for every candidate.
        start: [d] where every candidate starts; None for an adapter's own start.
        dtype: of z.

    Raises:
        InvalidInput: `start` does not fit the layout.
    """

    def __init__(
        self,
        layout: Layout,
        inputs: Inputs,
        *,
        start: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if start is not None and start.shape != (layout.size,):
            raise InvalidInput(f"a start must have shape [{layout.size}], got {list(start.shape)}")
        self.layout, self.inputs, self.start, self.dtype = layout, inputs, start, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,)."""
        return (self.layout.size,)

    def sample(self, n: int, rng: Stream) -> Tensor:
        """`n` starts [n, d]; candidate i depends on its own generator alone."""
        return torch.stack([self._sampled(rng.next()) for _ in range(n)])

    def decode(self, z: Tensor) -> Adapted:
        """The weights beside the fixed inputs, one row a candidate."""
        n, noise = len(z), self.inputs.noise
        return Adapted(
            noise.expand(n, *noise.shape[1:]),
            self.inputs.conditioning.expand(n),
            weights=z,
            layout=self.layout,
        )

    def describe(self) -> str:
        """How many numbers, in how many tensors."""
        kind = "adapter" if self.start is None else "all weights"
        return f"{kind}: {self.dimension} numbers in {len(self.layout.names)} tensors"

    def _sampled(self, generator: torch.Generator) -> Tensor:
        if self.start is not None:
            return self.start.to(self.dtype)
        parts = []
        for name, shape in zip(self.layout.names, self.layout.shapes, strict=True):
            part = torch.zeros(shape, dtype=self.dtype)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(part, a=math.sqrt(5), generator=generator)
            parts.append(part.flatten())
        return torch.cat(parts)
