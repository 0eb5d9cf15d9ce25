"""Methods by name: the folder's listing, a dotted path to somebody else's, or `auto`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiller.core.discovery import discover
from tiller.core.errors import InvalidInput
from tiller.core.settings import settled, unknown
from tiller.methods.base import Method
from tiller.rewards.base import Reward


def available() -> dict[str, type[Method]]:
    """Every method found in this folder, by its command line name."""
    return discover("tiller.methods", Method)  # type: ignore[type-abstract]  # what it finds is concrete


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
    if not isinstance(name, str):
        raise InvalidInput(
            f"method must be a name, or package.module:Class for one's own, got {name!r}; its "
            "fields are arguments beside it"
        )
    if name == "auto" and reward is not None:
        name = choose(reward)
    kind = _third_party(name) if ":" in name else available().get(name)
    if kind is None:
        raise InvalidInput(unknown("method", name, ["auto", *available()]))
    return name, settled(kind, settings, f"method {name}")


def choose(reward: Reward) -> str:
    """`auto`: the ascent of the noise, which fits every reward.

    `dno` takes the gradient of a reward that has one, and compares scores (hybrid 2) elsewhere.
    """
    return "dno"


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
