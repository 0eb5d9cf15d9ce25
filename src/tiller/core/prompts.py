"""Files of prompts, as people write them."""

from __future__ import annotations

import warnings
from pathlib import Path

from tiller.core.errors import InvalidInput, TillerNotice


def prompts_in(path: str | Path) -> list[str]:
    """The prompts of a text file: one a line, empty lines and comments (#) left out.

    Raises:
        InvalidInput: the file cannot be read, or has no prompt.

    Warns:
        TillerNotice: comments were left out.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None)
        reason = reason or "it is not text in UTF-8; save it as UTF-8"
        raise InvalidInput(f"cannot read the prompts in {path}: {reason}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if not line.startswith("#")]
    if not found:
        raise InvalidInput(f"expected a prompt a line in {path}, found none")
    if comments := len(lines) - len(found):
        warnings.warn(
            f"left out {comments} line{'s' * (comments > 1)} of {path} that "
            f"begin{'s' * (comments == 1)} with #, as a comment",
            TillerNotice,
            stacklevel=2,
        )
    return found
