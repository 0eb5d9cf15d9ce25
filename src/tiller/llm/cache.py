"""Replies on disk, by hash of the whole request: nothing is asked, or paid for, twice.

One JSON file a reply, written beside its place and renamed, so that two processes may share the
folder and a crash leaves no half file. A file that cannot be read back is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiller.core.errors import TillerNotice
from tiller.core.paths import located
from tiller.llm.base import Reply


def default_folder() -> Path:
    """`$TILLER_CACHE/llm`; without that variable `~/.cache/tiller/llm` (`$XDG_CACHE_HOME`)."""
    own = os.environ.get("TILLER_CACHE")
    if own:
        return located(own) / "llm"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tiller" / "llm"


@dataclass(frozen=True)
class ReplyCache:
    """Replies by request.

    Attributes:
        folder: made with the first reply.

    Example:
        >>> cache = ReplyCache(Path("/nonexistent"))
        >>> cache.load({"model": "m"}) is None
        True
    """

    folder: Path

    def path(self, request: Mapping[str, Any]) -> Path:
        """The file of a request, which is plain data: model, messages, temperature, seed."""
        text = json.dumps(request, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return self.folder / f"{digest}.json"

    def load(self, request: Mapping[str, Any]) -> Reply | None:
        """The reply that is kept, marked as cached, or None."""
        try:
            tree = json.loads(self.path(request).read_text(encoding="utf-8"))
            if tree["request"] != request:
                return None
            kept = tree["reply"]
            reply = Reply(
                kept["text"], kept["prompt_tokens"], kept["completion_tokens"], cached=True
            )
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        counts = (reply.prompt_tokens, reply.completion_tokens)
        sound = isinstance(reply.text, str) and all(type(n) is int and n >= 0 for n in counts)
        return reply if sound else None

    def save(self, request: Mapping[str, Any], reply: Reply) -> None:
        """Keep a reply; a folder that cannot be written costs a notice, not the run."""
        kept = {
            "text": reply.text,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        }
        text = json.dumps({"request": request, "reply": kept})
        path = self.path(request)
        written = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, written = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(written).replace(path)
        except OSError as error:
            if written is not None:
                with suppress(OSError):
                    Path(written).unlink()
            warnings.warn(
                f"the LLM's replies cannot be kept in {self.folder} ({error.strerror or error}), "
                "so a resumed run asks again; set TILLER_CACHE to a folder that can be written",
                TillerNotice,
                stacklevel=4,
            )

    def drop(self, request: Mapping[str, Any]) -> None:
        """Keep nothing of a request."""
        with suppress(OSError):
            self.path(request).unlink()
