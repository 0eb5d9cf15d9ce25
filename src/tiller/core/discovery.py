"""Discovery: the folder listing is the registry.

A file that holds one concrete subclass of the wanted base is an algorithm, and the file's name is
its name on the command line, in saved settings and in test ids. Adding a file adds all of them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

from tiller.core.errors import InvalidInput

T = TypeVar("T")


def discover(package: str, base: type[T]) -> dict[str, type[T]]:
    """The concrete subclasses of `base` in `package`, one a file, by the file's name.

    Files called `base` or starting with `_` are not looked into; files without such a class
    (helpers) are passed over. Nothing is imported before the call.

    Args:
        package: dotted name of an importable package, e.g. "tiller.solvers".
        base: the abstract class that an algorithm of this package subclasses.

    Raises:
        InvalidInput: `package` is no package, or a file defines several such classes.

    Example:
        >>> from tiller.core.solver import Solver
        >>> "cma" in discover("tiller.solvers", Solver)
        True
    """
    folder = importlib.import_module(package)
    if not hasattr(folder, "__path__"):
        raise InvalidInput(f"expected a package to look through, got the module {package=}")
    names = sorted(info.name for info in pkgutil.iter_modules(folder.__path__))
    found: dict[str, type[T]] = {}
    for name in names:
        if name == "base" or name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{name}")
        kinds = _concrete(module, base)
        if len(kinds) > 1:
            classes = ", ".join(kind.__name__ for kind in kinds)
            raise InvalidInput(
                f"{package}.{name} must define one {base.__name__}, got {classes}; the file's "
                "name is the class's name to users, so move each to a file of its own, or start "
                "a helper's name with an underscore"
            )
        if kinds:
            found[name] = kinds[0]
    return found


def _concrete(module: ModuleType, base: type[T]) -> list[type[T]]:
    """The public, concrete subclasses of `base` that `module` itself defines."""
    return [
        value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
