"""What people see: clean text, notices, one live line a run, and the table at its end.

Everything here but the table goes to standard error. Text of users and libraries passes through
`clean`, so that nothing they contain can move the cursor or recolour the terminal.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tiller.api import Progress, Result
    from tiller.core.budget import Cost

EVERY = 5.0
"""Seconds between two lines where standard error is no terminal."""

_JOINERS = "\u200c\u200d"  # hold emoji sequences together; they move nothing


def clean(text: str) -> str:
    r"""`text` with control, format and unprintable characters written as escapes.

    Example:
        >>> clean("red\x1b[31m cat\n")
        'red\\x1b[31m cat\\n'
    """
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str) -> str:
    """`text` cleaned, its lines and runs of blanks joined by one space."""
    return clean(" ".join(text.split()))


def shown(path: str | Path) -> str:
    """A path for people: relative to the current folder where it lies below it."""
    full = Path(path)
    here = Path.cwd()
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(full)


def quoted(path: str | Path) -> str:
    """A path as one word of a shell command."""
    return shlex.quote(shown(path))


class _Output(Console):
    """A console that lets a broken pipe be seen by who decides the exit code."""

    def on_broken_pipe(self) -> None:
        """Rich's own ends the process with code 1, which here means our bug."""
        raise BrokenPipeError


