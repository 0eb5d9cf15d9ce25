"""`affix train`, `show`, `export`: prefixes and suffixes learned on many prompts, and kept."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiller.commands import AsJson, Quiet
from tiller.commands.options import (
    Dtype,
    HeldOut,
    Model,
    Negative,
    Rewards,
    Settings,
    Variant,
    check_encoding,
    field_values,
)
from tiller.core.errors import TillerError
from tiller.core.prompts import prompts_in
from tiller.session import INTERRUPTED, Session, quiet_libraries, session
from tiller.session import told_on_interrupt as told
from tiller.terminal import EVERY, clean, clock, cost_line, listing, number, quoted, shown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tiller.affixes.evaluation import Comparison
    from tiller.affixes.training import Trained
    from tiller.core.budget import Budget
    from tiller.core.search import Step
    from tiller.tasks.statistics import Estimated

app = typer.Typer(
    name="affix",
    help="Learn tokens around many prompts once, and reuse them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FEW = 5  # unseen prompts, below which an interval over them is worth a word
File = Annotated[Path, typer.Argument(metavar="FILE", help="What `tiller affix train` wrote.")]


@app.command()
def train(
    prompts: Annotated[
        Path,
        typer.Argument(metavar="PROMPTS.txt", help="A file of prompts, one a line; # comments."),
    ],
    out: Annotated[Path, typer.Option(help="The affix file to write.")] = Path("affix.safetensors"),
    reward: Rewards = None,
    held_out: HeldOut = None,
    model: Model = "emoji",
    dtype: Dtype = None,
    variant: Variant = None,
    negative: Negative = "",
    unseen: Annotated[
        Path | None, typer.Option(help="Prompts to look at in the end and not to learn from.")
    ] = None,
    hold_out: Annotated[
        float, typer.Option(help="Without --unseen: the share of PROMPTS.txt to hold back.")
    ] = 0.2,
    batch: Annotated[int, typer.Option(help="Prompts a step.")] = 4,
    epochs: Annotated[int, typer.Option(help="How often each prompt comes.")] = 20,
    budget: Annotated[
        str | None,
        typer.Option(help="When to stop before, as for `tiller steer`. [after the epochs]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    settings: Settings = None,
    runs: Annotated[Path, typer.Option(help="The folder that gets the run's folder.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn one prefix and suffix for all prompts, and compare on prompts held back.

    --set takes the fields of `tiller methods ipgo`. `tiller resume RUN` continues a training.
    """
    quiet_libraries()
    with session(as_json) as now:
        check_encoding(negative)
        fields = field_values(settings or [])
        texts = prompts_in(prompts)
        others = prompts_in(unseen) if unseen is not None else None
        line = TrainingLine(now.console, quiet=quiet)
        with told(now.notice):
            from tiller.affixes.plan import Plan, split
            from tiller.affixes.training import check_plan
            from tiller.affixes.training import train as run
            from tiller.models import load_model

            if others is None:
                texts, others = split(texts, hold_out, seed)
                if hold_out and len(others) < FEW:
                    back = f"{len(others)} of {len(others) + len(texts)} prompts held back"
                    more = "more prompts, a larger --hold-out, or others as --unseen FILE"
                    now.notice(_few(back, len(others), more))
            elif len(others) < FEW:
                there = f"{len(others)} unseen prompts in {unseen}"
                now.notice(_few(there, len(others), f"{FEW} or more"))
            plan = Plan(
                texts,
                others,
                reward=reward or "clip",
                held_out=held_out,
                negative_prompt=negative,
                batch=batch,
                epochs=epochs,
                budget=budget,
                seed=seed,
                settings=fields,
            )
            check_plan(plan)
            line.begin(plan.limits, len(plan.unseen))
            loaded = load_model(model, dtype=dtype, variant=variant)
            command = ["tiller", *sys.argv[1:]]
            trained = run(loaded, plan, out, out=runs, on_step=line.update, command=command)
        _finish(now, trained)


def _few(found: str, count: int, more: str) -> str:
    said = ("nothing is said of unseen prompts", "there is no interval over them")
    return f"{found}, so {said[count] if count < 2 else 'their interval says little'}; give {more}"


def resume_into(now: Session, folder: Path, budget: str | None, quiet: bool) -> None:
    """Continue the training in a run's folder: `tiller resume` of such a run."""
    line = TrainingLine(now.console, quiet=quiet)
    with told(now.notice):
        from tiller.affixes.training import resume_training
        from tiller.core.budget import Budget
        from tiller.runs.store import RunStore

        line.begin(Budget.parse(budget or RunStore.open(folder).spec["budget"]))
        trained = resume_training(folder, budget=budget, on_step=line.update)
    _finish(now, trained)


def _finish(now: Session, trained: Trained) -> None:
    """The page and the answer."""
    from tiller.runs.report import write_report

    now.run_dir = trained.run_dir
    if trained.file is None:
        now.code = INTERRUPTED
    try:
        write_report([trained.run_dir], trained.run_dir / "report.html")
    except TillerError as error:  # the affix is there all the same
        now.notice(f"no report was written: {error}")
    now.answer(answer(trained), *summary(trained))


