"""What a gradient step costs at Stable Diffusion's size: seconds, peak memory, share of the peak.

    python benchmarks/dno/cost.py [--dtypes bf16 fp16] [--budgets 15 24 80 140] [--seconds 60]
        [--save cost.json] [--figure cost.svg] [--json]
    python benchmarks/dno/cost.py --model emoji --dtypes fp32 --steps 20   # on a CPU too
    python benchmarks/dno/cost.py --tiny                  # a fake model, to try the script itself

The networks have SD 1.5's configuration and random weights, which cost what trained ones do:
512x512, 50 steps of DDIM with eta = 1, guidance. For each dtype: a plain picture, a gradient step
with every step recomputed, and with as many kept as fit each memory budget (GB), which is enforced:
the process gets no more. The share of the peak is the arithmetic that the forwards and backwards
need, divided by the seconds, divided by the rate of a large matrix product in the same dtype,
measured in the same run. The probability regulariser is timed beside them, from a noise in main
memory and back, as in a run. Any CUDA machine will do; what it has no room for is said in the
table. Medians of `--repeat` runs, of fewer once `--seconds` are over. `--save` is written after
each row.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from tiller.core.rng import Draw
from tiller.models import Gradient, Trajectory, load_model
from tiller.models.base import Conditioning, FrozenModel, SamplerSettings
from tiller.spaces.probability import Prno
from tiller.testing.fake_pipeline import fake_pipeline

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GB = 1e9
RECOMPUTED = "gradient step, all recomputed"


def stable_diffusion(dtype: torch.dtype, device: str, tiny: bool) -> FrozenModel:
    """SD 1.5's UNet and VAE with random weights; the text encoder is never asked."""
    torch.manual_seed(0)
    pipe = fake_pipeline()
    if not tiny:
        with torch.device(device):  # a minute on a CPU
            pipe.unet = UNet2DConditionModel(
                sample_size=64, cross_attention_dim=768, attention_head_dim=8
            ).to(dtype)
            pipe.vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                sample_size=512,
            ).to(dtype)
        pipe.vae_scale_factor = 8
    return load_model(pipe.to(device, dtype))


class Job:
    """One candidate: its noise, its words, and the ways to draw it."""

    def __init__(self, model: FrozenModel, steps: int, size: int) -> None:
        settings = SamplerSettings(steps, 7.5, eta=1.0, height=size, width=size)
        self.model, self.path = model, Trajectory(model, settings)
        generator = torch.Generator().manual_seed(0)
        noise = self.path.sample_noise(generator)[None]
        self.noise = noise.to(model.device, model.dtype)
        width = int(model.pipeline.unet.config.cross_attention_dim)  # type: ignore[attr-defined]
        words = torch.randn(2, 77, width, generator=generator).to(model.device, model.dtype)
        self.words = Conditioning(words[:1], words[1:])

    @torch.no_grad()
    def plain(self) -> None:
        """A picture without a gradient."""
        self.model.decode(self.path.run(self.noise, self.words))

    def step(self, **how: Any) -> None:
        """A picture and the gradient of its mean to all of its noise."""
        noise = self.noise.clone().requires_grad_()
        latents = self.path.run(noise, self.words, gradient=Gradient.full(), **how)
        pictures = self.model.decode(latents)
        torch.autograd.grad(pictures.float().mean(), noise)

    def flops(self) -> float:
        """Arithmetic of the denoiser in one picture, both branches."""
        short = Trajectory(self.model, replace(self.path.settings, num_inference_steps=2))
        noise = torch.zeros(1, *short.noise_shape).to(self.noise)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            short.run(noise, self.words)
        return counter.get_total_flops() / 2 * self.path.num_steps


