"""Tables of text lines in one zip file: blocks are decompressed when a line of theirs is asked for.

A zip is read by the standard library and by every file manager, its members carry checksums, and
64 KB blocks keep both the file small and the first answer quick. The whole file is read at once
(3 MB), so no handle stays open: reading is safe across forks and threads.
"""

from __future__ import annotations

import io
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tiller.core.errors import InvalidInput

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same file whenever it is built


class Archive:
    """Read access to the tables of a file written by `write_archive`.

    Raises:
        InvalidInput: the file is damaged or was not written by `write_archive`.
    """

    def __init__(self, data: bytes, name: str) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            names = self._zip.namelist()
        except zipfile.BadZipFile as error:
            raise InvalidInput(
                f"expected an archive of words, got {name=}, which is damaged ({error}); reinstall "
                "tiller, or build the file again with `python -m tiller.words.build`."
            ) from error
        self.name = name
        self._blocks: dict[str, list[str]] = {}
        self._members: dict[str, list[str]] = {}
        for member in names:
            table, _, number = member.partition("/")
            if number:
                self._members.setdefault(table, []).append(member)

    def text(self, member: str) -> str:
        """A whole member.

        Raises:
            InvalidInput: it is not there or is damaged.
        """
        try:
            return self._zip.read(member).decode()
        except (KeyError, zipfile.BadZipFile) as error:
            raise InvalidInput(
                f"expected {member=} in {self.name}, got an archive without it or a damaged one; "
                "build it again with `python -m tiller.words.build`."
            ) from error

    def block(self, table: str, number: int) -> list[str]:
        """The lines of one block; kept once read."""
        member = self._members[table][number]
        lines = self._blocks.get(member)
        if lines is None:
            lines = self._blocks[member] = self.text(member).split("\n")
        return lines

    def lines(self, table: str) -> Iterator[str]:
        """All lines of a table, in order."""
        for number in range(len(self._members[table])):
            yield from self.block(table, number)


class SortedTable:
    """A table sorted by the key before each line's first tab; found by bisection over blocks."""

    def __init__(self, archive: Archive, table: str) -> None:
        self._archive, self._table = archive, table
        self._firsts = archive.text(f"{table}.index").split("\n")
        self._found: dict[int, dict[str, str]] = {}

    def get(self, key: str) -> str | None:
        """What follows the key's tab, or None where the key is not there."""
        number = bisect_right(self._firsts, key) - 1
        if number < 0:
            return None
        block = self._found.get(number)
        if block is None:
            lines = self._archive.block(self._table, number)
            block = self._found[number] = dict(line.split("\t", 1) for line in lines)
        return block.get(key)


def write_archive(
    path: Path, texts: dict[str, str], tables: Mapping[str, Sequence[str]], per_block: int
) -> None:
    """Write texts and tables; each table in members `name/0000`, ... of `per_block` lines.

    A table whose lines hold a tab also gets `name.index`: the key of each block's first line.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:

        def put(name: str, text: str) -> None:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            file.writestr(info, text.encode(), zipfile.ZIP_DEFLATED, 9)

        for name, text in texts.items():
            put(name, text)
        for name, lines in tables.items():
            starts = range(0, len(lines), per_block)
            put(f"{name}.index", "\n".join(lines[start].split("\t", 1)[0] for start in starts))
            for number, start in enumerate(starts):
                put(f"{name}/{number:04}", "\n".join(lines[start : start + per_block]))
