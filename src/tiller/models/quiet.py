"""Keep the libraries' bars and remarks off the terminal while files of this machine are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No bars but those of downloads, and errors only; what was set before is restored."""
    # Here, since they take seconds to import: who only looks or mistypes should not wait for them.
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub import utils as hub
    from transformers.utils import logging as of_transformers

    libraries: tuple[Any, ...] = (of_diffusers, of_transformers)
    before = [(lib, lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries]
    downloads = not hub.are_progress_bars_disabled()
    for lib in libraries:
        lib.set_verbosity(logging.ERROR)
        lib.disable_progress_bar()  # transformers' switches off the hub's as well
    if downloads:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        for lib, verbosity, bars in before:
            lib.set_verbosity(verbosity)
            if bars:
                lib.enable_progress_bar()
        if not downloads:
            hub.disable_progress_bars()
