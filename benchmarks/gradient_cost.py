"""What a gradient through a trajectory costs, as ratios to the plain sample, in one run.

    python benchmarks/gradient_cost.py --json

Every row is timed in turn in each round, so that a slow minute of the machine hits all of them;
a row's ratio is the median over rounds of its time divided by the plain sample's in that round.
All rows draw and decode the same candidate with guidance on; the gradient is that of the mean
pixel to x_T. "naive" rows are what one writes first: `torch.utils.checkpoint` around each step.

`--clock cpu` takes the process's processor time in place of the wall's, for a machine that is
shared. Memory is the growth of the resident set over the loaded model, a process for each row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from diffusers import AutoencoderTiny, UNet2DConditionModel

from tiller.models import Gradient, Trajectory, load_model
from tiller.models.base import FrozenModel
from tiller.models.guidance import guided
from tiller.models.loader import BUNDLED
from tiller.testing.fake_pipeline import fake_pipeline

TARGETS = {
    "full, recomputed": 3.4,
    "full, kept": 2.2,
    "shortcut(T/2, 1)": 0.7,
}
MEMORY_TARGET = 1.1
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def random_model() -> FrozenModel:
    """Random weights in sizes near the bundled model's, for where that is not trained yet."""
    torch.manual_seed(0)
    pipe = fake_pipeline()
    pipe.unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(96, 192, 288),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 2, 3),
        num_decoder_blocks=(3, 3, 0),
        latent_channels=4,
    )
    pipe.vae_scale_factor = 4
    return load_model(pipe)


def model_of(name: str) -> FrozenModel:
    """The model to measure: a name for `load_model`, or "random"."""
    return random_model() if name == "random" else load_model(name)


