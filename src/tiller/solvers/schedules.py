"""Schedules: what the learning rate is multiplied by, a pure function of the step.

Each is a frozen dataclass called with the number of steps done, from 0, and stateless: a resumed
run has nothing to restore.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from tiller.core.errors import InvalidInput


class Schedule(ABC):
    """A factor of the learning rate. Subclasses are frozen dataclasses."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The factor after `step` steps."""


@dataclass(frozen=True)
class Constant(Schedule):
    """1, always."""

    def __call__(self, step: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Exponential(Schedule):
    """factor^floor(step / every): a stair that falls every so many steps.

    Attributes:
        factor: of one stair.
        every: steps on one stair (IPGO: .9 every 10).

    Example:
        >>> Exponential(0.9, 10)(25)
        0.81
    """

    factor: float = 0.9
    every: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1 or self.every < 1:
            raise InvalidInput(
                "expected 0 < factor <= 1 and every >= 1, got "
                f"factor={self.factor!r}, every={self.every!r}"
            )

    def __call__(self, step: int) -> float:
        """factor^floor(step / every)."""
        return self.factor ** (step // self.every)


@dataclass(frozen=True)
class Cosine(Schedule):
    """floor + (1 - floor) (1 + cos(pi min(step / steps, 1))) / 2: from 1 down to `floor`.

    Attributes:
        steps: length of the fall; `floor` after that.
        floor: the last factor.

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.
    """

    steps: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.floor <= 1:
            raise InvalidInput(
                "expected steps >= 1 and 0 <= floor <= 1, got "
                f"steps={self.steps!r}, floor={self.floor!r}"
            )

    def __call__(self, step: int) -> float:
        """The cosine's factor."""
        done = min(step / self.steps, 1.0)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Warmup(Schedule):
    """(step + 1) / steps for the first `steps` steps, then another schedule from its beginning.

    Attributes:
        steps: length of the climb.
        then: what follows.

    Source: Goyal et al. 2017, section 2.2, gradual warmup.
    """

    steps: int
    then: Schedule = Constant()  # frozen, safe to share

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InvalidInput(f"expected a warmup of at least 1 step, got steps={self.steps!r}")

    def __call__(self, step: int) -> float:
        """The line, then `then`."""
        if step < self.steps:
            return (step + 1) / self.steps
        return self.then(step - self.steps)
