"""The autoencoder: `AutoencoderTiny`, 4 times down, 64x64 pictures to latents [4, 16, 16].

It is norm-free and deterministic. Trained on L1 over three scales and on gradients, with noise on
the latents and a small penalty on their magnitude, so that nearby latents decode alike.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from .advance import Batch
from .augment import signed
from .scenes import scenes
from .train import CPU, Arrays, Machine, Plan, Task, fit

BATCH = 24
SEED = 11
MEASURED = 512  # scenes whose latents set the scaling factor
NOISE = 0.06  # on the latents, whose magnitude the penalty keeps near one
PLAN = Plan(steps=4400, lr=1.2e-3, warmup=100, decay=0.5, weight_decay=0.0, seed=SEED)


def build() -> AutoencoderTiny:
    """The untrained autoencoder; its block count makes the pipeline's `vae_scale_factor` 4."""
    torch.manual_seed(SEED)
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 2, 3),
        num_decoder_blocks=(3, 3, 0),
        latent_channels=4,
    )


def reconstruction_loss(out: Tensor, target: Tensor) -> dict[str, Tensor]:
    """L1 of pixels, of 2x and 4x means, and of the differences between neighbours."""
    l1 = F.l1_loss(out, target)
    error = out - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = F.avg_pool2d(error, 2).abs().mean() + F.avg_pool2d(error, 4).abs().mean()
    return {"loss": l1 + 0.3 * edges + 0.5 * coarse, "l1": l1}


def draw(start: int, count: int) -> Arrays:
    """Training scenes."""
    return {"images": np.stack([s.image for s in scenes(start, count, seed=SEED)])}


def prepare(batch: Batch, generator: torch.Generator) -> Batch:
    """Pictures [n, 3, 64, 64] in [-1, 1] and the noise on their latents."""
    target = signed(batch["images"])
    noise = torch.randn(len(target), 4, 16, 16, generator=generator)
    return {"target": target, "noise": noise.to(target.device)}


def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """One step's loss on fresh scenes."""
    assert isinstance(model, AutoencoderTiny)
    target = batch["target"]
    latents = model.encode(target).latents.float()
    out = model.decode(latents + NOISE * batch["noise"]).sample.float()
    terms = reconstruction_loss(out, target)
    terms["loss"] = terms["loss"] + 1e-3 * latents.square().mean()
    terms["std"] = latents.std()
    return terms


def train(work: Path, steps: int | None = None, machine: Machine = CPU) -> AutoencoderTiny:
    """Train or resume the autoencoder, then set its `scaling_factor` for latents of unit std."""
    plan = PLAN if steps is None else replace(PLAN, steps=steps)
    model = build()
    task = Task(lambda step: draw(step * BATCH, BATCH), prepare, loss)
    fit("vae", model, task, plan, work, machine=machine)
    return scaled(model)


@torch.no_grad()
def scaled(model: AutoencoderTiny) -> AutoencoderTiny:
    """The model with `scaling_factor` = 1 / std of the latents of `MEASURED` scenes."""
    images = torch.from_numpy(draw(50_000_000, MEASURED)["images"])
    latents = model.encode(signed(images)).latents
    factor = round(1.0 / float(latents.std()), 5)
    model.register_to_config(scaling_factor=factor)
    model.scaling_factor = factor
    return model
