"""Intervals cover what they should, and groups make them honest."""

from __future__ import annotations

import statistics

import pytest
import torch

from tiller.core.errors import InvalidInput
from tiller.tasks.statistics import estimated, wins


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(100):
        found = estimated(torch.randn(40, generator=generator).tolist(), seed=seed, draws=400)
        covered += found.low <= 0 <= found.high
    assert 86 <= covered <= 100


def test_runs_of_one_group_count_as_one() -> None:
    """Ten copies of four values say no more than the four."""
    values = [0.0, 1.0, 2.0, 3.0]
    copied = [v for v in values for _ in range(10)]
    groups = [i for i in range(4) for _ in range(10)]
    naive, honest, once = estimated(copied), estimated(copied, groups=groups), estimated(values)
    assert honest.high - honest.low == pytest.approx(once.high - once.low)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)
    assert naive.value == honest.value == once.value == 1.5


def test_any_statistic() -> None:
    assert estimated([3.0, 1.0, 2.0], statistics.median).value == 2.0


def test_pairs_must_be_pairs() -> None:
    assert wins([1.0, 2.0], [2.0, 2.0]) == [0.0, 0.5]
    with pytest.raises(ValueError, match="argument 2"):
        wins([1.0], [1.0, 2.0])


def test_refuses_nothing() -> None:
    with pytest.raises(InvalidInput, match="at least one value"):
        estimated([])
    with pytest.raises(InvalidInput, match="a group for each"):
        estimated([1.0, 2.0], groups=["a"])
