"""What people see of a batch of runs: one live line for all, and one table at the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tiller.terminal import ProgressLine, clean, clock, method_of, number, quoted, shown

if TYPE_CHECKING:
    from tiller.api import Progress, Result


class BatchLine(ProgressLine):
    """How the runs of a batch are doing together.

    Args:
        console: standard error.
        runs: how many there are.
        quiet: show nothing.
    """

    def __init__(self, console: Console, *, runs: int, quiet: bool = False) -> None:
        self.runs: dict[Path, Progress] = {}
        self.total = runs
        super().__init__(console, quiet=quiet)

    def update(self, progress: Progress) -> None:
        """Take in one round of one run; give this to `steer_many` as `on_step`."""
        self.runs[progress.run_dir] = progress
        super().update(progress)

    def line(self) -> str:
        """The line as it stands now."""
        latest = self.latest
        if latest is None:
            return super().line()
        seen = list(self.runs.values())
        over = sum(progress.step.stopped is not None for progress in seen)
        parts = [f"{len(seen)} of {self.total} runs under way, {over} over"]
        names = sorted(latest.scores, key=lambda name: name in latest.held_out)[:2]
        for name in names:
            before = statistics.fmean(progress.baseline[name] for progress in seen)
            after = statistics.fmean(progress.scores[name] for progress in seen)
            mark = " (held out)" if name in latest.held_out else ""
            parts.append(f"mean {clean(name)} {number(before)} → {number(after)}{mark}")
        done = statistics.fmean(p.budget.fraction(p.step.cost) for p in seen)
        return " · ".join([*parts, f"{done:.0%}", clock(self.elapsed)])


def batch_summary(results: Sequence[Result], out: Path) -> list[RenderableType]:
    """The end of a batch: the means over its runs, how many rose, and each run."""
    _, lowers = method_of(results[0].run_dir)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("reward, mean of runs", overflow="fold")
    for heading in ("baseline", "best", "change", "lowered" if lowers else "raised"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    held_out = results[0].held_out
    for name in sorted(results[0].best.scores, key=lambda name: name in held_out):
        pairs = [(r.baseline.scores[name], r.best.scores[name]) for r in results]
        before, after = (statistics.fmean(side) for side in zip(*pairs, strict=True))
        moved = sum(b < a if lowers else b > a for a, b in pairs)
        mark = "held out" if name in held_out else ""
        cells = (number(before), number(after), f"{after - before:+.4f}", f"{moved}/{len(pairs)}")
        table.add_row(Text(clean(name)), *cells, mark)
    runs = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    words = [_words(result) for result in results]
    worded = any(text is not None for text in words)
    runs.add_column("prompt", overflow="fold")
    runs.add_column("best words" if worded else "P(z)", overflow="fold")
    runs.add_column("picture", overflow="fold")
    for result, found in zip(results, words, strict=True):
        picture = shown(result.run_dir / "images" / "best.png")
        second = found or "" if worded else f"{result.probability:.2g}"
        about = (clean(result.prompt), clean(second), clean(picture))
        runs.add_row(*map(Text, about))
    return [table, "", runs, "", clean(f"next     tiller report {quoted(out)}/*")]


def _words(result: Result) -> str | None:
    """The words that a run found; None where it searched none."""
    from tiller.runs.found_words import found_words
    from tiller.runs.record import read_run

    found = found_words(read_run(result.run_dir))
    if found is None:
        return None
    if not found.changed:
        return "your own"
    negative = found.best.negative_prompt
    return found.best.prompt + (f"; not: {negative}" if negative else "")
