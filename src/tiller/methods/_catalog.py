"""Methods by name: the folder's listing, a dotted path to somebody else's, or `auto`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from tiller.core.discovery import discover
from tiller.core.errors import InvalidInput
from tiller.methods.base import Method
from tiller.rewards.base import Reward


def available() -> dict[str, type[Method]]:
    """Every method found in this folder, by its command line name."""
    return discover("tiller.methods", Method)  # type: ignore[type-abstract]


def make_method(
    name: str, settings: Mapping[str, Any], reward: Reward | None = None
) -> tuple[str, Method]:
    """The method called `name` with `settings`, and its name (that of the choice for `auto`).

    Args:
        name: a name of `available()`, `auto`, or `package.module:Class` for a third party's.
        settings: its fields; strings (from a command line) are converted to the field's type.
        reward: needed by `auto`, which picks by what the reward allows.

    Raises:
        InvalidInput: unknown name or field, or a value that does not fit.
    """
    if name == "auto" and reward is not None:
        name = choose(reward)
    kind = _third_party(name) if ":" in name else available().get(name)
    if kind is None:
        raise InvalidInput(_unknown("method", name, ["auto", *available()]))
    hints = get_type_hints(kind)
    fields = [f.name for f in dataclasses.fields(kind)]
    values = {}
    for key, value in settings.items():
        if key not in fields:
            raise InvalidInput(_unknown(f"field of method {name}", key, fields))
        values[key] = convert(value, hints[key], f"{name}.{key}")
    return name, kind(**values)


def choose(reward: Reward) -> str:
    """`auto`: the ascent of the noise, which fits every reward.

    `dno` takes the gradient of a reward that has one, and compares scores (hybrid 2) elsewhere.
    """
    return "dno"


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, reading strings as a command line gives them.

    Raises:
        InvalidInput: it cannot be read so.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        (hint,) = (arg for arg in args if arg is not type(None))
    try:
        if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if hint is bool and isinstance(value, str):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if isinstance(value, bool) and hint is not bool:
            raise ValueError
        if hint in (int, float):
            number = hint(value)
            if number != float(value) or number != number:
                raise ValueError
            return number
        if isinstance(hint, type) and not isinstance(value, hint):
            raise ValueError
    except (KeyError, ValueError, TypeError, OverflowError):
        kind = getattr(hint, "__name__", str(hint))
        raise InvalidInput(f"{where} must be {kind}, got {value!r}") from None
    return value


def _third_party(path: str) -> type[Method]:
    module, _, attribute = path.partition(":")
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it, and an installed command has not
        sys.path.append(str(Path.cwd()))
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(
            f"expected a method as package.module:Class, got {path!r}: {error}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise InvalidInput(f"{path} must be a subclass of tiller.methods.base.Method, got {kind!r}")
    return kind


def _unknown(what: str, got: str, known: list[str]) -> str:
    close = difflib.get_close_matches(got, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {got!r}; expected one of {', '.join(known)}.{hint}"
