"""What people see of a concept: a line while it is learned, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from tiller.terminal import EVERY, clean, clock, cost_line, listing, number, quoted, shown

if TYPE_CHECKING:
    from tiller.concepts.learn import ConceptResult
    from tiller.concepts.metrics import Measured
    from tiller.concepts.run import Progress


class ConceptLine:
    """How a search is doing: a line every few seconds on standard error.

    Args:
        console: standard error.
        quiet: show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.started = monotonic()
        self._said = float("-inf")
        self._first: tuple[float, float] | None = None  # when, and how much was done

    def begin(self, pictures: int) -> None:
        """Say what goes on until the first round: the start is chosen by many trials."""
        if not self.quiet:
            self.console.print(Text(f"pictures: {pictures} · choosing where to begin"))

    def update(self, progress: Progress) -> None:
        """Take in one round; give this to `learn_concept` as `on_step`."""
        step, seen = progress.step, monotonic()
        steps, done = progress.budget.steps, progress.budget.fraction(step.cost)
        self._first = self._first or (seen, done)
        if not self.quiet and self._said < 0:
            self.console.print(Text(f"run · {clean(shown(progress.run_dir))}"))
        if not self.quiet and progress.drawn:
            files = ", ".join(shown(path) for path in progress.drawn)
            self.console.print(Text(f"drawn · {clean(files)}"))
        if self.quiet or (seen - self._said < EVERY and step.stopped is None):
            return
        self._said = seen
        since, before = seen - self._first[0], done - self._first[1]  # looks and drawings included
        rate = since / before if before > 0 else step.cost.seconds / max(done, 1e-9)
        parts = [
            progress.method,
            f"round {step.index}/{steps}" if steps else f"round {step.index}, {done:.0%}",
            f"held-out loss {number(progress.start)} → {number(progress.best)}",
            f"{step.cost.forwards} forwards + {step.cost.backwards} backwards",
            clock(seen - self.started)
            + ("" if step.stopped else f", about {clock(rate * (1 - done))} left"),
        ]
        self.console.print(Text(" · ".join(parts)))


def summary(result: ConceptResult, page: Path) -> list[RenderableType]:
    """The end of a run: the loss before and after, the files, and what to do next."""
    run, token = quoted(result.run_dir), result.concept.token
    began = ", ".join(result.began) or "a random word"
    vectors = "1 vector" if len(result.concept) == 1 else f"{len(result.concept)} vectors"
    facts = [
        ("token", clean(token)),
        ("method", clean(result.method)),
        ("began", clean(f"at {began} · {vectors}")),
    ]
    if result.loss is not None and result.start_loss is not None:
        change = result.loss / result.start_loss - 1
        losses = f"{number(result.start_loss)} → {number(result.loss)}, {change:+.1%}"
        facts.append(("loss", f"{losses}, on trials that chose nothing"))
    facts += [
        ("cost", cost_line(result.cost)),
        ("aside", f"{result.aside:,} forwards, to choose the start and the result"),
        ("stopped", clean(result.stopped)),
        ("file", clean(shown(result.run_dir / "learned_embeds.safetensors"))),
        ("pictures", clean(", ".join(shown(path) for path in result.pictures))),
        ("report", clean(shown(page))),
        ("next", clean(f"tiller concept draw {shlex.quote(result.prompt)} --concept {run} -n 4")),
        ("", clean(f"tiller concept evaluate {run}")),
        ("", clean(f"tiller concept convert {run} --to a1111")),
    ]
    if result.stopped == "interrupted":
        facts.append(("", clean(f"tiller resume {run}")))
    return [f"{name:<9}{value}" for name, value in facts]


def compared(measured: Sequence[Measured]) -> list[RenderableType]:
    """A row for the concept, and one for each word that it is compared with."""
    rows = [
        {
            "word": one.token,
            "clip": clip,
            "reconstruction": number(seen.reconstruction),
            "on its ground": "" if seen.placed is None else number(seen.placed),
            "editability": number(seen.editability),
        }
        for one in measured
        for clip, seen in one.clips.items()
    ]
    parts: list[RenderableType] = [
        listing(rows, ["word", "clip", "reconstruction", "on its ground", "editability"]),
    ]
    judged = [
        {
            "word": one.token,
            "same subject": _share(one.judge.same_subject),
            "same colour": _share(one.judge.same_colour),
            "edits right": _share(one.judge.edited),
        }
        for one in measured
        if one.judge is not None
    ]
    if judged:
        parts += ["", listing(judged, ["word", "same subject", "same colour", "edits right"])]
    return [*parts, "", f"{measured[0].images} pictures of each prompt"]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
