"""How a command ends: what it prints, where, and its exit code.

0 done, 1 our bug, 2 the user's input, 130 interrupted, 141 the reader of our output went away.
With `--json` standard output carries exactly one object, whatever happens: all else that prints,
libraries and rewards included, is sent to standard error, and the object is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from tiller.core.errors import RewardError, TillerError
from tiller.terminal import clean, one_line, quoted, shown, stderr_console, stdout_console

_NOTICE = 400  # characters of a notice that are shown: some quote the whole prompt
BUG, INPUT, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141

_MEMORY = (
    "try --set checkpoint=recompute, a method with fewer candidates at once or a smaller model"
)


class Session:
    """One command under way.

    Attributes:
        as_json: standard output gets one JSON object and nothing else.
        console: standard error.
        run_dir: the run's folder, once it is known; it is named where something goes wrong.
        again: the command that goes on after a reward failed; None for `tiller resume`.
        code: the exit code.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console: Console = stderr_console()
        self.run_dir: Path | None = None
        self.again: str | None = None
        self.code = 0
        self.answered: dict[str, Any] | None = None

    def answer(self, data: dict[str, Any], *view: RenderableType) -> None:
        """The command's result: `data` with `--json`, else what people see of it."""
        if self.as_json:
            self.answered = data
            return
        console = stdout_console()
        for part in view:
            console.print(part, soft_wrap=isinstance(part, str))

    def notice(self, text: str) -> None:
        """One line that stops nothing."""
        line = one_line(text)
        line = line if len(line) <= _NOTICE else f"{line[:_NOTICE]}…"
        self.console.print(Text(f"notice: {line}"))

    def fail(self, text: str, code: int) -> None:
        """One line that says what is wrong; the command ends with `code`."""
        self.code = code
        line = one_line(text)
        self.console.print(Text.assemble(("error: ", "bold red"), line))
        run = None if self.run_dir is None else str(self.run_dir)
        self.answered = {"error": line, "run": run}

    def bug(self, error: Exception) -> None:
        """One line that asks for a report; the traceback goes to a file."""
        self.fail(_bug(error, self.run_dir), BUG)


@contextmanager
def session(as_json: bool) -> Iterator[Session]:
    """Run a command's body; raises `typer.Exit` with the exit code it has earned."""
    now = Session(as_json)
    try:
        with _stdout_kept_clear(as_json), _one_line_warnings(now.notice):
            try:
                yield now
            except TillerError as error:
                now.run_dir = now.run_dir or _noted_run(error)
                now.fail(str(error), INPUT)
                if isinstance(error, RewardError):
                    _say_kept(now)
            except KeyboardInterrupt:
                now.fail(_interrupted(now.run_dir), INTERRUPTED)
            except BrokenPipeError:
                raise
            except Exception as error:
                if _out_of_memory(error):
                    now.fail(f"out of memory: {_MEMORY}", INPUT)
                else:
                    now.bug(error)
        if as_json:
            print(json.dumps(now.answered), flush=True)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        raise typer.Exit(BROKEN_PIPE) from None
    if now.code:
        raise typer.Exit(now.code)


@contextmanager
def told_on_interrupt(tell: Callable[[str], None]) -> Iterator[None]:
    """Say at once that Ctrl-C was seen: the step under way may take long to end.

    Whoever handles the signal is left alone: this listens on the interpreter's wakeup pipe.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def listen() -> None:
        while byte := os.read(read, 1):
            graceful = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            if byte[0] == signal.SIGINT and graceful:
                tell("stopping after this step, the best is kept; Ctrl-C again stops at once")
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        listener.join()
        os.close(read)


def quiet_libraries() -> None:
    """Ask the libraries for errors only. Call before they are imported.

    What the user has set in the environment stays.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


@contextmanager
def _stdout_kept_clear(wanted: bool) -> Iterator[None]:
    """Send what is printed meanwhile to standard error, child processes included."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # closed descriptors: only Python's own can be moved
            kept = os.dup(1)
            os.dup2(2, 1)
            stack.callback(_put_back, kept)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _discard_output() -> None:
    """Nobody reads our output any more: let what is still buffered go nowhere, without a word."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _put_back(kept: int) -> None:
    os.dup2(kept, 1)
    os.close(kept)


@contextmanager
def _one_line_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Show every warning as one line, the same text once."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = one_line(str(message))
        if text not in seen:
            seen.add(text)
            tell(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # TillerNotice is one
        warnings.showwarning = show
        yield


def _noted_run(error: BaseException) -> Path | None:
    """The run that an error says it belongs to."""
    notes = [n.removeprefix("run: ") for n in getattr(error, "__notes__", ()) if "run: " in n]
    return Path(notes[-1]) if notes else None


def _say_kept(now: Session) -> None:
    """After a reward failed, where the rounds before are and how they go on."""
    if now.run_dir is not None and (now.run_dir / "state.safetensors").is_file():
        again = now.again or f"tiller resume {quoted(now.run_dir)}"
        kept = f"kept: {shown(now.run_dir)}, with its best so far"
        now.console.print(Text(clean(f"{kept}. With the same reward, it goes on with: {again}")))


def _interrupted(run_dir: Path | None) -> str:
    if run_dir is None:
        return "interrupted before anything was drawn"
    return f"interrupted; the best so far is kept. Go on with: tiller resume {quoted(run_dir)}"


def _out_of_memory(error: Exception) -> bool:
    """Whether it is the machine that is too small; torch need not be loaded to ask."""
    names = {kind.__name__ for kind in type(error).__mro__}
    allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or "OutOfMemoryError" in names or allocator


def _bug(error: Exception, run_dir: Path | None) -> str:
    """Keep the traceback in a file and say where; `TILLER_DEBUG=1` shows it as well."""
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("TILLER_DEBUG") == "1":
        sys.stderr.write(trace)
    kept = _written(trace, run_dir)
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return (
        f"this is a bug in tiller: {what}. Please report it with {kept}"
        + (f" and the run folder {run_dir}" if run_dir is not None else "")
        + "; TILLER_DEBUG=1 shows the traceback"
    )


def _written(trace: str, run_dir: Path | None) -> str:
    """The file that holds the traceback: in the run's folder, else among temporary files."""
    data = trace.encode("utf-8", errors="backslashreplace")
    if run_dir is not None:
        with contextlib.suppress(OSError):
            (run_dir / "traceback.txt").write_bytes(data)
            return str(run_dir / "traceback.txt")
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix="tiller-traceback-", suffix=".txt")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return name
    return "the traceback (TILLER_DEBUG=1; no file could be written)"
