"""Products: several spaces searched together as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.rng import Stream
from tiller.core.shapes import Choices, Flat
from tiller.core.space import Continuous, Discrete, Space


def product(*spaces: Space[Any]) -> Space[tuple[Any, ...]]:
    """The space of tuples (x_1, ..., x_k), x_i of the i-th space.

    Spaces of real numbers make one flat Continuous space [n, sum of dimensions], spaces of
    choices one Discrete space with all their positions.

    Raises:
        InvalidInput: no space is given.
        Incompatible: real numbers and choices are mixed.

    Example:
        >>> from tiller.core.rng import Stream
        >>> from tiller.testing.fakes import FakeBox
        >>> pair = product(FakeBox((2, 3)), FakeBox((4,)))
        >>> z = pair.sample(5, Stream(0))
        >>> [list(x.shape) for x in pair.decode(z)]
        [[5, 2, 3], [5, 4]]
    """
    if not spaces:
        raise InvalidInput("a product needs at least one space, got none")
    continuous = [space for space in spaces if isinstance(space, Continuous)]
    discrete = [space for space in spaces if isinstance(space, Discrete)]
    if len(continuous) == len(spaces):
        return ContinuousProduct(continuous)
    if len(discrete) == len(spaces):
        return DiscreteProduct(discrete)
    kinds = ", ".join(type(space).__name__ for space in spaces)
    raise Incompatible(
        f"a product's spaces must be all Continuous or all Discrete, got {kinds}; search them in "
        "turn, as phases, or relax the discrete ones"
    )


class ContinuousProduct(Continuous[tuple[Any, ...]]):
    """Spaces of real numbers side by side: z [n, d_1 + ... + d_k]."""

    def __init__(self, spaces: Sequence[Continuous[Any]]) -> None:
        self.spaces = tuple(spaces)

    @property
    def shape(self) -> tuple[int, ...]:
        """[d_1 + ... + d_k]."""
        return (sum(space.dimension for space in self.spaces),)

    def sample(self, n: int, rng: Stream) -> Flat:
        """`n` points, each part drawn as its own space draws it."""
        parts = [part.flatten(1) for part in _sample_each(self.spaces, n, rng)]
        return torch.cat(parts, dim=1)

    def decode(self, z: Flat) -> tuple[Any, ...]:
        """Each part's own decoding."""
        pairs = zip(self.spaces, self.split(z), strict=True)
        return tuple(space.decode(part) for space, part in pairs)

    def project(self, z: Flat) -> Flat:
        """Each part's own projection."""
        pairs = zip(self.spaces, self.split(z), strict=True)
        return torch.cat([space.project(part).flatten(1) for space, part in pairs], dim=1)

    def notes(self, z: Tensor, score: Tensor) -> dict[str, Any]:
        """The parts' own."""
        pairs = zip(self.spaces, self.split(z), strict=True)
        return {k: v for space, part in pairs for k, v in space.notes(part, score).items()}

    def split(self, z: Tensor) -> list[Tensor]:
        """z [n, d] as one [n, *shape] a space."""
        parts = torch.split(z, [space.dimension for space in self.spaces], dim=1)
        pairs = zip(self.spaces, parts, strict=True)
        return [part.reshape(len(z), *space.shape) for space, part in pairs]

    def describe(self) -> str:
        """The parts."""
        return " x ".join(f"({space.describe()})" for space in self.spaces)


class DiscreteProduct(Discrete[tuple[Any, ...]]):
    """Spaces of choices side by side: z [n, positions of all]."""

    def __init__(self, spaces: Sequence[Discrete[Any]]) -> None:
        self.spaces = tuple(spaces)

    @property
    def choices(self) -> tuple[int, ...]:
        """All spaces' choices, in order."""
        return tuple(limit for space in self.spaces for limit in space.choices)

    def sample(self, n: int, rng: Stream) -> Choices:
        """`n` points, each part drawn as its own space draws it."""
        return torch.cat(_sample_each(self.spaces, n, rng), dim=1)

    def decode(self, z: Choices) -> tuple[Any, ...]:
        """Each part's own decoding."""
        return tuple(space.decode(part) for space, part in self._pairs(z))

    def canonical(self, z: Choices) -> Choices:
        """Each part's own representative."""
        return torch.cat([space.canonical(part) for space, part in self._pairs(z)], dim=1)

    def allows(self, z: Choices) -> Tensor:
        """What all parts allow."""
        return torch.stack([space.allows(part) for space, part in self._pairs(z)]).all(dim=0)

    def notes(self, z: Choices, score: Tensor) -> dict[str, Any]:
        """The parts' own."""
        pairs = self._pairs(z)
        return {k: v for space, part in pairs for k, v in space.notes(part, score).items()}

    def _pairs(self, z: Tensor) -> list[tuple[Discrete[Any], Tensor]]:
        """Each space with its positions of z [n, positions]."""
        parts = torch.split(z, [len(space.choices) for space in self.spaces], dim=1)
        return list(zip(self.spaces, parts, strict=True))

    def describe(self) -> str:
        """The parts."""
        return " x ".join(f"({space.describe()})" for space in self.spaces)


def _sample_each(spaces: Sequence[Space[Any]], n: int, rng: Stream) -> list[Tensor]:
    """`n` samples of each space, from one stream a space, all standing where `rng` stands.

    So a candidate takes one generator of `rng`, as in any space, and does not depend on a batch.
    """
    parts = [
        space.sample(n, Stream(rng.seed, f"{rng.name}, part {k}", rng.position))
        for k, space in enumerate(spaces)
    ]
    rng.position += n
    return parts
