"""Frozen text-to-image models, differentiated once."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiller.models.base import Conditioning as Conditioning
    from tiller.models.base import FrozenModel as FrozenModel
    from tiller.models.base import SamplerSettings as SamplerSettings
    from tiller.models.checkpointing import Plan as Plan
    from tiller.models.gradient import Gradient as Gradient
    from tiller.models.loader import load_model as load_model
    from tiller.models.pieces import Choice as Choice
    from tiller.models.pieces import Piece as Piece
    from tiller.models.pieces import Text as Text
    from tiller.models.pieces import Tokens as Tokens
    from tiller.models.trajectory import Hook as Hook
    from tiller.models.trajectory import Trajectory as Trajectory

_HOME = {
    "Conditioning": "base",
    "FrozenModel": "base",
    "SamplerSettings": "base",
    "Plan": "checkpointing",
    "Gradient": "gradient",
    "load_model": "loader",
    "Choice": "pieces",
    "Piece": "pieces",
    "Text": "pieces",
    "Tokens": "pieces",
    "Hook": "trajectory",
    "Trajectory": "trajectory",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name on first use: importing this package loads neither torch nor diffusers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
