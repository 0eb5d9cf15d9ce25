"""Tiller: search what goes into a frozen text-to-image model, and never touch a weight.

    model = tiller.load_model("emoji")
    result = tiller.steer(model, "a black duck on a blue background", reward="clip")
    result.best.image.save("duck.png")

Names are imported on first use, so that `import tiller` loads neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Best": "tiller.core.search",
    "Budget": "tiller.core.budget",
    "Cost": "tiller.core.budget",
    "InvalidInput": "tiller.core.errors",
    "Phase": "tiller.core.search",
    "Problem": "tiller.core.search",
    "Result": "tiller.api",
    "Step": "tiller.core.search",
    "TillerError": "tiller.core.errors",
    "export": "tiller.runs.export",
    "load_model": "tiller.models",
    "open_run": "tiller.api",
    "resume": "tiller.api",
    "search": "tiller.core.search",
    "search_phases": "tiller.core.search",
    "steer": "tiller.api",
    "steer_many": "tiller.api",
    "write_report": "tiller.runs.report",
}
_MODULES = ("concepts", "rewards", "methods", "solvers", "spaces")

__all__ = ["__version__", *_WHERE, *_MODULES]  # the tables above are the façade

if TYPE_CHECKING:
    from tiller.api import Result as Result
    from tiller.api import open_run as open_run
    from tiller.api import resume as resume
    from tiller.api import steer as steer
    from tiller.api import steer_many as steer_many
    from tiller.core.budget import Budget as Budget
    from tiller.core.budget import Cost as Cost
    from tiller.core.errors import InvalidInput as InvalidInput
    from tiller.core.errors import TillerError as TillerError
    from tiller.core.search import Best as Best
    from tiller.core.search import Phase as Phase
    from tiller.core.search import Problem as Problem
    from tiller.core.search import Step as Step
    from tiller.core.search import search as search
    from tiller.core.search import search_phases as search_phases
    from tiller.models import load_model as load_model
    from tiller.runs.export import export as export
    from tiller.runs.report import write_report as write_report


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"tiller.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'tiller' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
