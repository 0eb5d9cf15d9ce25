"""Keep the libraries' bars and remarks off the terminal while files of this machine are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from diffusers.utils import logging as of_diffusers
from transformers.utils import logging as of_transformers


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No progress bars, and errors only; what was set before is restored."""
    libraries: tuple[Any, ...] = (of_diffusers, of_transformers)
    before = [(lib, lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries]
    for lib in libraries:
        lib.set_verbosity(logging.ERROR)
        lib.disable_progress_bar()
    try:
        yield
    finally:
        for lib, verbosity, bars in before:
            lib.set_verbosity(verbosity)
            if bars:
                lib.enable_progress_bar()
