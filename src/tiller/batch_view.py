"""What people see of a batch of runs: one live line for all, and one table at the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tiller.terminal import ProgressLine, best_picture, clean, clock, number, quoted, shown

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
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("reward, mean of runs", overflow="fold")
    rows = _means(results)
    ways = {row.way for row in rows}
    (way,) = ways if len(ways) == 1 else ("runs",)
    for heading in ("baseline", "best", "change", way):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        count = row.count if len(ways) == 1 else f"{row.count} {row.way}"
        change = f"{row.after - row.before:+z.4f}"
        cells = (number(row.before), number(row.after), change, count)
        table.add_row(Text(clean(row.label)), *cells, row.mark)
    runs = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    words = [_words(result) for result in results]
    worded = any(text is not None for text in words)
    runs.add_column("prompt", overflow="fold")
    runs.add_column("best words" if worded else "P(z)", overflow="fold")
    runs.add_column("picture", overflow="fold")
    for result, found in zip(results, words, strict=True):
        picture = shown(best_picture(result.run_dir))
        second = found or "" if worded else f"{result.probability:.2g}"
        about = (clean(result.prompt), clean(second), clean(picture))
        runs.add_row(*map(Text, about))
    return [table, "", runs, "", clean(f"next     tiller report {quoted(out)}/*")]


@dataclass(frozen=True)
class _Row:
    """A score's means over the runs; `count` of them moved it the wanted `way`."""

    label: str
    before: float
    after: float
    count: str
    way: str
    mark: str


def _means(results: Sequence[Result]) -> list[_Row]:
    """A row a reward, and one for the sum that was optimized where that is another number."""
    from tiller.runs.record import read_run

    record, held_out = read_run(results[0].run_dir), results[0].held_out
    scores = [(result.baseline.scores, result.best.scores) for result in results]

    def row(label: str, pairs: Sequence[tuple[float, float]], mark: str, *, lowered: bool) -> _Row:
        before, after = (statistics.fmean(side) for side in zip(*pairs, strict=True))
        moved = sum(b < a if lowered else b > a for a, b in pairs)
        way = "lowered" if lowered else "raised"
        return _Row(label, before, after, f"{moved}/{len(pairs)}", way, mark)

    rows = []
    for name in sorted(results[0].best.scores, key=lambda name: name in held_out):
        pairs = [(before[name], after[name]) for before, after in scores]
        mark = "held out" if name in held_out else ""
        rows.append(row(record.label(name), pairs, mark, lowered=record.lowered(name)))
    if record.summed:
        sums = [(record.total(before), record.total(after)) for before, after in scores]
        known = [(a, b) for a, b in sums if a is not None and b is not None]
        if known:
            rows.append(row("sum", known, "optimized", lowered=record.lowers))
    return rows


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
