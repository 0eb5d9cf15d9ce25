"""`steer`, `batch`, `resume`: the searches."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiller.batch_view import BatchLine, batch_summary
from tiller.commands import AsJson, Quiet, Run, run_folder
from tiller.core.errors import InvalidInput, TillerError
from tiller.session import INTERRUPTED, Session, no_loading_bars, quiet_libraries, session
from tiller.session import told_on_interrupt as told
from tiller.terminal import ProgressLine, method_of, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiller.api import Progress, Result


Method = Annotated[
    str, typer.Option(help="A name of `tiller methods`, or auto: by what the reward allows.")
]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward", help="NAME, NAME:WEIGHT or file.py:function; repeat for a sum. [clip]"
    ),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(help="A reward to report and not to optimize; repeatable."),
]
Model = Annotated[
    str, typer.Option(help="A bundled name, a hub id, a folder or a .safetensors file.")
]
Negative = Annotated[
    str, typer.Option("--negative", "--negative-prompt", help="What to keep away from.")
]
Limits = Annotated[
    str | None,
    typer.Option(help="When to stop: steps=30,images=64,forwards=4000,seconds=60. [method's]"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field of the method; repeatable."),
]
Out = Annotated[Path, typer.Option(help="The folder that gets the run's folder.")]


def steer(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the picture should show.")],
    method: Method = "auto",
    reward: Rewards = None,
    held_out: HeldOut = None,
    model: Model = "emoji",
    negative: Negative = "",
    budget: Limits = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    settings: Settings = None,
    out: Out = Path("runs"),
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


def batch(
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS.txt", help="A text file with a prompt a line.")
    ],
    method: Method = "auto",
    reward: Rewards = None,
    held_out: HeldOut = None,
    model: Model = "emoji",
    negative: Negative = "",
    budget: Limits = None,
    seeds: Annotated[int, typer.Option(help="Each prompt is steered with seeds 0 to N - 1.")] = 1,
    settings: Settings = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Steer many prompts with many seeds, side by side.

    Give the same command again to continue what was interrupted; what is finished is kept.
    """
    quiet_libraries()
    with session(as_json) as now:
        fields = _fields(settings or [])
        _check_encoding(negative)
        wanted = _lines(prompts)
        line = BatchLine(now.console, runs=len(wanted) * seeds, quiet=quiet)
        with line, told(now.notice):
            from tiller.api import steer_many

            no_loading_bars()
            _check_fields(fields, steer_many)
            results = steer_many(
                model,
                wanted,
                seeds=range(seeds),
                method=method,
                reward=reward or "clip",
                held_out=held_out,
                negative_prompt=negative,
                budget=budget,
                out=out,
                on_step=line.update,
                **fields,
            )
        if any(result.stopped == "interrupted" for result in results):
            now.code = INTERRUPTED
        runs = [_answer(result) for result in results]
        now.answer({"runs": runs, "out": str(out.absolute())}, *batch_summary(results, out))


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
        folder = now.run_dir = run_folder(run, now)

        def go(on_step: Callable[[Progress], None]) -> Result:
            from tiller.api import resume as go_on

            return go_on(folder, budget=budget, on_step=on_step)

        _search(now, go, quiet)


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
    now.answer(_answer(result), *summary(result, page))


def _answer(result: Result) -> dict[str, Any]:
    """A run as `--json` prints it."""
    return {
        "run": str(result.run_dir),
        "method": result.method,
        "prompt": result.prompt,
        "image": str(result.run_dir / "images" / "best.png"),
        "scores": result.best.scores,
        "baseline_scores": result.baseline.scores,
        "cost": dataclasses.asdict(result.cost),
        "stopped": result.stopped,
        "probability": result.probability,
    }


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


def _lines(path: Path) -> list[str]:
    """The prompts of a text file: one a line, empty lines left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise InvalidInput(f"cannot read the prompts in {path}: {reason}") from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise InvalidInput(f"expected a prompt a line in {path}, found none")
    return found
