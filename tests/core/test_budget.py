"""Budgets bind at the first limit; the meter counts what happened, however it is nested."""

from __future__ import annotations

import time
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiller.core.budget import Budget, Cost, Meter, count, metered
from tiller.core.errors import InvalidInput

COUNTS = ("images", "forwards", "backwards", "recomputes", "reward_calls", "tokens")


@given(
    steps=st.none() | st.integers(1, 10**6),
    images=st.none() | st.integers(1, 10**6),
    seconds=st.none() | st.integers(1, 1000).map(lambda n: n / 8),
)
def test_parse_reads_what_str_writes(
    steps: int | None, images: int | None, seconds: float | None
) -> None:
    if steps is images is seconds is None:
        with pytest.raises(InvalidInput, match="at least one limit"):
            Budget()
        return
    budget = Budget(steps=steps, images=images, seconds=seconds)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    "text",
    ["", "steps", "steps=", "steps=0", "steps=-3", "steps=1.5", "calls=3", "seconds=nan",
     "seconds=inf", "steps=ten", "steps=3;images=4"],
)  # fmt: skip
def test_bad_budgets_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step=3", "Did you mean 'steps'"),
        ("steps=1.5", "must be a whole number"),
        ("seconds=soon", "must be a number"),
        ("steps=3,steps=4", "given twice"),
    ],
)
def test_a_bad_budget_is_told_how_it_should_be(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Budget.parse(text)


def test_spaces_do_not_matter() -> None:
    assert Budget.parse(" steps = 3 , images= 4,") == Budget(steps=3, images=4)


@pytest.mark.parametrize("bad", [True, 1.5, "3"])
def test_bad_numbers_are_refused(bad: object) -> None:
    with pytest.raises(Exception, match=r"steps"):
        Budget(steps=bad)  # type: ignore[arg-type]


def test_a_large_budget_is_written_in_full() -> None:
    assert Budget.parse(str(Budget(forwards=12_345_678))) == Budget(forwards=12_345_678)


def test_the_first_limit_reached_binds() -> None:
    budget = Budget(steps=10, images=5)
    assert budget.reached(Cost(steps=9, images=4)) is None
    assert budget.reached(Cost(steps=9, images=5)) == "budget: images=5"
    assert budget.reached(Cost(steps=10, images=1)) == "budget: steps=10"
    assert budget.fraction(Cost(steps=2, images=4)) == 0.8
    assert budget.fraction(Cost(steps=200)) == 1.0
    assert budget.share(0.25) == Budget(steps=2, images=1)
    assert budget.share(1e-9) == Budget(steps=1, images=1)


def test_costs_add_and_subtract() -> None:
    a = Cost(1, 2, 3, 4, 5, 6, 7, 8.0, peak_memory_bytes=9)
    b = Cost(10, 20, 30, 40, 50, 60, 70, 80.0, peak_memory_bytes=5)
    total = a + b
    assert total == Cost(11, 22, 33, 44, 55, 66, 77, 88.0, peak_memory_bytes=9)
    assert (total - b) == a
    assert total.model_calls == 33 + 44


@given(st.recursive(
    st.integers(0, 5), lambda inner: st.lists(inner, max_size=4), max_leaves=20
))  # fmt: skip
def test_nested_meters_count_everything_once(tree: object) -> None:
    """Numbers are counted, lists are nested blocks: each block's meter holds its own subtree."""

    def total(node: object) -> int:
        return sum(map(total, node)) if isinstance(node, list) else int(node)  # type: ignore[call-overload]

    def play(node: object) -> None:
        if not isinstance(node, list):
            count(forwards=node, images=1)
            return
        with metered() as meter:
            for item in node:
                play(item)
        assert meter.cost.forwards == total(node)

    with metered() as outer:
        play(tree)
    assert outer.cost.forwards == total(tree)


def test_seconds_are_the_clocks_and_not_added_twice() -> None:
    with metered() as outer, metered() as inner:
        time.sleep(0.05)
    assert 0.05 <= inner.cost.seconds <= outer.cost.seconds < inner.cost.seconds + 0.04
    assert outer.cost.peak_memory_bytes > 1_000_000


def test_counting_without_a_meter_does_nothing() -> None:
    count(forwards=3)
    with metered() as meter:
        pass
    assert all(getattr(meter.cost, name) == 0 for name in COUNTS)


def test_a_block_that_raises_is_counted_and_closed() -> None:
    meters: list[Meter] = []

    def fail() -> None:
        with metered() as meter:
            meters.append(meter)
            count(images=2)
            raise ValueError("no")

    with metered() as outer:
        with pytest.raises(ValueError, match="no"):
            fail()
        count(images=1)
    assert meters[0].cost.images == 2
    assert outer.cost.images == 3
    assert {f.name for f in fields(Cost)} >= set(COUNTS)
