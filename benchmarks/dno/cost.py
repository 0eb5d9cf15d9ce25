"""What a gradient step costs at Stable Diffusion's size: seconds, peak memory, share of the peak.

    python benchmarks/dno/cost.py [--dtypes bf16 fp16] [--budgets 15 24 80 140] [--json]
    python benchmarks/dno/cost.py --tiny                  # a fake model, to try the script itself

The networks have SD 1.5's configuration and random weights, which cost what trained ones do:
512x512, 50 steps of DDIM with eta = 1, guidance. For each dtype: a plain picture, a gradient step
with every step recomputed, and with as many kept as fit each memory budget (GB). The share of the
peak is the arithmetic that the forwards and backwards need, divided by the seconds, divided by the
rate of a large matrix product in the same dtype, measured in the same run. The probability
regulariser is timed beside them. Any CUDA machine will do.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
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


def stable_diffusion(dtype: torch.dtype, device: str, tiny: bool) -> FrozenModel:
    """SD 1.5's UNet and VAE with random weights; the text encoder is never asked."""
    torch.manual_seed(0)
    pipe = fake_pipeline()
    if not tiny:
        pipe.unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        )
        pipe.vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        )
        pipe.vae_scale_factor = 8
        pipe.register_to_config()
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
        self.model.decode(latents).float().mean().backward()

    def flops(self) -> float:
        """Arithmetic of the denoiser in one picture, both branches."""
        short = Trajectory(self.model, replace(self.path.settings, num_inference_steps=2))
        noise = torch.zeros(1, *short.noise_shape).to(self.noise)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            short.run(noise, self.words)
        return counter.get_total_flops() / 2 * self.path.num_steps


def measured(function: Callable[[], None], device: str, repeat: int) -> tuple[float, float]:
    """The fastest of some runs in seconds, and the peak memory in GB."""
    cuda = device == "cuda"
    function()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    best = float("inf")
    for _ in range(repeat):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best, torch.cuda.max_memory_allocated() / GB if cuda else 0.0


def peak_rate(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a large matrix product."""
    n = 8192 if device == "cuda" else 512
    a = torch.randn(n, n, device=device, dtype=dtype)

    def ten() -> None:
        for _ in range(10):
            a @ a

    seconds, _ = measured(ten, device, 3)
    return 10 * 2 * n**3 / seconds


def rows(options: argparse.Namespace, dtype: str, device: str) -> list[dict[str, Any]]:
    """The measurements of one dtype."""
    model = stable_diffusion(DTYPES[dtype], device, options.tiny)
    job = Job(model, options.steps, 16 if options.tiny else 512)
    peak, flops = peak_rate(DTYPES[dtype], device), job.flops()
    cases: list[tuple[str, float, Callable[[], None]]] = [
        ("plain picture", 1, job.plain),
        ("gradient step, all recomputed", 3, lambda: job.step(checkpoint="recompute")),
    ]
    total = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 1e18
    base = torch.cuda.memory_allocated() if device == "cuda" else 0
    for budget in options.budgets:
        if budget * GB <= total * 1.02:
            room = int(max(0.05 * GB, 0.9 * min(budget * GB, total) - base - 1.5 * GB))
            case = f"gradient step within {budget:g} GB"
            cases.append((case, 2, lambda room=room: job.step(memory_budget=room)))
    found = []
    for name, passes, function in cases:
        seconds, memory = measured(function, device, options.repeat)
        if passes == 2:  # what was kept needs two passes, what was recomputed three
            plan = job.path.plan
            passes = 2 + plan.recomputed / max(1, plan.steps)
        share = passes * flops / seconds / peak
        found.append({"dtype": dtype, "case": name, "seconds": seconds, "peak_gb": memory})
        found[-1] |= {"passes": passes, "share_of_peak": share, "plan": str(job.path.plan)}
        print(f"{dtype} {name}: {seconds:.3f} s, {memory:.1f} GB", file=sys.stderr, flush=True)
    prno, z = Prno(), job.noise.float()
    seconds, _ = measured(lambda: prno.value_and_gradient(z, Draw(0, 0)) and None, device, 3)
    found.append({"dtype": dtype, "case": "PRNO, b = 100", "seconds": seconds, "peak_gb": 0.0})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp16"], choices=DTYPES)
    parser.add_argument("--budgets", nargs="+", type=float, default=[15, 24, 80, 140])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a fake model, also without a GPU")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        sys.exit("expected a CUDA device, found none; --tiny tries the script on the CPU")
    table = [row for dtype in options.dtypes for row in rows(options, dtype, device)]
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    if options.json:
        about = {"machine": name, "torch": torch.__version__, "steps": options.steps}
        about["date"] = datetime.now(UTC).date().isoformat()
        print(json.dumps({"about": about, "rows": table}, indent=1))
        return
    print(f"{name}, torch {torch.__version__}, {options.steps} steps\n")
    print("| dtype | what | seconds | peak GB | share of the peak rate |")
    print("| --- | --- | --- | --- | --- |")
    for row in table:
        share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
        cells = (row["dtype"], row["case"], f"{row['seconds']:.3f}", f"{row['peak_gb']:.1f}", share)
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
