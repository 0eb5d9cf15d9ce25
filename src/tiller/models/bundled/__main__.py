"""`python -m tiller.models.bundled STAGE`: train the bundled model, one stage or all of them.

Each stage checkpoints about every two minutes into `--work` and resumes from there when the same
command is run again. `all` runs every stage in order, puts the weights into the package and
measures them: some hours on two CPU cores. `restore` puts the package's own parts into `--work`,
from where `unet --steps N` goes on without the checkpoints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

ORDER = ("vae", "clip", "clip-heldout", "preference", "judge", "unet", "assemble", "evaluate")
CACHE = Path("~/.cache/tiller/bundled")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the stage."""
    parser = argparse.ArgumentParser(prog="python -m tiller.models.bundled", description=__doc__)
    parser.add_argument("stage", choices=("scenes", "restore", *ORDER, "all"))
    parser.add_argument("--work", type=Path, default=CACHE, help="checkpoints and parts")
    parser.add_argument("--steps", type=int, help="train for so many steps instead of the plan's")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--target", type=Path, help="where assemble writes and evaluate reads")
    args = parser.parse_args(argv)

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    work = args.work.expanduser()
    for name in ORDER if args.stage == "all" else (args.stage,):
        started = time.monotonic()
        _runner(name, args.target)(work, args.steps)
        print(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min", flush=True)


def _runner(name: str, target: Path | None) -> Callable[[Path, int | None], None]:
    from . import stages

    if name == "assemble":
        from .assemble import WEIGHTS, assemble

        return lambda work, steps: print(assemble(work, target or WEIGHTS))
    if name == "evaluate":
        from .assemble import WEIGHTS
        from .evaluate import evaluate

        def measure(work: Path, steps: int | None) -> None:
            evaluate(target or WEIGHTS)

        return measure
    run: Callable[[Path, int | None], None] = getattr(stages, name.replace("-", "_"))
    return run


if __name__ == "__main__":
    main()
