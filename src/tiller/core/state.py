"""States as data: dataclasses to a JSON tree plus named tensors, and back, by type hints.

No class name is ever read from a file: the hints of the code that asks decide what is built, so a
file can hold wrong numbers but cannot run anything.
"""

from __future__ import annotations

import dataclasses
import math
import types
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from tiller.core.errors import RunError


@dataclass(frozen=True)
class Packed:
    """A state on its way to or from a file: a JSON tree whose tensors are named in `tensors`."""

    tree: Any
    tensors: dict[str, Tensor]


def pack(value: Any) -> Packed:
    """Split `value` (dataclasses, containers, numbers, strings, tensors) into tree and tensors.

    Example:
        >>> pack({"a": torch.ones(2)}).tree
        {'a': {'tensor': 'a'}}
    """
    tensors: dict[str, Tensor] = {}
    return Packed(_pack(value, "", tensors), tensors)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "value"
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _pack(getattr(value, f.name), _join(path, f.name), tensors)
            for f in dataclasses.fields(value)
            if f.metadata.get("saved", True)
        }
    if isinstance(value, dict):
        return {str(k): _pack(v, _join(path, str(k)), tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item, _join(path, str(i)), tensors) for i, item in enumerate(value)]
    raise TypeError(f"a state cannot hold {type(value).__name__} at {path or 'its root'}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def unpack(hint: Any, packed: Packed) -> Any:
    """Build a value of type `hint` from `packed`.

    Raises:
        RunError: the data does not have the shape that `hint` asks for.
    """
    try:
        return _unpack(hint, packed.tree, packed.tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"the saved state does not fit {getattr(hint, '__name__', hint)}: {error!r}; it was "
            "written by another version or for another method. Start a new run"
        ) from error


def _unpack(hint: Any, tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict) and tree.keys() == {"tensor"}:
        return tensors[tree["tensor"]]
    if isinstance(tree, dict) and tree.keys() == {"float"}:
        return float(tree["float"])
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if tree is None:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _unpack(inner, tree, tensors)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        saved = [f for f in dataclasses.fields(hint) if f.metadata.get("saved", True)]
        return hint(**{f.name: _unpack(hints[f.name], tree[f.name], tensors) for f in saved})
    if origin is dict:
        return {k: _unpack(args[1], v, tensors) for k, v in tree.items()}
    if origin is list:
        return [_unpack(args[0], item, tensors) for item in tree]
    if origin is tuple:
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        kinds = [inner] * len(tree) if inner is not None else list(args)
        return tuple(_unpack(k, item, tensors) for k, item in zip(kinds, tree, strict=True))
    if hint is Any:
        return _untyped(tree, tensors)
    if hint is float and isinstance(tree, int):
        return float(tree)
    if isinstance(hint, type) and not isinstance(tree, hint):
        raise TypeError(f"expected {hint.__name__}, got {tree!r}")
    return tree


def _untyped(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain containers, with their tensors put back."""
    if isinstance(tree, dict):
        if tree.keys() == {"tensor"}:
            return tensors[tree["tensor"]]
        if tree.keys() == {"float"}:
            return float(tree["float"])
        return {k: _untyped(v, tensors) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_untyped(item, tensors) for item in tree]
    return tree


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal bit by bit, tensors included."""
    left, right = pack(a), pack(b)
    return (
        left.tree == right.tree
        and left.tensors.keys() == right.tensors.keys()
        and all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)
    )
