"""The examples in the docstrings run as they stand, and asking loads nothing heavy."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import tiller.llm

MODULES = [
    *(f"tiller.llm.{info.name}" for info in pkgutil.iter_modules(tiller.llm.__path__)),
    "tiller.testing.fake_server",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_importing_loads_neither_torch_nor_the_sdk() -> None:
    script = (
        "import sys, tiller.llm\n"
        "from tiller.llm import OpenAIChat\n"
        "OpenAIChat('m', 'http://127.0.0.1:1/v1')\n"
        "print([name for name in ('torch', 'openai') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
