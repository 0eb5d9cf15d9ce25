"""The bundled model: a small text-to-image diffusion model that ships with this package.

It draws 64x64 scenes of emoji from captions such as "a black rabbit on a green background". Import
costs nothing here: each name below loads its module when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .captions import Spec, parse, prompts
    from .judge import Judge, Verdict
    from .loaders import load_clip, load_judge, load_preference, preprocess, weights_dir

__all__ = [
    "Judge",
    "Spec",
    "Verdict",
    "load_clip",
    "load_judge",
    "load_preference",
    "parse",
    "preprocess",
    "prompts",
    "weights_dir",
]

_HOME = {
    "Judge": "judge",
    "Spec": "captions",
    "Verdict": "judge",
    "load_clip": "loaders",
    "load_judge": "loaders",
    "load_preference": "loaders",
    "parse": "captions",
    "preprocess": "loaders",
    "prompts": "captions",
    "weights_dir": "loaders",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