def stderr_console() -> Console:
    """Standard error; nothing printed to it is taken for markup or emoji codes."""
    return _Output(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def stdout_console() -> Console:
    """Standard output, where results go."""
    return _Output(highlight=False, markup=False, emoji=False)


class ProgressLine:
    """How a run is doing: a live line on a terminal, else a plain line every few seconds.

    Args:
        console: standard error.
        quiet: show nothing.

    Example:
        >>> with ProgressLine(stderr_console()) as line:                 # doctest: +SKIP
        ...     tiller.steer("emoji", "a purple owl", on_step=line.update)
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.latest: Progress | None = None
        self._console = console
        self._quiet = quiet
        self._method, self._lowers = "", False
        self._held_out: tuple[str, ...] = ()
        self._started = self._seen = time.monotonic()
        self._said = float("-inf")
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            self._live = Live(
                self,
                console=console,
                refresh_per_second=4,
                transient=True,
                vertical_overflow="crop",
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Take in one round; give this to `steer` as `on_step`."""
        if self.latest is None:
            self._method, self._lowers = method_of(progress.run_dir)
            self._held_out = progress.held_out
        self.latest, self._seen = progress, time.monotonic()
        due = self._seen - self._said >= EVERY or progress.step.stopped is not None
        if self._live is None and not self._quiet and due:
            self._said = self._seen
            self._console.print(Text(self.line()))

    @property
    def elapsed(self) -> float:
        """Seconds since the line was made."""
        return time.monotonic() - self._started

    def line(self) -> str:
        """The line as it stands now."""
        now = time.monotonic()
        if self.latest is None:
            waited = clock(now - self._started)
            return f"loading the model, drawing the unsteered picture · {waited}"
        progress = self.latest
        step, cost = progress.step, progress.step.cost
        done = progress.budget.fraction(cost)
        steps = progress.budget.steps
        where = f"step {step.index}/{steps}" if steps else f"step {step.index}, {done:.0%}"
        parts = [self._method, clean(step.phase), where, *self._scores(progress)]
        parts.append(f"P(z) {progress.probability:.2g}")
        parts.append(f"{cost.forwards} forwards + {cost.backwards} backwards")
        left = cost.seconds * (1 - done) / done if done > 0 else 0.0
        since = now - self._seen
        elapsed = clock(now - self._started)
        told = step.stopped or step.relaxed  # a relaxed round uses nothing of a budget of images
        rest = "" if told else f", about {clock(max(0.0, left - since))} left"
        parts.append(elapsed + rest)
        return " · ".join(parts)

    def __rich__(self) -> RenderableType:
        return Text(self.line(), no_wrap=True, overflow="ellipsis")

    def _scores(self, progress: Progress) -> list[str]:
        """The first two optimized rewards and the first held-out one, baseline → best."""
        optimized = [name for name in progress.scores if name not in self._held_out][:2]
        watched = [name for name in progress.scores if name in self._held_out][:1]
        found = []
        for name in optimized + watched:
            mark = " (held out)" if name in watched else " (lowered)" if self._lowers else ""
            before, after = progress.baseline.get(name), progress.scores[name]
            start = "" if before is None else f"{number(before)} → "
            found.append(f"{clean(name)} {start}{number(after)}{mark}")
        return found


def summary(
    result: Result, report: Path | None, words: Sequence[tuple[str, str]] = ()
) -> list[RenderableType]:
    """The end of a run: baseline → best for every reward, cost, why it stopped, what to do next.

    `words` is what a search for words found, line by line; it takes the place of what is said of
    the noise.
    """
    from tiller.runs.record import read_run

    held_out, record = result.held_out, read_run(result.run_dir)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("reward", overflow="fold")
    for heading in ("baseline", "best", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    ordered = sorted(result.best.scores, key=lambda name: name in held_out)
    for name in ordered:
        before, after = result.baseline.scores.get(name), result.best.scores[name]
        cells = ("", "") if before is None else (number(before), f"{after - before:+z.4f}")
        mark = "held out" if name in held_out else "lowered" if record.lowered(name) else ""
        table.add_row(Text(clean(record.label(name))), cells[0], number(after), cells[1], mark)
    if record.summed:
        mark = "lowered" if record.lowers else "optimized"
        first, last = map(record.total, (result.baseline.scores, result.best.scores))
        if first is not None and last is not None:
            table.add_row("sum", number(first), number(last), f"{last - first:+z.4f}", mark)
    run = quoted(result.run_dir)
    facts = [
        *words,
        ("method", clean(result.method)),
        ("cost", cost_line(result.cost)),
        ("stopped", clean(result.stopped)),
        *([] if words else [("P(z)", _likely(result.probability))]),
        ("picture", clean(shown(best_picture(result.run_dir)))),
        ("run", clean(shown(result.run_dir))),
    ]
    if report is not None:
        facts.append(("report", clean(shown(report))))
    facts += [("note", one_line(text)) for text in _notices(result.run_dir)]
    facts += [
        ("next", clean(f"tiller report {run}")),
        ("", clean(f"tiller export {run} --to {_best_export(result.run_dir)}")),
    ]
    if result.method != "raw" and (more := _more(result.stopped)) is not None:
        facts.append(("", clean(f"tiller resume {run}{more}")))
    return [table, "", *(f"{name:<9}{value}" for name, value in facts)]


def listing(rows: list[dict[str, Any]], columns: list[str]) -> RenderableType:
    """A plain table of `rows`, one column a key."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(plain(row[column]))) for column in columns))
    return table


def plain(value: Any) -> str:
    """A value for people: yes and no, nothing for None, a list joined by commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={plain(inner)}" for key, inner in value.items())
    return str(value)


def number(value: float) -> str:
    """A score with about four digits.

    Example:
        >>> number(0.31234), number(-12.3456)
        ('0.3123', '-12.346')
    """
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.3f}"


def cost_line(cost: Cost) -> str:
    """A cost in one line.

    Example:
        >>> from tiller.core.budget import Cost
        >>> cost_line(Cost(steps=2, images=2, forwards=80, reward_calls=2, seconds=3.25))
        '2 steps, 2 images, 80 forwards, 2 reward calls, 3.2 s'
    """
    counted = ("steps", "images", "forwards", "backwards", "recomputes", "reward_calls", "tokens")
    amounts = [(getattr(cost, name), name.replace("_", " ")) for name in counted]
    parts = [f"{n} {name if n != 1 else name[:-1]}" for n, name in amounts if n]
    parts.append(f"{cost.seconds:.1f} s")
    if cost.peak_memory_bytes:
        parts.append(f"peak {cost.peak_memory_bytes / 2**20:.0f} MiB")
    return ", ".join(parts)


def _likely(probability: float) -> str:
    """What P(z) means, in a few words; a typical noise has about a quarter."""
    where = (
        "a noise as the model was trained on"
        if probability > 0.05
        else "an unusual noise"
        if probability > 0.001
        else "far from what the model was trained on: look at the held-out score"
    )
    return f"{probability:.2g}, {where}"


def _more(stopped: str) -> str | None:
    """What `tiller resume` takes to go on: nothing after Ctrl-C, else twice the limit reached."""
    if stopped == "interrupted":
        return ""
    kind, _, limit = stopped.partition("budget: ")
    name, _, value = limit.partition("=")
    return None if kind or not value else f" --budget {name}={2 * float(value):.0f}"


def _notices(run_dir: Path) -> list[str]:
    """What the run had to say: which activations it kept, what it fell back to."""
    from tiller.runs.record import read_run

    return [text for kind, text in read_run(run_dir).remarks if kind == "notice"]


def _best_export(run_dir: Path) -> str:
    """The script that draws the picture again, or the picture where no script can (guided runs)."""
    from tiller.runs.export import available
    from tiller.runs.record import read_run

    return "python" if "python" in available(read_run(run_dir)) else "png"


def best_picture(run_dir: Path) -> Path:
    """The best picture of a run; where `best.png` was deleted, the newest of the film."""
    from tiller.runs.record import read_run

    return read_run(run_dir).best_image or run_dir / "images" / "best.png"


def method_of(run_dir: Path) -> tuple[str, bool]:
    """The name of a run's method (what `auto` picked), and whether it lowers the score."""
    from tiller.runs.record import read_run

    record = read_run(run_dir)
    return clean(record.method), record.lowers


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
