"""What a table says of many runs: means with intervals, and how often one method beats another."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tiller.core.errors import InvalidInput

Statistic = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Estimated:
    """A statistic of a sample, with its interval.

    Attributes:
        value: the statistic.
        low: lower end of the interval.
        high: upper end.
        runs: how many values it was taken over.
    """

    value: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimated(
    values: Sequence[float],
    statistic: Statistic = statistics.fmean,
    *,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Estimated:
    """A statistic with its percentile bootstrap interval (Efron 1979).

    Args:
        values: one a run.
        statistic: of the values; the mean by default.
        groups: what each value belongs to (its prompt, say): runs of one group are drawn together,
            because they are alike, and the interval says what other groups would give.
        level: of the interval.
        draws: bootstrap samples.
        seed: of the samples.

    Raises:
        InvalidInput: no values, or not one group a value.

    Example:
        >>> str(estimated([1.0, 1.0, 1.0]))
        '1.000 [1.000, 1.000]'
    """
    if not values:
        raise InvalidInput("expected at least one value, got none")
    if groups is not None and len(groups) != len(values):
        raise InvalidInput(f"expected a group for each of {len(values)} values, got {len(groups)}")
    members: dict[object, list[float]] = {}
    for i, value in enumerate(values):
        members.setdefault(i if groups is None else groups[i], []).append(value)
    blocks = list(members.values())
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(blocks), (draws, len(blocks)), generator=generator).tolist()
    found = sorted(statistic([v for i in pick for v in blocks[i]]) for pick in picks)
    tail = (1 - level) / 2
    low, high = found[int(tail * draws)], found[min(draws - 1, int((1 - tail) * draws))]
    return Estimated(statistic(values), low, high, len(values))


def wins(mine: Sequence[float], others: Sequence[float]) -> list[float]:
    """1 where mine is higher than the other's value of the same pair, .5 at a tie, 0 else.

    Example:
        >>> wins([2.0, 1.0, 3.0], [1.0, 1.0, 4.0])
        [1.0, 0.5, 0.0]
    """
    pairs = zip(mine, others, strict=True)
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
