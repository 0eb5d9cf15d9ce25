"""`tiller` in processes that start at once: a fork server has imported torch for them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = [
    "tiller.api",
    "tiller.cli",
    "tiller.runs.report",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers",
]


@dataclass(frozen=True)
class Child:
    """A `tiller` process under way; what it prints goes to two files."""

    process: BaseProcess
    stdout: Path
    stderr: Path

    def wait(self, seconds: float = 60) -> tuple[int, str, str]:
        """Its exit code and what it printed."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running: {self.stderr.read_text()}"
        return self.process.exitcode, self.stdout.read_text(), self.stderr.read_text()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something that this process brings about."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.is_alive(), f"it ended: {self.stderr.read_text()}"
            assert time.monotonic() < deadline, f"too slow: {self.stderr.read_text()}"
            time.sleep(0.005)


def start(argv: list[str], folder: Path) -> Child:
    """Start `tiller argv`; its output is kept in `folder`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    stdout, stderr = folder / "stdout.txt", folder / "stderr.txt"
    process = context.Process(target=_run, args=(argv, str(stdout), str(stderr)), daemon=True)
    process.start()
    return Child(process, stdout, stderr)


def _run(argv: list[str], stdout: str, stderr: str) -> None:
    """In the child: real descriptors, as a shell would redirect them."""
    for path, target in ((stdout, 1), (stderr, 2)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, target)
        os.close(handle)
    import torch

    from tiller.cli import main

    torch.set_num_threads(1)
    sys.argv = ["tiller", *argv]
    main()
