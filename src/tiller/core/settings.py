"""Settings from outside: a dataclass from names and values, texts read as a command line has them.

The dataclass's fields are the configuration; nothing else names them.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tiller.core.errors import InvalidInput

T = TypeVar("T")


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def settled(kind: type[T], settings: Mapping[str, Any], name: str) -> T:
    """The dataclass `kind` with `settings` as its fields; texts are converted to a field's type.

    Args:
        kind: a dataclass.
        settings: some of its fields.
        name: what the user calls it.

    Raises:
        InvalidInput: an unknown field, or a value that does not fit.

    Example:
        >>> from tiller.core.budget import Budget
        >>> settled(Budget, {"steps": "30"}, "budget").steps
        30
    """
    hints = get_type_hints(kind)
    fields = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]  # a dataclass
    values = {}
    for key, value in settings.items():
        if key not in fields:
            raise InvalidInput(unknown(f"field of {name}", key, fields))
        values[key] = convert(value, hints[key], f"{name.split()[-1]}.{key}")
    return kind(**values)


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
        kind = KINDS.get(hint, getattr(hint, "__name__", str(hint)))
        raise InvalidInput(f"{where} must be {kind}, got {value!r}") from None
    return value


def unknown(what: str, got: str, known: list[str]) -> str:
    """The message for a name that is not there, with the one that it may have meant."""
    return f"unknown {what} {got!r}; expected one of {', '.join(known)}.{meant(got, known)}"


def meant(got: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not there, empty where no other is near it.

    Example:
        >>> meant("step", ["steps", "images"])
        " Did you mean 'steps'?"
    """
    close = difflib.get_close_matches(got, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
