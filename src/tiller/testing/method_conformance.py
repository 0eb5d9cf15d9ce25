"""Conformance of methods: what the command line, the docs and a resume rely on."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from tiller.core.budget import Budget
from tiller.testing.conformance import check_resume


def check_method(method: Any, task: Any, *, budget: Budget | None = None) -> None:
    """All promises of a method, on one small task.

    Its settings are a frozen dataclass with defaults, each documented in the docstring; it can
    cite itself; `build` gives phases whose search can be resumed at every step, and whose best is
    never worse than the run's own unsteered candidate.

    Args:
        method: an instance.
        task: what its `build` takes, on a small model.
        budget: of the runs that are interrupted; 4 steps if not given.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    kind = type(method)
    frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    _require(frozen, f"{kind.__name__} must be a frozen dataclass: add @dataclass(frozen=True)")
    documented = "\n".join(inspect.getdoc(base) or "" for base in kind.__mro__)
    for field in dataclasses.fields(method):
        _require(
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING,
            f"{kind.__name__}.{field.name} has no default; a method must work as it is",
        )
        _require(
            f"{field.name}:" in documented,
            f"{kind.__name__}.{field.name} is not under Attributes in the docstring",
        )
    _require(bool(inspect.getdoc(kind)), f"{kind.__name__} has no docstring")
    _require(isinstance(kind.citation, str), f"{kind.__name__}.citation must be text")
    _require(isinstance(kind.default_budget, Budget), f"{kind.__name__}.default_budget is missing")
    again = kind(**{f.name: getattr(method, f.name) for f in dataclasses.fields(method)})
    _require(again == method, f"{kind.__name__} is not rebuilt by its own fields")

    steps = check_resume(method.build(task), budget or Budget(steps=4))
    _require(len(steps) >= 1, f"{kind.__name__} made no step")
    first = steps[0].evaluation.score[0]
    _require(
        steps[-1].best.score >= float(first),
        f"{kind.__name__} ended below its first candidate; higher is better",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
