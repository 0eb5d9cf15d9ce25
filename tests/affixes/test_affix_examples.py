"""The examples in the docstrings of what makes affixes."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "tiller.affixes.plan",
        "tiller.methods._affix_files",
        "tiller.solvers.bayes",
        "tiller.solvers.parts",
        "tiller.spaces._rotations",
        "tiller.spaces.affixes",
    ],
)
def test_examples_run(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert not failed
    assert tried
