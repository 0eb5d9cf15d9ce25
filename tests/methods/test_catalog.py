"""Methods by name, and settings read from text."""

from __future__ import annotations

import pytest

from tiller.core.errors import InvalidInput
from tiller.core.settings import convert
from tiller.methods._catalog import available, make_method
from tiller.methods.dno import Dno
from tiller.rewards import make_reward

REWARD = make_reward("brightness")


def test_the_folder_is_the_registry() -> None:
    assert {"raw", "best_of_n", "random", "dno"} <= set(available())


def test_settings_are_read_from_text() -> None:
    name, method = make_method("dno", {"lr": "0.5", "warm_start": "8", "clip_norm": "none"}, REWARD)
    assert (name, method) == ("dno", Dno(lr=0.5, warm_start=8, clip_norm=None))


def test_a_dotted_path_loads_a_third_partys_method() -> None:
    assert make_method("tiller.methods.dno:Dno", {}, REWARD)[1] == Dno()
    for path in ("tiller.methods.dno:Nothing", "no.such.module:Dno", "tiller.core.budget:Budget"):
        with pytest.raises(InvalidInput, match=r"Method|package\.module"):
            make_method(path, {}, REWARD)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [("3", int, 3), ("1e-2", float, 0.01), (2, float, 2.0), ("None", int | None, None)],
)
def test_convert_reads(value: object, hint: object, expected: object) -> None:
    found = convert(value, hint, "field")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [("3.5", int), ("nan", float), ("x", int | None), (True, int), ("maybe", bool), ([3], str)],
)
def test_convert_refuses(value: object, hint: object) -> None:
    with pytest.raises(InvalidInput, match="field must be"):
        convert(value, hint, "field")
