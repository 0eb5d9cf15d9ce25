"""States as data: dataclasses to a JSON tree plus named tensors, and back, by type hints.

No class name is ever read from a file: the hints of the code that asks decide what is built, so a
file can hold wrong numbers but cannot run anything.
"""

from __future__ import annotations

import dataclasses
import json
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


_MARKERS = ({"tensor"}, {"float"}, {"plain"})  # what a tree's one-key dicts may mean


def pack(value: Any) -> Packed:
    """Split `value` (dataclasses, containers, numbers, strings, tensors) into tree and tensors.

    The tensors are copies, so that what is packed stays as it was.

    Example:
        >>> pack({"a": torch.ones(2)}).tree
        {'a': {'tensor': 'a'}}
    """
    tensors: dict[str, Tensor] = {}
    return Packed(_pack(value, "", tensors), tensors)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "value"
        while name in tensors:  # {"a": {"b": t}, "a.b": u} must not collide
            name += "'"
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _marked(
            {
                f.name: _pack(getattr(value, f.name), _join(path, f.name), tensors)
                for f in dataclasses.fields(value)
                if f.metadata.get("saved", True)
            }
        )
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"a state's dicts need str keys, got {key!r} at {path or 'its root'}"
                )
        return _marked({k: _pack(v, _join(path, k), tensors) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return [_pack(item, _join(path, str(i)), tensors) for i, item in enumerate(value)]
    raise TypeError(f"a state cannot hold {type(value).__name__} at {path or 'its root'}")


def _marked(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree`, wrapped where it would read as a marker."""
    return {"plain": tree} if tree.keys() in _MARKERS else tree


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def unpack(hint: Any, packed: Packed) -> Any:
    """Build a value of type `hint` from `packed`.

    Raises:
        RunError: the data does not have the shape that `hint` asks for.
    """
    try:
        return _unpack(hint, packed.tree, packed.tensors)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"the saved state does not fit {getattr(hint, '__name__', hint)}: {error!r}; it was "
            "written by another version or for another method. Start a new run"
        ) from error


def _unpack(hint: Any, tree: Any, tensors: dict[str, Tensor]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if tree is None:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _unpack(inner, tree, tensors)
    if isinstance(tree, dict) and tree.keys() in _MARKERS:
        ((marker, tree),) = tree.items()
        if marker == "tensor":
            if hint in (bool, int, float, str):
                raise TypeError(f"expected {hint.__name__}, got the tensor {tree!r}")
            return tensors[tree]
        if marker == "float":
            return float(tree)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        saved = [f for f in dataclasses.fields(hint) if f.metadata.get("saved", True)]
        return hint(**{f.name: _unpack(hints[f.name], tree[f.name], tensors) for f in saved})
    if origin is tuple:
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        kinds = [inner] * len(tree) if inner is not None else list(args)
        return tuple(_unpack(k, item, tensors) for k, item in zip(kinds, tree, strict=True))
    if isinstance(tree, dict) and (origin is dict or hint in (Any, dict)):
        return {k: _unpack(args[1] if args else Any, v, tensors) for k, v in tree.items()}
    if isinstance(tree, list) and (origin is list or hint in (Any, list)):
        return [_unpack(args[0] if args else Any, item, tensors) for item in tree]
    if hint is float and isinstance(tree, int):
        return float(tree)
    kind = origin or hint
    if hint is not Any and isinstance(kind, type) and not isinstance(tree, kind):
        raise TypeError(f"expected {kind.__name__}, got {tree!r}")
    return tree


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal bit by bit: kinds of numbers, signs of zeros and NaNs too."""
    left, right = pack(a), pack(b)
    return (
        json.dumps(left.tree, sort_keys=True) == json.dumps(right.tree, sort_keys=True)
        and left.tensors.keys() == right.tensors.keys()
        and all(_same_bits(left.tensors[name], right.tensors[name]) for name in left.tensors)
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
