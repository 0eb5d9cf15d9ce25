"""A file is an algorithm: its name is the class's name to users."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiller.core.discovery import discover
from tiller.core.errors import InvalidInput
from tiller.core.solver import Solver

SOURCE = """
from dataclasses import dataclass
from tiller.solvers.best_of_n import BestOfN

@dataclass(frozen=True)
class {name}(BestOfN):
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "their_solvers"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("their_solvers")]:
        del sys.modules[name]


def test_one_class_a_file_by_the_files_name(package: Path) -> None:
    (package / "swarm.py").write_text(SOURCE.format(name="ParticleSwarm"))
    (package / "tools.py").write_text("from tiller.solvers.best_of_n import BestOfN\nx = 1\n")
    (package / "_hidden.py").write_text("raise RuntimeError('imported')\n")
    (package / "base.py").write_text("raise RuntimeError('imported')\n")
    found = discover("their_solvers", Solver)  # type: ignore[type-abstract]
    assert list(found) == ["swarm"]
    assert found["swarm"].__name__ == "ParticleSwarm"


def test_two_classes_in_one_file_are_refused(package: Path) -> None:
    (package / "both.py").write_text(SOURCE.format(name="A") + SOURCE.format(name="B"))
    with pytest.raises(InvalidInput, match=r"both must define one Solver, got A, B.*underscore"):
        discover("their_solvers", Solver)  # type: ignore[type-abstract]


def test_a_module_is_no_package() -> None:
    with pytest.raises(InvalidInput, match="expected a package"):
        discover("tiller.core.rng", Solver)  # type: ignore[type-abstract]


def test_ours() -> None:
    found = discover("tiller.solvers", Solver)  # type: ignore[type-abstract]
    assert {"best_of_n", "random", "gradient", "cma", "evolution"} <= set(found)
    assert list(found) == sorted(found)
