"""`methods`, `rewards`, `models`, `doctor`: what there is, and whether it works here."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiller.commands import AsJson, Name
from tiller.session import quiet_libraries, session
from tiller.terminal import clean, listing, one_line, plain

if TYPE_CHECKING:
    from collections.abc import Callable


def methods(name: Name = None, as_json: AsJson = False) -> None:
    """List the methods, or show one in full."""
    from tiller import listing as there_is

    columns = ["name", "idea", "needs_gradient", "default_budget"]
    more = "gfti and ti, which learn a concept from pictures, are shown by name."
    _list("methods", name, there_is.methods, there_is.method, columns, as_json, more)


def rewards(name: Name = None, as_json: AsJson = False) -> None:
    """List the rewards, or show one in full."""
    from tiller import listing as there_is

    columns = ["name", "idea", "differentiable", "settings"]
    more = "A file's function is a reward too: --reward path/to/file.py:function"
    _list("rewards", name, there_is.rewards, there_is.reward, columns, as_json, more)


def models(name: Name = None, as_json: AsJson = False) -> None:
    """List the models that come along, or show one in full."""
    from tiller import listing as there_is

    columns = ["name", "idea", "installed"]
    more = f"--model also takes {there_is.LOADABLE}."
    _list("models", name, there_is.models, there_is.model, columns, as_json, more)


def doctor(
    model: Annotated[str, typer.Option(help="What the self-test draws with.")] = "emoji",
    as_json: AsJson = False,
) -> None:
    """Say what is installed and where it runs, and try one step.

    The exit code is 0 if all is well, else 1.
    """
    quiet_libraries()
    with session(as_json) as now:
        from tiller.doctor import examine

        checks = []
        for check in examine(model):
            checks.append(check)
            mark = "ok " if check.ok else "BAD"
            line = f"{mark} {check.name:<15}{one_line(check.found)}"
            if not as_json:
                print(line + (f"  ->  {check.remedy}" if check.remedy else ""), flush=True)
        well = all(check.ok for check in checks)
        now.code = 0 if well else 1
        now.answer({"ok": well, "checks": [dataclasses.asdict(check) for check in checks]})


def _list(
    what: str,
    name: str | None,
    every: Callable[[], list[dict[str, Any]]],
    one: Callable[[str], dict[str, Any]],
    columns: list[str],
    as_json: bool,
    more: str = "",
) -> None:
    """A table of all, or everything about one."""
    quiet_libraries()
    with session(as_json) as now:
        if name is None:
            rows = every()
            hint = f"`tiller {what} NAME` shows one in full."
            now.answer({what: rows}, listing(rows, columns), "", *filter(None, [more, hint]))
            return
        found = one(name)
        texts = {k: v for k, v in found.items() if k not in ("fields", "about") and v is not None}
        lines = [
            f"{key.replace('_', ' '):<16}{clean(plain(value))}" for key, value in texts.items()
        ]
        about = [clean(line) for line in found.get("about", "").splitlines()]
        rows = [{**row, "default": json.dumps(row["default"])} for row in found.get("fields", [])]
        table = [listing(rows, ["name", "type", "default", "doc"])] if rows else []
        now.answer(found, *lines, *([""] if about else []), *about, *([""] if rows else []), *table)
