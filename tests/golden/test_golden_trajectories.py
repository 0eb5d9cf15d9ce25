"""What each method finds on the bundled model stays what it was.

The tolerances: processors sum in other orders, about 1e-6 of a number; five guided sampling steps
and as many steps of Adam, which divides by the gradient's size, make about 1e-4 of it in a score
and one grey level of 255 in a mean over 256 pixels. Ten times that is allowed; what a changed
default or a lost term does is larger. `record.py` writes the file anew.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    "golden_record", Path(__file__).with_name("record.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
record: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(record)
KEPT = json.loads(record.FILE.read_text())


def test_the_file_has_every_case() -> None:
    assert set(KEPT) == set(record.CASES), "run tests/golden/record.py"


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_method_finds_what_it_found(name: str) -> None:
    kept, found = KEPT[name], record.course(record.CASES[name])
    size = max(1.0, *map(abs, kept["best_reward"]))
    assert found["best_reward"] == pytest.approx(kept["best_reward"], abs=2e-3 * size)
    assert found["baseline"] == pytest.approx(kept["baseline"], abs=2e-3 * size)
    apart = np.abs(np.array(found["picture"]) - np.array(kept["picture"]))
    assert apart.max() <= 8