@dataclass
class Bench:
    """The rows so far, and the time that is left for repetitions."""

    options: argparse.Namespace
    device: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.device == "cuda"

    def measured(self, function: Callable[[], object], repeat: int) -> tuple[float, float]:
        """The median of some runs in seconds, and the peak memory in GB."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        while len(times) < repeat and not (times and self.late()):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / GB if self.cuda else 0.0
        return statistics.median(times), peak

    def late(self) -> bool:
        """Whether the time for repetitions is over."""
        return time.perf_counter() - self.started > self.options.seconds

    def wait(self) -> None:
        """Until the GPU has done what it was told."""
        if self.cuda:
            torch.cuda.synchronize()

    def add(self, dtype: str, case: str, **found: Any) -> None:
        """Keep a row, show it, and write all of them where that is asked for."""
        self.rows.append({"dtype": dtype, "case": case, **found})
        shown = ", ".join(f"{k} {v:.3g}" for k, v in found.items() if isinstance(v, float))
        print(f"{dtype} {case}: {shown} {found.get('note', '')}", file=sys.stderr, flush=True)
        if self.options.save:
            self.options.save.write_text(self.text() + "\n")

    def text(self) -> str:
        """All rows as one JSON object."""
        about = {
            "machine": torch.cuda.get_device_name() if self.cuda else "cpu",
            "torch": torch.__version__,
            "steps": self.options.steps,
            "date": datetime.now(UTC).date().isoformat(),
            "claim": claim(self.rows),
        }
        return json.dumps({"about": about, "rows": self.rows}, indent=1)


def peak_rate(bench: Bench, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    n = 8192 if bench.cuda else 512
    a = torch.randn(n, n, device=bench.device, dtype=dtype)

    def ten() -> None:
        for _ in range(10):
            a @ a

    ten()
    seconds, _ = bench.measured(ten, 5)
    return 10 * 2 * n**3 / seconds


def measure(bench: Bench, name: str) -> None:
    """The rows of one dtype, those that every card has room for first."""
    options, dtype = bench.options, DTYPES[name]
    if options.model:
        model = load_model(options.model, dtype=dtype)
        size = model.defaults.height
    else:
        model = stable_diffusion(dtype, bench.device, options.tiny)
        size = 16 if options.tiny else 512
    replays, model.replays = model.replays, None  # first one kernel at a time
    job = Job(model, options.steps, size)
    short = Job(model, 2, size)
    for checkpoint in ("recompute", "keep"):  # libraries choose their kernels at the first call
        short.step(checkpoint=checkpoint)
    peak, flops = peak_rate(bench, dtype), job.flops()

    def row(case: str, passes: float, seconds: float, memory: float, **more: Any) -> None:
        share = passes * flops / seconds / peak
        found = {"seconds": seconds, "peak_gb": memory, "passes": passes, "share_of_peak": share}
        bench.add(name, case, **found, **more)

    seconds, memory = bench.measured(job.plain, options.repeat)
    row("plain picture", 1.0, seconds, memory, peak_tflops=peak / 1e12)
    step, least = bench.measured(lambda: job.step(checkpoint="recompute"), options.repeat)
    row(RECOMPUTED, 3.0, step, least)
    _prno(bench, name, job, step)
    if replays is not None:
        model.replays = replays
        for _ in range(2):  # the second time a shape is met it is recorded
            job.plain()
            job.step()
        seconds, memory = bench.measured(job.plain, options.repeat)
        row("plain picture, replayed", 1.0, seconds, memory)
        seconds, memory = bench.measured(lambda: job.step(checkpoint="recompute"), options.repeat)
        row("gradient step, all recomputed and replayed", 3.0, seconds, memory)
        model.replays = None
    for budget in sorted(options.budgets, key=lambda b: abs(b - 80)):
        case = f"gradient step within {budget:g} GB"
        try:
            seconds, memory = _within(bench, job, budget, least)
        except torch.cuda.OutOfMemoryError:
            bench.add(name, case, note="not on this card")
            continue
        plan = job.path.plan
        assert plan is not None
        passes = 2 + plan.recomputed / max(1, plan.steps)  # what was kept needs two, else three
        row(case, passes, seconds, memory, kept=plan.kept, plan=str(plan))


def _within(bench: Bench, job: Job, budget: float, least: float) -> tuple[float, float]:
    """Seconds and GB with as many steps kept as `budget` GB have room for.

    Raises:
        OutOfMemoryError: the card has less, or that is too little for any gradient.
    """
    if not bench.cuda:
        return bench.measured(lambda: job.step(memory_budget=int(budget * GB)), 1)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    if budget * GB > free + torch.cuda.memory_reserved():
        raise torch.cuda.OutOfMemoryError
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget * GB / total))
    try:
        for share in (
            0.97,
            0.9,
            0.8,
        ):  # of the budget; what the allocator loses is not known before
            room = int(max(0.05, share * budget - least) * GB)
            try:
                return bench.measured(
                    lambda room=room: job.step(memory_budget=room), bench.options.repeat
                )
            except torch.cuda.OutOfMemoryError:
                continue
        raise torch.cuda.OutOfMemoryError
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _prno(bench: Bench, name: str, job: Job, step: float) -> None:
    """The regulariser's row: its time as a share of the gradient step, and what memory it adds."""
    z, device = job.noise.float().cpu(), torch.device(bench.device)
    prno, rounds = Prno(device=device), iter(range(100))
    prno.value_and_gradient(z, Draw(0, next(rounds)))
    before = torch.cuda.memory_allocated() / GB if bench.cuda else 0.0
    seconds, memory = bench.measured(lambda: prno.value_and_gradient(z, Draw(0, next(rounds))), 5)
    added = {"extra_mb": (memory - before) * 1e3} if bench.cuda else {}
    found = {"seconds": seconds, "peak_gb": memory, "of_a_step": seconds / step, **added}
    bench.add(name, "PRNO, b = 100", **found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp16"], choices=DTYPES)
    parser.add_argument("--budgets", nargs="+", type=float, default=[15, 24, 80, 140])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60, help="then no more repetitions")
    parser.add_argument("--save", type=Path, help="a JSON file, written after each row")
    parser.add_argument("--model", help="another one than Stable Diffusion's size")
    parser.add_argument("--tiny", action="store_true", help="a fake model, also without a GPU")
    parser.add_argument("--figure", type=Path, help="an SVG of the rows")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not (options.tiny or options.model):
        sys.exit("expected a CUDA device, found none; --tiny tries the script on the CPU")
    bench = Bench(options, device)
    for dtype in options.dtypes:
        gc.collect()  # the networks of the one before
        measure(bench, dtype)
    if options.figure:
        draw(bench.rows, options.figure)
    print(bench.text() if options.json else f"{table(bench.rows)}\n\n{claim(bench.rows)}")


