"""Candidates of a discrete space that were not tried yet; shared by `random` and `evolution`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from tiller.core.rng import Stream
from tiller.core.space import Discrete

Candidate = tuple[int, ...]
Known = tuple[tuple[Candidate, float], ...]
"""Candidates that were scored before a search, with their scores."""

PROPOSALS = 50  # tried before the space is scanned: few where most is unseen
SCANNED = 2000  # candidates beyond those tried that a scan looks at, in spaces larger than that


class Unseen:
    """Hands out candidates of a space that were not tried, each once, and only allowed ones.

    They are handed out as their space's canonical candidates, so that two ways of saying the same
    count as one.

    Args:
        space: what is searched.
        tried: [k, positions] canonical candidates that are not handed out.
    """

    def __init__(self, space: Discrete[Any], tried: Tensor) -> None:
        self.space = space
        self.seen = set(rows(tried))

    def sampled(self, n: int, rng: Stream) -> list[Candidate]:
        """Up to `n` candidates from the space's own samples, fewer where fewer are left."""
        wanted = min(n, self.space.size - len(self.seen))
        found: list[Candidate] = []
        misses = 0
        while len(found) < wanted and misses < PROPOSALS:
            for sample in rows(self.space.sample(wanted - len(found), rng)):
                fresh = self._fresh(sample)
                misses = misses + 1 if fresh is None else 0
                if fresh is not None:
                    found.append(fresh)
        while len(found) < wanted:
            fresh = self.proposed(lambda generator: uniform(self.space.choices, generator), rng)
            if fresh is None:
                break
            found.append(fresh)
        return found

    def proposed(self, propose: Callable[[Generator], Candidate], rng: Stream) -> Candidate | None:
        """The first fresh one of 50 proposals, all drawn from one generator of `rng`.

        After those the first fresh candidate in counting order from a random one, then from the
        first; None where the scan finds none.
        """
        if len(self.seen) >= self.space.size:
            return None
        generator = rng.next()
        for _ in range(PROPOSALS):
            fresh = self._fresh(propose(generator))
            if fresh is not None:
                return fresh
        found = self._scan(uniform(self.space.choices, generator))
        return self._scan(self._first()) if found is None else found

    def left(self) -> bool:
        """Whether a candidate is left, as far as a scan from the first one sees."""
        found = self._scan(self._first())
        self.seen.discard(found or ())
        return found is not None

    def _fresh(self, proposal: Candidate) -> Candidate | None:
        """What stands for the proposal, if it may be tried and was not; it counts as tried now."""
        if proposal in self.seen:
            return None
        z = self.space.canonical(tensor([proposal], len(proposal)))
        (candidate,) = rows(z)
        if candidate in self.seen or not bool(self.space.allows(z)[0]):
            return None
        self.seen.add(candidate)
        return candidate

    def _first(self) -> Candidate:
        return (0,) * len(self.space.choices)

    def _scan(self, start: Candidate) -> Candidate | None:
        """The first fresh candidate in counting order from `start`.

        Where all candidates are allowed and different, one is at most len(seen) + 1 steps away, so
        it is found in spaces of any size.
        """
        steps = min(self.space.size, len(self.seen) + SCANNED)
        for candidate in _counted(start, self.space.choices, steps):
            fresh = self._fresh(candidate)
            if fresh is not None:
                return fresh
        return None


def exhausted(space: Discrete[Any], tried: Tensor) -> str | None:
    """Why nothing of the space is left to try after `tried` [k, positions], or None."""
    if space.size == 1 and len(tried):
        return "nothing to search: the space has one candidate"
    if len(tried) >= space.size:
        return f"all {space.size} candidates tried"
    if Unseen(space, tried).left():
        return None
    return f"all {len(tried)} candidates tried that are allowed and different"


def uniform(choices: Sequence[int], generator: Generator) -> Candidate:
    """One option a position, each equally likely."""
    limits = torch.tensor(choices)
    draws = torch.rand(len(choices), generator=generator, dtype=torch.float64)
    return tuple((draws * limits).long().clamp_(max=limits - 1).tolist())


def integer(limit: int, generator: Generator) -> int:
    """A whole number from 0 to limit - 1, each equally likely."""
    return int(torch.randint(limit, (), generator=generator))


def _counted(start: Candidate, choices: Sequence[int], steps: int) -> Iterator[Candidate]:
    """`steps` candidates in counting order from `start`, the first after the last."""
    digits = list(start)
    for _ in range(steps):
        yield tuple(digits)
        for j in reversed(range(len(digits))):
            digits[j] += 1
            if digits[j] < choices[j]:
                break
            digits[j] = 0


def rows(z: Tensor) -> list[Candidate]:
    """The candidates z [n, positions] as tuples."""
    return [tuple(row) for row in z.tolist()]


def tensor(candidates: Sequence[Candidate], positions: int) -> Tensor:
    """Candidates as int64 [n, positions]."""
    return torch.tensor(candidates, dtype=torch.int64).reshape(len(candidates), positions)


def known_tensors(known: Known, positions: int) -> tuple[Tensor, Tensor]:
    """Candidates [k, positions] and scores [k] float64, best first, the older of equals first."""
    order = sorted(known, key=lambda one: -one[1])
    scores = torch.tensor([score for _, score in order], dtype=torch.float64)
    return tensor([candidate for candidate, _ in order], positions), scores
