"""Candidates of a discrete space that were not tried yet; shared by `random` and `evolution`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Generator, Tensor

Candidate = tuple[int, ...]

PROPOSALS = 50  # tried before the space is scanned: few where most is unseen


def uniform(choices: Sequence[int], generator: Generator) -> Candidate:
    """One option a position, each equally likely."""
    limits = torch.tensor(choices)
    draws = torch.rand(len(choices), generator=generator, dtype=torch.float64)
    return tuple((draws * limits).long().clamp_(max=limits - 1).tolist())


def integer(limit: int, generator: Generator) -> int:
    """A whole number from 0 to limit - 1, each equally likely."""
    return int(torch.randint(limit, (), generator=generator))


def unseen(
    choices: Sequence[int],
    seen: AbstractSet[Candidate],
    propose: Callable[[Generator], Candidate],
    generator: Generator,
) -> Candidate:
    """A candidate outside `seen`, which must not hold the whole space.

    Takes the first fresh proposal of 50; after those, the first fresh candidate in counting order
    from a random one, at most len(seen) + 1 steps away. So it ends on spaces of any size.
    """
    for _ in range(PROPOSALS):
        candidate = propose(generator)
        if candidate not in seen:
            return candidate
    candidate = uniform(choices, generator)
    for _ in range(len(seen) + 1):
        if candidate not in seen:
            return candidate
        candidate = _next(candidate, choices)
    raise AssertionError("unseen() was asked for more candidates than the space has")


def _next(candidate: Candidate, choices: Sequence[int]) -> Candidate:
    """The next candidate in counting order, the first after the last."""
    digits = list(candidate)
    for j in reversed(range(len(digits))):
        digits[j] += 1
        if digits[j] < choices[j]:
            break
        digits[j] = 0
    return tuple(digits)


def rows(z: Tensor) -> list[Candidate]:
    """The candidates z [n, positions] as tuples."""
    return [tuple(row) for row in z.tolist()]


def tensor(candidates: Sequence[Candidate], positions: int) -> Tensor:
    """Candidates as int64 [n, positions]."""
    return torch.tensor(candidates, dtype=torch.int64).reshape(len(candidates), positions)
