"""Training the judge on labelled scenes, their corruptions and their reconstructions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from .augment import corrupt
from .clip import classification
from .judge import HEADS, JudgeNet
from .scenes import scenes
from .train import Plan, fit

SEED = 51
BATCH = 64
PLAN = Plan(steps=3200, lr=3e-3, warmup=100, decay=0.6, weight_decay=0.02, ema=0.995, seed=SEED)


def train(work: Path, vae: AutoencoderTiny, steps: int | None = None) -> JudgeNet:
    """Train or resume the judge's network on scenes of the training split."""
    plan = PLAN if steps is None else replace(PLAN, steps=steps)
    vae.requires_grad_(False).eval()

    def loss(model: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = scenes(step * BATCH, BATCH, seed=SEED)
        images = torch.from_numpy(np.stack([s.image for s in batch]))
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        logits = model(corrupt(pixels, vae, generator))
        return {"loss": classification(logits, [s.spec for s in batch], HEADS)}

    torch.manual_seed(SEED)
    net = JudgeNet()
    fit("judge", net, loss, plan, work)
    return net
