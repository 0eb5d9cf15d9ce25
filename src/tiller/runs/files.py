"""Files that are either whole or absent, and operating-system errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiller.core.errors import InvalidInput, RunError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_OTHERS = 256  # files that a process has open besides: libraries, weights, a GPU's


@contextmanager
def explained(path: Path, doing: str, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError inside the block into a RunError with the remedy.

    Args:
        path: the file or folder that is touched.
        doing: what failed, for the message: "write the state".
        needed: bytes that had to be written, where that is known.

    Raises:
        RunError: for every OSError, and nothing else.
    """
    try:
        yield
    except OSError as error:
        raise RunError(_explain(error, path, doing, needed)) from error


def _explain(error: OSError, path: Path, doing: str, needed: int | None) -> str:
    if error.errno in _FULL:
        size = "" if needed is None else f" {size_text(needed)} are needed,"
        return (
            f"cannot {doing}: the disk under {path.parent} is full;{size} "
            f"{size_text(_free(path.parent))} are free. What was saved before is intact: make "
            "room, then `tiller resume` on the run's folder continues where it stands"
        )
    if error.errno == errno.EFBIG:
        size = "" if needed is None else f" ({size_text(needed)})"
        return (
            f"cannot {doing}: {path.name}{size} is over the file size limit of this process or "
            "file system. What was saved before is intact: raise the limit (`ulimit -f`), then "
            "`tiller resume` on the run's folder continues where it stands"
        )
    if error.errno in _FORBIDDEN:
        why = "is read-only" if error.errno == errno.EROFS else "may not be written or read by you"
        return (
            f"cannot {doing}: {path} {why}. Give another folder (`--out`), or change its permission"
        )
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return (
            f"cannot {doing}: {path} or a folder above it is a file, expected a folder. "
            "Give another folder (`--out`), or move the file away"
        )
    if error.errno == errno.EISDIR:
        return f"cannot {doing}: {path} is a folder, expected a file. Give another name (`--out`)"
    if error.errno == errno.ENOENT:
        return f"cannot {doing}: {path} does not exist. Check the path"
    if error.errno == errno.ENAMETOOLONG:
        return f"cannot {doing}: the path is too long. Give a shorter folder (`--out`)"
    return f"cannot {doing}: {path}: {error.strerror or error}. Check the disk, then try again"


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def size_text(size: int) -> str:
    """`size` bytes for people.

    Example:
        >>> size_text(3_000_000_000), size_text(1_500_000), size_text(2_000)
        ('3.0 GB', '1.5 MB', '2.0 kB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def check_writable(path: Path, doing: str) -> None:
    """Refuse now what `write_atomically` could not write in the end; makes the folder.

    Raises:
        RunError: the file cannot be written there.
    """
    with explained(path, doing):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_atomically(path: Path, data: bytes, doing: str, keep_as: Path | None = None) -> None:
    """Put `data` at `path`: beside it first, fsynced, then renamed, so no reader sees a part.

    Args:
        keep_as: where the file that stood at `path` goes; without it, it is replaced.

    Raises:
        RunError: the file cannot be written; what stood at `path` still stands.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explained(path, doing, len(data)):
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if keep_as is not None and path.exists():
                path.replace(keep_as)
            beside.replace(path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                beside.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON that always encodes to UTF-8 (unpaired surrogates are escaped).

    Raises:
        RunError: `value` is not plain data, or holds NaN or infinity.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
        if any("\ud800" <= char <= "\udfff" for char in text):
            text = json.dumps(value, ensure_ascii=True, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"a run records plain data (numbers, strings, lists, dicts), and {error}; "
            "convert it before it is recorded"
        ) from error
    return text


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces; what a run's hash is taken of."""
    return json.dumps(json.loads(to_json(value)), sort_keys=True, separators=(",", ":"))


def allow_files(more: int) -> None:
    """Let this process hold so many files open beside what it has, for runs side by side.

    Raises:
        InvalidInput: the system allows no more.
    """
    wanted = more + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise InvalidInput(
            f"runs side by side need {wanted:,} open files, and the system allows {hard:,} "
            "(ulimit -Hn); give fewer prompts or seeds at once"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
