"""The command line: thin and lazy. Commands call the library's own functions and show the answer.

`tiller --help` and `tiller --version` load neither torch nor diffusers: what is heavy is imported
inside the commands.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiller import __version__
from tiller.core.errors import InvalidInput, TillerError
from tiller.session import INPUT, INTERRUPTED, Session, no_loading_bars, quiet_libraries, session
from tiller.session import told_on_interrupt as told
from tiller.terminal import (
    ProgressLine,
    clean,
    listing,
    method_of,
    one_line,
    plain,
    quoted,
    shown,
    summary,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiller.api import Progress, Result

app = typer.Typer(
    name="tiller",
    help="Steer a frozen text-to-image model by searching what goes into it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a folder of runs.")]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one in full.")]


@app.callback(invoke_without_command=True)
def _tiller(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"tiller {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def steer(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the picture should show.")],
    method: Annotated[
        str, typer.Option(help="A name of `tiller methods`, or auto: by what the reward allows.")
    ] = "auto",
    reward: Annotated[
        list[str] | None,
        typer.Option(help="NAME, NAME:WEIGHT or file.py:function; repeat for a sum. [clip]"),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="A reward to report and not to optimize; repeatable."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A bundled name, a hub id, a folder or a .safetensors file.")
    ] = "emoji",
    negative: Annotated[
        str, typer.Option("--negative", "--negative-prompt", help="What to keep away from.")
    ] = "",
    budget: Annotated[
        str | None,
        typer.Option(help="When to stop: steps=30,images=64,forwards=4000,seconds=60. [method's]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of the method; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder that gets the run's folder.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search the inputs for the picture of PROMPT that a reward likes."""
    quiet_libraries()
    with session(as_json) as now:
        fields = _fields(settings or [])
        _check_encoding(prompt, negative)

        def go(on_step: Callable[[Progress], None]) -> Result:
            from tiller.api import steer as run

            _check_fields(fields, run)
            return run(
                model,
                prompt,
                method=method,
                reward=reward or "clip",
                held_out=held_out,
                negative_prompt=negative,
                budget=budget,
                seed=seed,
                out=out,
                on_step=on_step,
                **fields,
            )

        _search(now, go, quiet, picked=method == "auto")


