"""Concepts: a new word for a frozen model, learned from a few pictures.

Names are loaded on first use: importing this package loads neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiller.concepts.drawing import draw as draw
    from tiller.concepts.files import write_concept as write_concept
    from tiller.concepts.learn import learn_concept as learn_concept
    from tiller.concepts.learn import resume_concept as resume_concept
    from tiller.concepts.metrics import evaluate as evaluate
    from tiller.concepts.pictures import load_pictures as load_pictures
    from tiller.models.concept_files import read_concept as read_concept
    from tiller.models.concepts import Concept as Concept

_HOME = {
    "Concept": "tiller.models.concepts",
    "draw": "tiller.concepts.drawing",
    "evaluate": "tiller.concepts.metrics",
    "learn_concept": "tiller.concepts.learn",
    "load_pictures": "tiller.concepts.pictures",
    "read_concept": "tiller.models.concept_files",
    "resume_concept": "tiller.concepts.learn",
    "write_concept": "tiller.concepts.files",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
