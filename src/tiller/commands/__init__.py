"""The commands of `tiller`, by what they do; `tiller.cli` puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tiller.session import Session

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or a folder of runs.")
]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one in full.")]


def run_folder(path: Path, now: Session) -> Path:
    """`path` itself, or the newest run where it is a folder of runs."""
    if path.is_dir() and not (path / "run.json").is_file():
        runs = sorted(child.parent for child in path.glob("*/run.json"))
        if runs:
            newest = max(runs, key=lambda run: ((run / "run.json").stat().st_mtime_ns, run.name))
            if len(runs) > 1:
                now.notice(f"{path} holds {len(runs)} runs; taking the newest, {newest.name}")
            return newest.absolute()
    return path.absolute()