@app.command()
def resume(
    run: Run,
    budget: Annotated[
        str | None, typer.Option(help="A larger budget, to go on after the end.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Continue a run from its last saved step, bit for bit."""
    quiet_libraries()
    with session(as_json) as now:
        folder = now.run_dir = _run_folder(run, now)

        def go(on_step: Callable[[Progress], None]) -> Result:
            from tiller.api import resume as go_on

            return go_on(folder, budget=budget, on_step=on_step)

        _search(now, go, quiet)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The page to write. [report.html: in the run, or here for several]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the page of one run, or of several side by side."""
    quiet_libraries()
    with session(as_json) as now:
        folders = [_run_folder(run, now) for run in runs]
        page = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
        from tiller.runs.report import write_report

        path = Path(write_report(folders, page)).absolute()
        data = {"report": str(path), "runs": [str(folder) for folder in folders]}
        now.answer(data, *map(_scores_line, folders), f"report: {clean(shown(path))}")


@app.command()
def export(
    run: Run,
    to: Annotated[str, typer.Option(help="png, prompt or python (a script without tiller).")],
    out: Annotated[
        Path | None, typer.Option(help="The folder for the files. [RUN/exports/FORMAT]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take the best picture of a run elsewhere."""
    quiet_libraries()
    with session(as_json) as now:
        folder = now.run_dir = _run_folder(run, now)
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


@app.command()
def methods(name: Name = None, as_json: AsJson = False) -> None:
    """List the methods, or show one in full."""
    from tiller import listing as there_is

    columns = ["name", "idea", "needs_gradient", "default_budget"]
    _list("methods", name, there_is.methods, there_is.method, columns, as_json)


@app.command()
def rewards(name: Name = None, as_json: AsJson = False) -> None:
    """List the rewards, or show one in full."""
    from tiller import listing as there_is

    columns = ["name", "idea", "differentiable", "settings"]
    more = "A file's function is a reward too: --reward path/to/file.py:function"
    _list("rewards", name, there_is.rewards, there_is.reward, columns, as_json, more)


@app.command()
def models(name: Name = None, as_json: AsJson = False) -> None:
    """List the models that come along, or show one in full."""
    from tiller import listing as there_is

    columns = ["name", "idea", "installed"]
    more = f"--model also takes {there_is.LOADABLE}."
    _list("models", name, there_is.models, there_is.model, columns, as_json, more)


@app.command()
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

        no_loading_bars()
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


def _search(
    now: Session,
    go: Callable[[Callable[[Progress], None]], Result],
    quiet: bool,
    *,
    picked: bool = False,
) -> None:
    """Run or continue a search with its progress line, then its report and its answer."""
    line = ProgressLine(now.console, quiet=quiet)

    def on_step(progress: Progress) -> None:
        first, now.run_dir = line.latest is None, progress.run_dir
        if first and picked:
            now.notice(f"--method auto picked {method_of(progress.run_dir)}")
        line.update(progress)

    try:
        with line, told(now.notice):
            no_loading_bars()
            result = go(on_step)
    except (Exception, KeyboardInterrupt):
        if line.latest is not None:
            _write_report(now, line.latest.run_dir)
        raise
    now.run_dir = result.run_dir
    if result.stopped == "interrupted":
        now.code = INTERRUPTED
    page = _write_report(now, result.run_dir)
    image = result.run_dir / "images" / "best.png"
    data = {
        "run": str(result.run_dir),
        "method": result.method,
        "prompt": result.prompt,
        "image": str(image),
        "scores": result.best.scores,
        "baseline_scores": result.baseline.scores,
        "cost": dataclasses.asdict(result.cost),
        "stopped": result.stopped,
    }
    now.answer(data, *summary(result, page))


def _write_report(now: Session, run_dir: Path) -> Path | None:
    """The run's page; whatever goes wrong with it, the run has its answer."""
    from tiller.runs.report import write_report

    try:
        return Path(write_report([run_dir], run_dir / "report.html"))
    except TillerError as error:
        now.notice(f"no report was written: {error}")
    except Exception as error:
        now.bug(error)
    return None


def _run_folder(path: Path, now: Session) -> Path:
    """`path` itself, or the newest run where it is a folder of runs."""
    if path.is_dir() and not (path / "run.json").is_file():
        runs = sorted(child.parent for child in path.glob("*/run.json"))
        if runs:
            newest = max(runs, key=lambda run: ((run / "run.json").stat().st_mtime_ns, run.name))
            if len(runs) > 1:
                now.notice(f"{path} holds {len(runs)} runs; taking the newest, {newest.name}")
            return newest.absolute()
    return path.absolute()


def _scores_line(run_dir: Path) -> str:
    """One run's scores, before and after."""
    from tiller.runs.record import read_run
    from tiller.terminal import number

    record = read_run(run_dir)
    before, after = record.baseline.get("scores") or {}, record.last.get("scores") or {}
    found = [
        f"{name} {number(before[name])} → {number(score)}"
        for name, score in after.items()
        if name in before
    ]
    return clean(f"{run_dir.name}: {', '.join(found) or 'no finished step'}")


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


def _fields(settings: list[str]) -> dict[str, Any]:
    """`["lr=0.1"]` as fields; the method converts the texts."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not (equals and name.isidentifier()):
            raise InvalidInput(f"expected --set field=value, such as lr=0.05; got {setting!r}")
        if name in found:
            raise InvalidInput(f"--set {name} was given twice; give it once")
        found[name] = value.strip()
    return found


def _check_fields(fields: dict[str, Any], run: Callable[..., Any]) -> None:
    """Refuse `--set seed=3`: what has an option of its own is no field of a method."""
    for name in inspect.signature(run).parameters:
        if name in fields:
            raise InvalidInput(f"--set {name} is no field of a method; see `tiller steer --help`")


def _check_encoding(*texts: str) -> None:
    """Refuse bytes that are no text: the shell hands them over as unpaired surrogates."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"expected the prompt in UTF-8, got bytes that are not, at character "
                f"{error.start}: {text!r}; check the terminal's encoding"
            ) from None


_USAGE: type[Exception] = typer.BadParameter.__bases__[0]  # click's, which typer may carry inside


def main() -> None:
    """The `tiller` command."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # no emoji in the terminal's encoding
    try:
        code = app(prog_name="tiller", standalone_mode=False)
    except _USAGE as error:
        code = _usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> int:
    """A command line that cannot be read: one line, and where to read on."""
    path = getattr(error.ctx, "command_path", "tiller") if error.ctx else "tiller"
    text = f"{error.format_message().rstrip('.')}. See `{path} --help`."
    now = Session(as_json="--json" in sys.argv[1:])
    now.fail(text, INPUT)
    if now.as_json:
        print(json.dumps(now.answered))
    return INPUT