@app.command()
def show(file: File, as_json: AsJson = False) -> None:
    """Say what a file holds and where it comes from."""
    quiet_libraries()
    with session(as_json) as now:
        from tiller.methods._affix_files import read_affix

        saved = read_affix(file)
        prefix, suffix = saved.affix.prefix[0], saved.affix.suffix[0]
        norms = [float(side.norm(dim=1).mean()) if len(side) else 0.0 for side in (prefix, suffix)]
        facts = {"prefix": len(prefix), "suffix": len(suffix), **saved.about}
        facts |= {"mean_norms": [round(norm, 4) for norm in norms]}
        lines = [
            f"{name.replace('_', ' '):<18}{clean(str(value))}"
            for name, value in facts.items()
            if not isinstance(value, dict)
        ]
        now.answer(facts, *lines)


@app.command()
def export(
    file: File,
    to: Annotated[str, typer.Option(help="diffusers: a script that draws any prompt with it.")],
    out: Annotated[Path | None, typer.Option(help="The files' folder. [beside FILE]")] = None,
    as_json: AsJson = False,
) -> None:
    """Take an affix to programs without tiller."""
    quiet_libraries()
    with session(as_json) as now:
        from tiller.affixes.export import export_affix

        script = export_affix(file, to, out)
        path = script.absolute()
        now.notice(f'run it with: python {quoted(path)} "a prompt"')
        text = path.read_text()
        data = {"affix": str(file.absolute()), "to": to, "path": str(path), "text": text}
        now.answer(data, *map(clean, text.splitlines()))


class TrainingLine:
    """How a training is doing: a line every few seconds on standard error."""

    def __init__(self, console: Any, *, quiet: bool = False) -> None:
        from time import monotonic

        self.console, self.quiet, self.clock = console, quiet, monotonic
        self.started = monotonic()
        self.said = float("-inf")
        self.recent: list[float] = []
        self.budget: Budget | None = None

    def begin(self, budget: Budget, unseen: int = 0) -> None:
        """Say what comes before the first round: so many pictures of unseen prompts."""
        self.budget = budget
        if unseen and not self.quiet:
            self.console.print(f"loading the model, drawing {unseen} unseen prompts as they are")

    def update(self, step: Step) -> None:
        """Take in one round."""
        self.recent = [*self.recent[-19:], float(step.evaluation.reward.mean())]
        due = self.clock() - self.said >= EVERY or step.stopped is not None
        if self.quiet or not due:
            return
        self.said = self.clock()
        mean = sum(self.recent) / len(self.recent)
        assert self.budget is not None, "a training has begun"
        steps, done = self.budget.steps, self.budget.fraction(step.cost)
        left = step.cost.seconds * (1 - done) / done
        parts = [
            f"step {step.index}/{steps}" if steps else f"step {step.index}, {done:.0%}",
            f"reward {number(self.recent[-1])}, {number(mean)} over the last {len(self.recent)}",
            f"{step.cost.images} images",
            clock(self.said - self.started)
            + ("" if step.stopped else f", about {clock(left)} left"),
        ]
        self.console.print(" · ".join(parts))


def answer(trained: Trained) -> dict[str, Any]:
    """A training as `--json` prints it."""
    unseen = {name: _plain(found) for name, found in trained.unseen.items()}
    return {
        "run": str(trained.run_dir),
        "file": None if trained.file is None else str(trained.file),
        "method": "ipgo",
        "scores": {name: found.after.value for name, found in trained.unseen.items()},
        "baseline_scores": {name: found.before.value for name, found in trained.unseen.items()},
        "unseen": unseen,
        "cost": dataclasses.asdict(trained.cost),
        "stopped": trained.stopped,
    }


def _plain(found: Comparison) -> dict[str, dict[str, float]]:
    """As the journal has it, without the intervals where there was one prompt."""
    if found.prompts > 1:
        return found.plain()
    return {name: {"value": one["value"]} for name, one in found.plain().items()}


def _interval(found: Estimated, form: str) -> str:
    """A value, and its interval where there was more than one prompt."""
    if found.runs < 2:
        return format(found.value, form)
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def summary(trained: Trained) -> list[RenderableType]:
    """Unseen prompts with and without the affix, the cost, and what to do next."""
    rows = [
        {
            "reward": name,
            "without": number(found.before.value),
            "with": number(found.after.value),
            "gain": _interval(found.gain, ".3f"),
            "wins": _interval(found.wins, ".0%"),
        }
        for name, found in trained.unseen.items()
    ]
    run = quoted(trained.run_dir)
    facts = [("cost", cost_line(trained.cost)), ("stopped", clean(trained.stopped)), ("run", run)]
    if trained.file is None:
        facts.append(("next", f"tiller resume {run}"))
    else:
        name = quoted(trained.file)
        facts += [
            ("affix", clean(shown(trained.file))),
            ("next", f'tiller steer "a prompt" --method raw --affix {name}'),
            ("report", clean(shown(trained.run_dir / "report.html"))),
        ]
    table = [listing(rows, ["reward", "without", "with", "gain", "wins"]), ""] if rows else []
    return [*table, *(f"{name:<9}{value}" for name, value in facts)]
