"""`steer`, `attack`, `batch`, `resume`: the searches."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiller.batch_view import BatchLine, batch_summary
from tiller.commands import AsJson, Quiet, RunFolder, run_folder, words
from tiller.commands.options import Options, with_options
from tiller.core.errors import InvalidInput, TillerError
from tiller.core.prompts import prompts_in
from tiller.session import INTERRUPTED, Session, quiet_libraries, session
from tiller.session import told_on_interrupt as told
from tiller.terminal import ProgressLine, best_picture, method_of, quoted, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiller.api import Progress, Result
    from tiller.run import Run


LEARNED = {"affix": "tiller.commands.affix", "concept": "tiller.commands.concept"}
"""Kinds of runs that steer no picture, and what continues them (`resume_into`)."""

Method = Annotated[
    str, typer.Option(help="A name of `tiller methods`, or auto: by what the reward allows.")
]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What the picture should show.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show the space, the budget and about the cost; draw nothing."),
]


@with_options
def steer(
    prompt: Prompt,
    options: Options,
    method: Method = "auto",
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> None:
    """Search the inputs for the picture of PROMPT that a reward likes."""
    _steer(prompt, options, method, seed, dry_run)


@with_options
def attack(prompt: Prompt, options: Options, seed: Seed = 0, dry_run: DryRun = False) -> None:
    """Search for words of the same meaning that a reward likes least.

    A test of a model: `tiller methods attack` has the fields for --set.
    """
    _steer(prompt, options, "attack", seed, dry_run)


def _steer(prompt: str, options: Options, method: str, seed: int, dry_run: bool) -> None:
    quiet_libraries()
    with session(options.as_json) as now:
        arguments = options.arguments(prompt)

        def plan() -> Run:
            from tiller.api import plan as planned
            from tiller.api import steer as everything

            _check_fields(options.fields, everything)
            return planned(options.load(prompt), prompt, method=method, seed=seed, **arguments)

        if dry_run:
            from tiller.commands import planning

            run = plan()
            now.answer(planning.data(run), *planning.view(run))
            return

        def go(on_step: Callable[[Progress], None]) -> Result:
            from tiller.api import carry_out
            from tiller.commands.planning import searchable

            return carry_out(searchable(plan), options.out, on_step)

        _search(now, go, options.quiet, picked=method == "auto")


@with_options
def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS.txt",
            help="A text file with a prompt a line; lines that begin with # are left out.",
        ),
    ],
    options: Options,
    method: Method = "auto",
    seeds: Annotated[int, typer.Option(help="Each prompt is steered with seeds 0 to N - 1.")] = 1,
) -> None:
    """Steer many prompts with many seeds, side by side.

    Give the same command again to continue what was interrupted; what is finished is kept.
    """
    quiet_libraries()
    with session(options.as_json) as now:
        arguments = options.arguments()
        wanted = prompts_in(prompts)
        now.again = "the same command again"
        for prompt, times in Counter(wanted).items():
            if times > 1:
                now.notice(f"{prompt!r} is there {times} times and counts once")
        line = BatchLine(now.console, runs=len(set(wanted)) * seeds, quiet=options.quiet)
        with line, told(now.notice):
            from tiller.api import steer_many

            _check_fields(options.fields, steer_many)
            results = steer_many(
                options.load(*wanted),
                wanted,
                seeds=range(seeds),
                method=method,
                out=options.out,
                on_step=line.update,
                **arguments,
            )
        if any(result.stopped == "interrupted" for result in results):
            now.code = INTERRUPTED
        found = {"runs": [_answer(one) for one in results], "out": str(options.out.absolute())}
        different = list({one.run_dir: one for one in results}.values())
        now.answer(found, *batch_summary(different, options.out))


def resume(
    run: RunFolder,
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
        if (kind := _kind(folder)) in LEARNED:
            import_module(LEARNED[kind]).resume_into(now, folder, budget, quiet)
            return

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
            now.notice(f"--method auto picked {method_of(progress.run_dir)[0]}")
        line.update(progress)

    try:
        with line, told(now.notice):
            result = go(on_step)
    except (Exception, KeyboardInterrupt):
        if line.latest is not None:
            _write_report(now, line.latest.run_dir)
        raise
    now.run_dir = result.run_dir
    if line.latest is None and result.stopped == "not finished":
        now.notice(
            "nothing was left to do, and the journal has lost how the run ended; go on with: "
            f"tiller resume {quoted(result.run_dir)} --budget ..."
        )
    elif line.latest is None:
        now.notice("nothing was left to do: the run had ended, and is shown as it stands")
    if result.stopped == "interrupted":
        now.code = INTERRUPTED
    page = _write_report(now, result.run_dir)
    now.answer(_answer(result), *summary(result, page, words.facts(result.run_dir)))


def _answer(result: Result) -> dict[str, Any]:
    """A run as `--json` prints it."""
    return {
        "run": str(result.run_dir),
        "method": result.method,
        "prompt": result.prompt,
        "image": str(best_picture(result.run_dir)),
        "scores": result.best.scores,
        "baseline_scores": result.baseline.scores,
        "cost": dataclasses.asdict(result.cost),
        "stopped": result.stopped,
        "probability": result.probability,
        "best_prompt": result.best_prompt,
        "best_negative_prompt": result.best_negative_prompt,
        **words.answer(result.run_dir),
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


def _kind(run_dir: Path) -> str:
    """What a run learns, where it does not steer one picture."""
    from tiller.runs.store import RunStore

    return str(RunStore.open(run_dir).spec.get("kind") or "")


def _check_fields(fields: dict[str, Any], run: Callable[..., Any]) -> None:
    """Refuse `--set seed=3`: what has an option of its own is no field of a method."""
    for name in inspect.signature(run).parameters:
        if name in fields:
            raise InvalidInput(f"--set {name} is no field of a method; see `tiller steer --help`")
