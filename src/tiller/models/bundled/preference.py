"""Training the preference head on a synthetic rating of scenes.

The rating stands in for human preference, which this package has no data on. It is

    rating = 1.2 * size - 1.0 * distance + 1.2 * contrast

with, for a scene: size = area of the subjects' boxes / area of the picture; distance = how far the
centre of all subjects lies from the picture's centre, in half pictures; contrast = the mean
distance in RGB (a unit cube, over its diagonal) between the subjects' pixels and the background.
The rating is standardised over the training scenes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from .advance import Batch
from .augment import corrupt, signed
from .loaders import PreferenceHead
from .scenes import BACKGROUND_RGB, SIZE, Scene, scenes
from .train import CPU, Machine, Plan, Task, fit

SEED = 41
EXAMPLES = 12_000
UNSEEN = 1000  # scenes that the correlation is measured on
BATCH = 256
PLAN = Plan(
    steps=1500, lr=3e-3, warmup=50, decay=0.8, weight_decay=1e-3, seed=SEED, bf16=False,
    log_every=500,
)  # fmt: skip


def rating(scene: Scene) -> float:
    """The synthetic rating of a scene, before standardisation."""
    assert scene.spec.background is not None
    boxes = np.array(scene.boxes, dtype=np.float64)
    areas = boxes[:, 2] * boxes[:, 3]
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    centre = (centres * areas[:, None]).sum(0) / areas.sum()
    distance = float(np.linalg.norm(centre / (SIZE / 2) - 1.0))
    background = np.array(BACKGROUND_RGB[scene.spec.background], dtype=np.float64)
    apart = np.linalg.norm(scene.image - background, axis=-1) / 255.0 / 3**0.5
    drawn = apart > 0.03
    contrast = float(apart[drawn].mean()) if drawn.any() else 0.0
    return 1.2 * float(areas.sum()) / SIZE**2 - distance + 1.2 * contrast


@torch.no_grad()
def features(clip: CLIPModel, count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Image features [count, d] of corrupted scenes, and their ratings [count], on the CPU."""
    rows, ratings = [], []
    for first in range(start, start + count, 500):
        batch = scenes(first, min(500, start + count - first), seed=SEED)
        images = torch.from_numpy(np.stack([s.image for s in batch]))
        generator = torch.Generator().manual_seed(SEED + first)
        pixels = corrupt(signed(images), None, generator).to(clip.device)
        rows.append(clip.get_image_features(pixel_values=pixels).pooler_output.cpu())
        ratings += [rating(s) for s in batch]
    return torch.cat(rows), torch.tensor(ratings)


def train(
    work: Path, clip: CLIPModel, steps: int | None = None, machine: Machine = CPU
) -> PreferenceHead:
    """Train or resume the head; prints its correlation with the rating on unseen scenes."""
    plan = PLAN if steps is None else replace(PLAN, steps=steps)
    torch.manual_seed(SEED)
    clip.eval().requires_grad_(False).to(machine.device)
    inputs, ratings = features(clip, EXAMPLES)
    mean, deviation = ratings.mean(), ratings.std()
    target = (ratings - mean) / deviation

    near, wanted = inputs.to(machine.device), target.to(machine.device)

    def prepare(batch: Batch, generator: torch.Generator) -> Batch:
        pick = torch.randint(len(near), (BATCH,), generator=generator).to(near.device)
        return {"inputs": near[pick], "target": wanted[pick]}

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(model(batch["inputs"]), batch["target"])}

    head = PreferenceHead(inputs.shape[1])
    alone = replace(machine, workers=0)  # nothing is drawn but indices
    fit("preference", head, Task(lambda step: {}, prepare, loss), plan, work, machine=alone)
    print(f"preference: correlation with the rating {correlation(head, clip):.3f}", flush=True)
    return head


@torch.no_grad()
def correlation(head: PreferenceHead, clip: CLIPModel) -> float:
    """Pearson correlation of the head's scores with the rating over unseen scenes."""
    inputs, ratings = features(clip, UNSEEN, start=80_000_000)
    return float(torch.corrcoef(torch.stack([head(inputs), ratings]))[0, 1])
