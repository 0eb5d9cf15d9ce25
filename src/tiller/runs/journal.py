"""The journal: what happened, one JSON object a line, appended and never changed.

Each line is on the disk before `append` returns. A crash can therefore only damage the last line,
and a damaged last line is dropped; damage anywhere else is an error that names the line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tiller.core.errors import RunError
from tiller.runs.files import explained, to_json, write_atomically

Entry = dict[str, Any]


class Journal:
    """A file of JSON lines with two methods, `append` and `read`.

    Example:
        >>> import tempfile
        >>> journal = Journal(Path(tempfile.mkdtemp()) / "journal.jsonl")
        >>> journal.append({"kind": "step", "step": 1})
        >>> journal.read()
        [{'kind': 'step', 'step': 1}]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def append(self, entry: Entry) -> None:
        """Add one line; it is on the disk when this returns.

        Raises:
            RunError: it cannot be written; the lines before it are intact.
        """
        line = to_json(entry).encode() + b"\n"
        with explained(self.path, "write the journal", len(line)):
            if self._file is None:
                self.repair()
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            end = os.fstat(self._file).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, end)  # needs no room: no half line stays behind
                raise

    def read(self) -> list[Entry]:
        """All whole lines, oldest first; a torn last line is left out, no file means no lines.

        Raises:
            RunError: another line is damaged, named by its number.
        """
        return self._read()[0]

    def repair(self) -> str | None:
        """Cut a torn last line off the file, so that the next line starts on its own.

        Returns:
            What was done, for people, or None if nothing was wrong.
        """
        _, whole, torn = self._read()
        if not torn:
            return None
        with explained(self.path, "repair the journal"):
            os.truncate(self.path, whole)
        return f"the last line of {self.path.name} was torn by a crash; it was dropped"

    def rewind(self, step: int) -> None:
        """Drop what happened after round `step`; the file is replaced in one move.

        Lines about later rounds go, and with them the notices and errors among them.
        """
        entries = self.read()
        kept = entries
        for index, entry in enumerate(entries):
            if entry.get("kind") == "step" and entry.get("step", 0) > step:
                kept = entries[:index]
                break
        if len(kept) < len(entries):
            self.close()
            lines = "".join(to_json(entry) + "\n" for entry in kept)
            write_atomically(self.path, lines.encode(), "write the journal")

    def clear(self) -> None:
        """Drop every line: the run begins again."""
        self.close()
        write_atomically(self.path, b"", "write the journal")

    def close(self) -> None:
        """Let go of the file; a later `append` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self) -> tuple[list[Entry], int, bool]:
        """The whole lines, where they end in the file, and whether a torn one follows."""
        if not self.path.exists():
            return [], 0, False
        with explained(self.path, "read the journal"):
            data = self.path.read_bytes()
        lines = data.split(b"\n")
        unfinished = lines.pop()
        entries: list[Entry] = []
        whole = 0
        for number, line in enumerate(lines, 1):
            entry = _parse(line)
            if entry is None:
                if number == len(lines) and not unfinished:
                    return entries, whole, True
                raise RunError(
                    f"{self.path}, line {number}: expected one JSON object, got "
                    f"{line[:60].decode(errors='replace')!r}. Restore the file from a copy, or "
                    "delete that line: it only serves the report"
                )
            entries.append(entry)
            whole += len(line) + 1
        return entries, whole, bool(unfinished)


def _parse(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