class Job:
    """One candidate, its conditioning, and the ways to draw it."""

    def __init__(self, model: FrozenModel, steps: int) -> None:
        self.model = model
        guidance = max(2.0, model.defaults.guidance_scale)
        settings = replace(model.defaults, num_inference_steps=steps, guidance_scale=guidance)
        settings = replace(settings, scheduler="ddim", eta=0.0)
        self.settings = settings
        self.path = Trajectory(model, settings)
        self.noise = self.path.sample_noise(torch.Generator().manual_seed(0))[None].to(model.device)
        self.conditioning = model.encode(["a black rabbit on a green background"])

    @torch.no_grad()
    def plain(self) -> None:
        """The picture, without a gradient."""
        self.model.decode(self.path.run(self.noise, self.conditioning))

    def gradient(self, mode: Gradient, checkpoint: Any) -> None:
        """The picture and the gradient of its mean."""
        noise = self.noise.clone().requires_grad_(mode.mode == "full")
        conditioning = self.conditioning
        if mode.mode != "full":  # x_T is out of reach: the text is what is searched
            embeds = conditioning.prompt_embeds.clone().requires_grad_()
            conditioning = replace(conditioning, prompt_embeds=embeds)
        latents = self.path.run(noise, conditioning, gradient=mode, checkpoint=checkpoint)
        self.model.decode(latents).mean().backward()

    def naive(self, recompute: bool) -> None:
        """The same gradient written plainly."""
        noise = self.noise.clone().requires_grad_()
        denoiser = guided(self.model, self.conditioning, self.settings.guidance_scale)
        scheduler = self.path._scheduler

        def one(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            prediction = denoiser(latents, t, *denoiser.inputs)
            return scheduler.step(prediction, t, latents, return_dict=False)[0]

        latents = noise[:, 0]
        for t in self.path.timesteps:
            if recompute:
                latents = torch.utils.checkpoint.checkpoint(one, latents, t, use_reentrant=False)
            else:
                latents = one(latents, t)
        self.model.decode(latents).mean().backward()


def ratios(
    model: FrozenModel, steps: int, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of the plain sample and the ratio of each row to it."""
    job = Job(model, steps)
    shortcut = Gradient.shortcut(steps // 2, 1)
    rows: dict[str, Callable[[], None]] = {
        "plain": job.plain,
        "full, recomputed": lambda: job.gradient(Gradient.full(), "recompute"),
        "full, kept": lambda: job.gradient(Gradient.full(), "keep"),
        "full, half kept": lambda: job.gradient(Gradient.full(), steps // 2),
        "last(1)": lambda: job.gradient(Gradient.last(1), "auto"),
        "shortcut(T/2, 1)": lambda: job.gradient(shortcut, "auto"),
        "naive, recomputed": lambda: job.naive(recompute=True),
        "naive, kept": lambda: job.naive(recompute=False),
    }
    for row in rows.values():  # the first call of each warms up caches
        row()
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            start = clock()
            row()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    plain = seconds["plain"]
    return {
        "plain_seconds": statistics.median(plain),
        "ratio": {
            name: statistics.median(t / p for t, p in zip(times, plain, strict=True))
            for name, times in seconds.items()
            if name != "plain"
        },
        "ratio_range": {
            name: [
                min(t / p for t, p in zip(times, plain, strict=True)),
                max(t / p for t, p in zip(times, plain, strict=True)),
            ]
            for name, times in seconds.items()
            if name != "plain"
        },
    }


def peak_bytes(name: str, steps: int, checkpoint: Any) -> dict[str, int]:
    """The process's peak during one full gradient, and its growth over the loaded model."""
    model = model_of(name)
    job = Job(model, steps)
    job.plain()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job.gradient(Gradient.full(), checkpoint)
        peak = torch.cuda.max_memory_allocated()
        return {"peak": peak, "growth": peak - before}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = status_bytes("VmRSS")
    job.gradient(Gradient.full(), checkpoint)
    peak = status_bytes("VmHWM")
    return {"peak": peak, "growth": peak - before}


def status_bytes(field: str) -> int:
    """A size from the process's status file. (`ru_maxrss` starts at the parent's peak: useless.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"the kernel does not report {field}; the memory rows need Linux")


def memory(name: str, threads: int) -> dict[str, Any]:
    """Peaks at T = 10 and T = 100 with recomputation, and kept for comparison; a process each."""
    found: dict[str, dict[str, int]] = {}
    for row, steps, checkpoint in (
        ("recomputed, T=10", 10, "recompute"),
        ("recomputed, T=100", 100, "recompute"),
        ("kept, T=10", 10, "keep"),
    ):
        command = [sys.executable, __file__, "--peak", str(steps), "--model", name]
        command += ["--threads", str(threads), "--checkpoint", checkpoint]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[row] = json.loads(done.stdout.splitlines()[-1])
    low, high = found["recomputed, T=10"], found["recomputed, T=100"]
    return {"bytes": found, "ratio": high["growth"] / low["growth"]}


def main() -> None:
    """Measure, print, and say which targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = "emoji" if (BUNDLED["emoji"] / "model_index.json").is_file() else "random"
    parser.add_argument("--model", default=default, help='for load_model, or "random"')
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", default="recompute", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak_bytes(arguments.model, arguments.peak, arguments.checkpoint)))
        return
    model = model_of(arguments.model)
    measured = {
        "model": arguments.model,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "device": str(model.device),
        "dtype": str(model.dtype),
        "machine": f"{platform.machine()} {platform.system()}, torch {torch.__version__}",
        "date": datetime.now(UTC).date().isoformat(),
        "clock": arguments.clock,
        **ratios(model, arguments.steps, arguments.rounds, CLOCKS[arguments.clock]),
        "memory": memory(arguments.model, arguments.threads),
    }
    measured["targets"] = {
        **{row: [measured["ratio"][row], most] for row, most in TARGETS.items()},
        "memory T=100 / T=10": [measured["memory"]["ratio"], MEMORY_TARGET],
    }
    measured["met"] = all(got <= most for got, most in measured["targets"].values())
    if arguments.json:
        print(json.dumps(measured, indent=2))
        return
    print(
        f"{measured['model']}, T = {measured['steps']}, {measured['machine']}, {measured['date']}"
    )
    print(f"plain sample: {measured['plain_seconds']:.3f} s")
    for row, ratio in measured["ratio"].items():
        low, high = measured["ratio_range"][row]
        target = f"  target {TARGETS[row]}" if row in TARGETS else ""
        print(f"  {row:20s} {ratio:5.2f}  ({low:.2f} to {high:.2f}){target}")
    print(f"  memory T=100 / T=10  {measured['memory']['ratio']:5.2f}  target {MEMORY_TARGET}")


if __name__ == "__main__":
    main()
