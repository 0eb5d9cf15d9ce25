"""Paths that people give are found, or refused in one line wherever they are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiller.core.errors import InvalidInput
from tiller.core.paths import located


def test_the_home_folder_stands_for_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert located("~/a.png") == tmp_path / "a.png"
    assert located("a.png") == Path("a.png")


@pytest.mark.parametrize(
    ("path", "named"),
    [("~nobody-of-that-name/x", "'~nobody-of-that-name/x'"), ("x" * 5000, f"'{'x' * 59}…'")],
)
def test_what_cannot_be_looked_for_is_named_in_short(path: str, named: str) -> None:
    with pytest.raises(InvalidInput, match="cannot look for") as refused:
        located(path)
    assert named in str(refused.value)
