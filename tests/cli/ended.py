"""How a command ended, and the options of a run that takes a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as the one JSON object that it must be."""
        (line,) = self.out.splitlines()
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> str:
        """The one line that says what was wrong; there is no traceback."""
        assert "Traceback" not in self.err + self.out
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


Tiller = Callable[..., Ended]


def small(model: Path, out: Path) -> list[str]:
    """Options of a run that takes a moment."""
    return [
        *("--model", str(model), "--out", str(out), "--set", "num_inference_steps=2"),
        *("--reward", "brightness", "--held-out", "darkness"),
    ]
