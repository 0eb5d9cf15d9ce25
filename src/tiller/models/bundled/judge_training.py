"""Training the judge on labelled scenes, their corruptions and their reconstructions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from .advance import Batch
from .augment import corrupt, signed
from .clip import classification, labels
from .judge import HEADS, JudgeNet
from .scenes import scenes
from .train import CPU, Arrays, Machine, Plan, Task, fit

SEED = 51
BATCH = 64
PLAN = Plan(steps=3200, lr=3e-3, warmup=100, decay=0.6, weight_decay=0.02, ema=0.995, seed=SEED)


def draw(step: int) -> Arrays:
    """The step's scenes and what they show."""
    batch = scenes(step * BATCH, BATCH, seed=SEED)
    return {
        "images": np.stack([s.image for s in batch]),
        "labels": np.array([labels(s.spec) for s in batch]),
    }


def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Cross entropy of all heads."""
    return {"loss": classification(model(batch["pixels"]), batch["labels"], HEADS)}


def train(
    work: Path, vae: AutoencoderTiny, steps: int | None = None, machine: Machine = CPU
) -> JudgeNet:
    """Train or resume the judge's network on scenes of the training split."""
    plan = PLAN if steps is None else replace(PLAN, steps=steps)
    vae.requires_grad_(False).eval().to(machine.device)

    def prepare(batch: Batch, generator: torch.Generator) -> Batch:
        pixels = corrupt(signed(batch["images"]), vae, generator)
        return {"pixels": pixels, "labels": batch["labels"]}

    torch.manual_seed(SEED)
    net = JudgeNet()
    fit("judge", net, Task(draw, prepare, loss), plan, work, machine=machine)
    return net