def claim(rows: list[dict[str, Any]]) -> str:
    """Whether the least that a gradient step needs fits into the paper's 15 GB."""
    steps = [row for row in rows if row["case"] == RECOMPUTED and row["peak_gb"]]
    needed = {row["dtype"]: row["peak_gb"] for row in steps}
    said = [
        f"{dtype}: that 15 GB are enough {'held' if gb <= 15 else 'did not hold'}, {gb:.1f} GB."
        for dtype, gb in needed.items()
    ]
    return " ".join(said) or "The claim, that 15 GB are enough, is about a GPU."


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Seconds and peak memory of each row, as an SVG."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if "seconds" in row and "passes" in row] or rows
    names = [f"{row['dtype']}, {row['case']}" for row in timed]
    figure = Figure(figsize=(8, 0.35 * len(timed) + 1), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, title in zip(axes, ("seconds", "peak_gb"), ("seconds", "peak GB"), strict=True):
        axis.barh(names, [row[key] for row in timed])
        axis.set_xlabel(title)
    axes[0].invert_yaxis()
    figure.savefig(file, metadata={"Date": None})


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| dtype | what | seconds | peak GB | kept | share of the peak rate |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cells = [row["dtype"], row["case"], row.get("note", "")]
        if "seconds" in row:
            share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
            numbers = (f"{row['seconds']:.3f}", f"{row['peak_gb']:.1f}", row.get("kept", ""), share)
            cells[2:] = [str(number) for number in numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
