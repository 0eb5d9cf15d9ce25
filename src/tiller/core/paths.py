"""Paths that people give."""

from __future__ import annotations

import os
from pathlib import Path

from tiller.core.errors import InvalidInput

_SHOWN = 60  # letters of a path that cannot be looked for


def located(path: str | os.PathLike[str]) -> Path:
    """`path`, the home folder in the place of `~`, where the system can look for it.

    Raises:
        InvalidInput: it is too long, in a folder that may not be entered, or an unknown user's.
    """
    try:
        found = Path(path).expanduser()
        found.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        named = os.fspath(path)
        named = named if len(named) <= _SHOWN else f"{named[: _SHOWN - 1]}…"
        raise InvalidInput(f"cannot look for {named!r}: {reason}") from None
    return found
