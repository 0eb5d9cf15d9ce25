"""Randomness that depends on keys, never on history.

Every number is drawn from a CPU generator keyed by what it is for, so a result does not depend on
the device, on how candidates are batched, or on where a run was interrupted. The whole state of a
`Stream` is one integer, which is what makes a resume bit-exact.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


def keyed_generator(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by a hash of `keys`: equal keys, equal numbers, on every machine.

    Example:
        >>> a, b = keyed_generator(0, "noise", 3), keyed_generator(0, "noise", 3)
        >>> bool((torch.randn(4, generator=a) == torch.randn(4, generator=b)).all())
        True
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass
class Stream:
    """A sequence of independent generators; the i-th depends on (seed, name, i) alone.

    Spaces take one generator a candidate, so candidate i of a run is the same point whether it was
    asked for alone or in a batch.
    """

    seed: int
    name: str = "candidates"
    position: int = 0

    def next(self) -> torch.Generator:
        """The next generator; advances the position by one."""
        generator = keyed_generator(self.seed, self.name, self.position)
        self.position += 1
        return generator


@dataclass(frozen=True)
class Draw:
    """A round's randomness, common to all of its candidates (common random numbers)."""

    seed: int
    round: int

    def generator(self, name: str = "draw") -> torch.Generator:
        """A fresh generator for one purpose; the same name gives the same numbers again."""
        return keyed_generator(self.seed, name, self.round)


STEADY = Draw(seed=0, round=0)
"""The randomness of what is compared between rounds and runs: always the same."""
