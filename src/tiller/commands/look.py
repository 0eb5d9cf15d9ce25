"""`report`, `export`: what was found, to look at and to take elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tiller.commands import AsJson, RunFolder, run_folder
from tiller.session import quiet_libraries, session
from tiller.terminal import clean, quoted, shown


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders, or folders of runs.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write, or its folder. [report.html: in the run, or here for several]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the page of one run, or of several side by side."""
    quiet_libraries()
    with session(as_json) as now:
        folders = [run_folder(run, now) for run in runs]
        page = out or (folders[0] if len(folders) == 1 else Path())
        page = page / "report.html" if page.is_dir() else page
        from tiller.runs.report import write_report

        path = Path(write_report(folders, page)).absolute()
        data = {"report": str(path), "runs": [str(folder) for folder in folders]}
        now.answer(data, *map(_scores_line, folders), f"report: {clean(shown(path))}")


def export(
    run: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            help="png, prompt, python (a script without tiller) or diffusers (trained weights)."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder for the files. [RUN/exports/FORMAT]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take the best picture of a run elsewhere."""
    quiet_libraries()
    with session(as_json) as now:
        folder = now.run_dir = run_folder(run, now)
        from tiller.runs.export import export as write

        found = write(folder, to, out)
        path = found.absolute() if isinstance(found, Path) else None
        text = found if isinstance(found, str) else None
        if path is not None and to == "python":  # printed, so that it can be piped to a file
            now.notice(f"run it with: python {quoted(path)}")
            text = path.read_text()
        data = {"run": str(folder), "to": to, "path": path and str(path), "text": text}
        if text is not None:
            now.answer(data, *map(clean, text.splitlines()))
        else:
            now.answer(data, clean(shown(path or folder)))


def _scores_line(run_dir: Path) -> str:
    """One run's scores, before and after, and the words that it found."""
    from tiller.runs.found_words import found_words
    from tiller.runs.record import read_run
    from tiller.terminal import number

    record = read_run(run_dir)
    before, after = record.baseline.get("scores") or {}, record.last.get("scores") or {}
    found = [
        f"{name} {number(before[name])} → {number(score)}"
        for name, score in sorted(after.items(), key=lambda one: one[0] in record.held_out)
        if name in before
    ]
    words = found_words(record)
    if words is not None and words.changed:
        negative = words.best.negative_prompt
        found += [repr(words.best.prompt), *([f"not: {negative!r}"] if negative else [])]
    return clean(f"{run_dir.name}: {', '.join(found) or 'no finished step'}")
