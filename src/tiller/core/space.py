"""Spaces: what may change.

A space holds two views of a candidate: `z`, the tensor that a solver moves, and `x`, what the
objective consumes. `decode` maps the first to the second and is differentiable for a continuous
space, so Gumbel-relaxed words, rotations of an embedding or DARTS' mixtures are each a `decode`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream

X = TypeVar("X", covariant=True)


class Space(ABC, Generic[X]):
    """What may change. Subclass `Continuous` or `Discrete`, not this class."""

    @abstractmethod
    def sample(self, n: int, rng: Stream) -> Tensor:
        """`n` points z [n, ...], each drawn from one generator of `rng`."""

    @abstractmethod
    def decode(self, z: Tensor) -> X:
        """What the objective consumes, for the candidates z [n, ...]."""

    def describe(self) -> str:
        """For people: what moves, and how large the space is."""
        return type(self).__name__

    def notes(self, z: Tensor, score: Tensor) -> dict[str, Any]:
        """What a journal should say of a round's candidates z [n, ...] and scores [n]: plain data.

        Empty by default; a space whose candidates can be read by people names them here.
        """
        return {}


class Continuous(Space[X]):
    """A space of real tensors: z is floating point, [n, *shape]."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one candidate."""

    def project(self, z: Tensor) -> Tensor:
        """The nearest allowed z [n, *shape]; called after each update (clamp, retraction)."""
        return z

    @property
    def dimension(self) -> int:
        """How many numbers one candidate has."""
        return math.prod(self.shape)

    def describe(self) -> str:
        """The class, its shape and its number of dimensions."""
        return f"{type(self).__name__}: {self.dimension} numbers, shape {list(self.shape)}"


class Discrete(Space[X]):
    """A space of choices: z is int64, [n, positions], with 0 <= z[:, j] < choices[j].

    Several z may decode to the same thing, and some may be forbidden: solvers that never try a
    candidate twice go by `canonical`, and propose only what `allows` lets through.
    """

    @property
    @abstractmethod
    def choices(self) -> tuple[int, ...]:
        """The number of options at each position."""

    def sample(self, n: int, rng: Stream) -> Tensor:
        """`n` uniform draws [n, positions]."""
        limits = torch.tensor(self.choices)
        rows = [
            torch.rand(len(self.choices), generator=rng.next(), dtype=torch.float64)
            for _ in range(n)
        ]
        return (torch.stack(rows) * limits).long().clamp_(max=limits - 1)

    def canonical(self, z: Tensor) -> Tensor:
        """The candidates [n, positions] that stand for all that decode to the same as z's.

        A projection: what it returns, it leaves alone. z itself by default.
        """
        return z

    def allows(self, z: Tensor) -> Tensor:
        """Whether each of z [n, positions] may be tried, [n] bool; all of them by default."""
        return torch.ones(len(z), dtype=torch.bool)

    @property
    def size(self) -> int:
        """The number of candidates z, whether or not they are allowed and different."""
        return math.prod(self.choices)

    def describe(self) -> str:
        """The class, its positions and its number of candidates."""
        return f"{type(self).__name__}: {len(self.choices)} positions, {self.size} candidates"


def starting_at(space: Space[Any], start: Tensor) -> Space[Any]:
    """The same space, whose first samples are the points `start` [k, ...].

    This is how a phase begins where the last one ended, for every solver alike.

    Raises:
        InvalidInput: `start` does not have the space's shape.
    """
    expected = space.shape if isinstance(space, Continuous) else (len(_choices(space)),)
    if start.ndim != len(expected) + 1 or tuple(start.shape[1:]) != tuple(expected):
        raise InvalidInput(
            f"a start must have shape [k, {', '.join(map(str, expected))}], got {list(start.shape)}"
        )
    if isinstance(space, Continuous):
        return _ContinuousFrom(space, start)
    assert isinstance(space, Discrete)
    return _DiscreteFrom(space, start)


def _choices(space: Space[Any]) -> tuple[int, ...]:
    if not isinstance(space, Discrete):
        raise InvalidInput(f"expected a Continuous or Discrete space, got {type(space).__name__}")
    return space.choices


def _sample_from(start: Tensor, inner: Space[Any], n: int, rng: Stream) -> Tensor:
    """The next `n` points: `start` where the stream stands at its beginning, then samples."""
    taken = start[rng.position : rng.position + n]
    for _ in range(len(taken)):
        rng.next()
    rest = n - len(taken)
    return torch.cat([taken, inner.sample(rest, rng)]) if rest else taken.clone()


class _ContinuousFrom(Continuous[Any]):
    def __init__(self, inner: Continuous[Any], start: Tensor) -> None:
        self.inner, self.start = inner, start

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def sample(self, n: int, rng: Stream) -> Tensor:
        return _sample_from(self.start, self.inner, n, rng)

    def decode(self, z: Tensor) -> Any:
        return self.inner.decode(z)

    def project(self, z: Tensor) -> Tensor:
        return self.inner.project(z)

    def describe(self) -> str:
        return f"{self.inner.describe()}, from {len(self.start)} given"

    def notes(self, z: Tensor, score: Tensor) -> dict[str, Any]:
        return self.inner.notes(z, score)


class _DiscreteFrom(Discrete[Any]):
    def __init__(self, inner: Discrete[Any], start: Tensor) -> None:
        self.inner, self.start = inner, start

    @property
    def choices(self) -> tuple[int, ...]:
        return self.inner.choices

    def sample(self, n: int, rng: Stream) -> Tensor:
        return _sample_from(self.start, self.inner, n, rng)

    def decode(self, z: Tensor) -> Any:
        return self.inner.decode(z)

    def canonical(self, z: Tensor) -> Tensor:
        return self.inner.canonical(z)

    def allows(self, z: Tensor) -> Tensor:
        return self.inner.allows(z)

    def describe(self) -> str:
        return f"{self.inner.describe()}, from {len(self.start)} given"

    def notes(self, z: Tensor, score: Tensor) -> dict[str, Any]:
        return self.inner.notes(z, score)
