"""`python -m tiller.models.bundled STAGE`: train the bundled model, one stage or all of them.

Each stage checkpoints about every two minutes into `--work` and resumes from there when the same
command is run again. `all` runs every stage, puts the weights into the package (or `--target`) and
measures them: some hours on two CPU cores, some minutes on a GPU. `restore` puts the parts of the
package (or `--target`) into `--work`, from where `unet --steps N` goes on without the checkpoints.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

# stage -> the stages whose results it reads
NEEDS: dict[str, tuple[str, ...]] = {
    "vae": (),
    "clip": ("vae",),
    "unet": ("clip",),
    "clip-heldout": ("vae",),
    "preference": ("clip",),
    "judge": ("vae",),
}
CACHE = Path("~/.cache/tiller/bundled")
FINISH = 75.0  # seconds kept of --within for putting the weights together and measuring them


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the stage."""
    parser = argparse.ArgumentParser(prog="python -m tiller.models.bundled", description=__doc__)
    stages = ("scenes", "restore", *NEEDS, "assemble", "evaluate", "all")
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, default=CACHE, help="checkpoints and parts")
    parser.add_argument("--steps", type=int, help="train for so many steps instead of the plan's")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--target", type=Path, help="the folder of the weights, if not the package")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--workers", type=int, help="processes that draw scenes ahead")
    parser.add_argument("--jobs", type=int, help="stages that `all` runs side by side")
    parser.add_argument("--eager", action="store_true", help="no CUDA graph")
    parser.add_argument(
        "--within", type=float, help="seconds to be done in, with fewer steps of unet if need be"
    )
    args = parser.parse_args(argv)
    args.work = args.work.expanduser()
    started = time.monotonic()
    if args.stage == "all":
        _all(args, started)
    else:
        _one(args, started)
    print(f"{args.stage}: done in {(time.monotonic() - started) / 60:.1f} min", flush=True)


def _one(args: argparse.Namespace, started: float) -> None:
    import torch

    from . import stages
    from .assemble import WEIGHTS, assemble
    from .evaluate import evaluate
    from .train import Machine

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    target = args.target or WEIGHTS
    if args.stage == "assemble":
        print(assemble(args.work, target))
    elif args.stage == "evaluate":
        evaluate(target, device)
    elif args.stage == "restore":
        stages.restore(args.work, target)
    else:
        workers = args.workers
        if workers is None:
            can = "fork" in multiprocessing.get_all_start_methods()
            workers = min(4, (os.cpu_count() or 1) // 4) if can else 0
        machine = Machine(device, workers, graph=not args.eager)
        if args.within:
            machine = Machine(device, workers, not args.eager, started + args.within)
        run = getattr(stages, args.stage.replace("-", "_"))
        run(args.work, args.steps, machine)


def _all(args: argparse.Namespace, started: float) -> None:
    """Every stage in a process of its own, begun as soon as what it reads is there."""
    import torch

    from .stages import load_tokenizer

    load_tokenizer(args.work)  # learned once, before two stages want it
    jobs = args.jobs or (3 if torch.cuda.is_available() and args.device != "cpu" else 1)
    running: dict[str, subprocess.Popen[bytes]] = {}
    done: set[str] = set()
    try:
        while len(done) < len(NEEDS):
            ready = [
                name for name, needs in NEEDS.items()
                if name not in done and name not in running and done.issuperset(needs)
            ]  # fmt: skip
            for name in ready[: jobs - len(running)]:
                running[name] = subprocess.Popen(_command(args, name, started))
            time.sleep(0.1)
            for name, process in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                if code:
                    raise SystemExit(f"{name} failed; what is done is kept in {args.work}")
                done.add(name)
                del running[name]
    finally:
        for process in running.values():
            process.terminate()
    for name in ("assemble", "evaluate"):
        subprocess.run(_command(args, name, started), check=True)


def _command(args: argparse.Namespace, stage: str, started: float) -> list[str]:
    command = [sys.executable, "-m", "tiller.models.bundled", stage]
    for name in ("work", "steps", "threads", "target", "device", "workers"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name}", str(value)]
    if args.eager:
        command.append("--eager")
    if args.within and stage == "unet":
        left = args.within - (time.monotonic() - started) - FINISH
        command += ["--within", f"{max(1.0, left):.0f}"]
    return command


if __name__ == "__main__":
    main()
