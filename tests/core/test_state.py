"""States survive a file bit by bit, and a file can hold wrong numbers but run nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiller.core.errors import RunError
from tiller.core.state import Packed, pack, same, unpack
from tiller.testing.conformance import through_json

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    special = draw(st.sampled_from([None, math.nan, math.inf, -0.0]))
    if special is not None and numbers.numel():
        numbers.view(-1)[0] = special
    dtype = draw(st.sampled_from(DTYPES))
    if not dtype.is_floating_point:
        numbers = numbers.nan_to_num(posinf=9.0)
    return numbers.to(dtype)


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
KEYS = st.one_of(st.sampled_from(["tensor", "float", "plain", "a", "a.b", "", "0"]), st.text())
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, st.text(), tensors())
TREES = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(KEYS, x, max_size=3), max_leaves=8
)


@dataclass(frozen=True)
class Inner:
    tensor: Tensor | None  # named like a marker, on purpose
    pair: tuple[int, str]


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    many: tuple[Tensor, ...]
    table: dict[str, Tensor]
    rows: list[float]
    anything: Any
    count: int
    flag: bool
    cache: Any = field(default=None, metadata={"saved": False}, compare=False)


@dataclass(frozen=True)
class Single:
    float: str


OUTERS = st.builds(
    Outer,
    inner=st.none() | st.builds(Inner, st.none() | tensors(), st.tuples(st.integers(), st.text())),
    many=st.lists(tensors(), max_size=3).map(tuple),
    table=st.dictionaries(KEYS, tensors(), max_size=3),
    rows=st.lists(FLOATS, max_size=3),
    anything=TREES,
    count=st.integers(),
    flag=st.booleans(),
    cache=st.just("not saved"),
)


@settings(deadline=None)
@given(OUTERS)
def test_a_dataclass_comes_back_bit_by_bit(value: Outer) -> None:
    back = unpack(Outer, through_json(pack(value)))
    assert same(back, value)
    assert type(back.many) is tuple
    assert back.cache is None
    assert type(back.count) is int
    assert isinstance(back.inner, Inner) == isinstance(value.inner, Inner)


@settings(deadline=None)
@given(TREES)
def test_untyped_trees_come_back_bit_by_bit(value: Any) -> None:
    assert same(unpack(Any, through_json(pack(value))), value)


def test_fields_named_like_markers() -> None:
    single = Single("x")
    assert unpack(Single, through_json(pack(single))) == single
    table = {"tensor": torch.ones(2)}
    assert same(unpack(dict[str, Tensor], through_json(pack(table))), table)


def test_names_of_tensors_do_not_collide() -> None:
    value = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}
    assert same(unpack(Any, through_json(pack(value))), value)


def test_what_is_packed_is_a_copy() -> None:
    z = torch.zeros(3)
    packed = pack({"z": z})
    z += 1
    assert packed.tensors["z"].sum() == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (torch.zeros(1), -torch.zeros(1)),
        (torch.zeros(1), torch.zeros(1).double()),
        (torch.zeros(2), torch.zeros(1, 2)),
        ({"a": 1}, {"b": 1}),
        ([torch.zeros(1)], [0.0]),
    ],
)
def test_same_sees_every_bit(a: Any, b: Any) -> None:
    assert same(a, a)
    assert not same(a, b)


def test_nan_is_the_same_as_itself() -> None:
    assert same(torch.tensor([math.nan]), torch.tensor([math.nan]))
    assert same(math.nan, math.nan)


@pytest.mark.parametrize("value", [{1, 2}, object(), {"a": {1: 2}}, b"bytes", Outer])
def test_what_cannot_be_saved_is_refused_by_place(value: Any) -> None:
    with pytest.raises(TypeError, match="a state"):
        pack({"here": value} if not isinstance(value, dict) else value)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [],
        {},
        "text",
        {"tensor": "missing", "pair": [1, "a"]},
        {"tensor": {"tensor": "missing"}, "pair": [1, "a"]},
        {"tensor": None, "pair": [1]},
        {"tensor": None, "pair": ["a", 1]},
    ],
)
def test_a_file_that_does_not_fit_is_refused(tree: Any) -> None:
    packed = Packed(tree, {"there": torch.ones(1)})
    with pytest.raises(RunError, match=r"does not fit Inner.*Start a new run"):
        unpack(Inner, packed)


def test_a_number_that_is_a_tensor_is_refused() -> None:
    with pytest.raises(RunError, match="expected int"):
        unpack(dict[str, int], Packed({"a": {"tensor": "t"}}, {"t": torch.ones(1)}))
