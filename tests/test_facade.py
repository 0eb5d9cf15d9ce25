"""The façade: about 20 names, each of them there, and no more than it says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tiller

CONTRACT = ["load_model", "steer", "resume", "open_run", "search", "Budget", "rewards"]


@pytest.mark.parametrize("name", tiller.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(tiller, name) is not None
    assert name in dir(tiller)


def test_the_contracts_names_are_among_them() -> None:
    assert set(CONTRACT) <= set(tiller.__all__)
    assert len(tiller.__all__) <= 30


@pytest.mark.parametrize("name", sorted(tiller._WHERE))
def test_a_name_is_what_its_own_module_defines(name: str) -> None:
    home = importlib.import_module(tiller._WHERE[name])
    assert getattr(tiller, name) is getattr(home, name)


def test_type_checkers_see_the_names_that_there_are() -> None:
    source = Path(tiller.__file__).read_text()
    typed = {
        line.split(" as ")[1] for line in source.splitlines() if " as " in line and "    " in line
    }
    assert typed == set(tiller._WHERE)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tiller' has no attribute 'stear'"):
        tiller.stear  # noqa: B018  # the access is what is tested


def test_a_name_loads_its_own_module_and_not_the_others() -> None:
    code = (
        "import sys, tiller; tiller.Budget(steps=1); tiller.InvalidInput;"
        "print([m for m in ('torch', 'diffusers', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(tiller.__file__).parent / "py.typed").is_file()
