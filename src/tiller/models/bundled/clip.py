"""The two CLIP models: contrastive training with hard negatives that bind colours to subjects.

Every scene of a batch comes with near twins: its colours swapped or changed, its subject changed,
its background changed. A caption matches all pictures that it is true of. Pictures of nothing are
negatives for every caption. A classification head on the image features, dropped afterwards, makes
the vision tower learn shapes several times faster than the contrastive loss alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .advance import Batch
from .augment import corrupt, nothing, signed
from .captions import (
    BACKGROUNDS,
    COLOUR_NAMES,
    NATURAL,
    NO_BACKGROUND,
    SUBJECT_NAMES,
    TWO_SUBJECTS,
    Spec,
    Split,
    caption,
    in_split,
    random_spec,
)
from .scenes import compose
from .tokenizer import ordinary_words
from .train import CPU, Arrays, Machine, Plan, Task, fit

FILLER = 0.12  # chance that an ordinary word is put somewhere into a training caption


@dataclass(frozen=True)
class Tower:
    """One CLIP's sizes, data and schedule."""

    name: str
    plan: Plan
    split: Split
    hidden: int = 192
    heads: int = 3
    text_layers: int = 3
    vision_layers: int = 4
    projection: int = 128
    families: int = 16  # scenes a batch, each with its twins
    twins: int = 3


FIRST = Tower("clip", Plan(steps=1100, lr=1.0e-3, warmup=80, decay=0.5, seed=21), "train")
SECOND = Tower(
    "clip-heldout",
    Plan(steps=1100, lr=1.0e-3, warmup=80, decay=0.5, seed=77),
    "train-b",
    hidden=160,
    heads=5,
)


def build(tower: Tower, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained CLIP of the given sizes."""
    torch.manual_seed(tower.plan.seed)
    shared = {
        "hidden_size": tower.hidden,
        "intermediate_size": 3 * tower.hidden,
        "num_attention_heads": tower.heads,
        "projection_dim": tower.projection,
        "hidden_act": "gelu",
    }
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": tower.text_layers,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **shared,
        "num_hidden_layers": tower.vision_layers,
        "image_size": 64,
        "patch_size": 8,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=tower.projection)
    return CLIPModel(config)


class Trainee(nn.Module):
    """CLIP with the classification head that only training uses."""

    def __init__(self, clip: CLIPModel, hidden: int) -> None:
        super().__init__()
        self.clip = clip
        self.sizes = (2, *(len(SUBJECT_NAMES), len(COLOUR_NAMES)) * 2, len(BACKGROUNDS))
        self.head = nn.Linear(hidden, sum(self.sizes))

    def embed_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures in [-1, 1] -> (unit embeddings [n, projection], label logits)."""
        pooled = self.clip.vision_model(pixel_values=images).pooler_output
        return F.normalize(self.clip.visual_projection(pooled).float(), dim=-1), self.head(pooled)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Token ids -> unit embeddings [n, projection]."""
        pooled = self.clip.text_model(input_ids=ids).pooler_output
        return F.normalize(self.clip.text_projection(pooled).float(), dim=-1)


def labels(spec: Spec) -> list[int]:
    """[two?, subject, colour, subject, colour, background]; -100 for a slot that is empty."""
    row = [len(spec.subjects) - 1]
    for slot in range(2):
        if slot < len(spec.subjects):
            subject, colour = spec.subjects[slot]
            row += [SUBJECT_NAMES.index(subject), COLOUR_NAMES.index(colour or NATURAL)]
        else:
            row += [-100, -100]
    assert spec.background is not None
    return [*row, BACKGROUNDS.index(spec.background)]


def twin(spec: Spec, rng: np.random.Generator) -> Spec:
    """A near miss of the spec: one thing that its caption names is different."""
    subjects = list(spec.subjects)
    background = spec.background
    slot = int(rng.integers(len(subjects)))
    kind = rng.choice(["colour", "subject", "background", "swap"])
    if kind == "swap" and len(subjects) == 2:
        (a, x), (b, y) = subjects
        subjects = [(a, y), (b, x)] if rng.random() < 0.7 else [(b, y), (a, x)]
    elif kind == "background":
        taken = {colour for _, colour in subjects}
        free = [b for b in BACKGROUNDS if b not in taken]
        background = free[rng.integers(len(free))]
    elif kind == "subject":
        others = [s for s in SUBJECT_NAMES if s not in {name for name, _ in subjects}]
        subjects[slot] = (others[rng.integers(len(others))], subjects[slot][1])
    else:
        free = [c for c in COLOUR_NAMES if c != background]
        colour = free[rng.integers(len(free))]
        subjects[slot] = (subjects[slot][0], None if colour == NATURAL else colour)
    return Spec(tuple(subjects), background)


def family(tower: Tower, index: int) -> list[Spec]:
    """Scene number `index` of the tower's split and its twins, all inside the split."""
    rng = np.random.default_rng([tower.plan.seed, index])
    specs = [random_spec(rng, tower.split, "two" if rng.random() < TWO_SUBJECTS else "one")]
    while len(specs) < 1 + tower.twins:
        candidate = twin(specs[0], rng)
        if in_split(candidate, tower.split):
            specs.append(candidate)
    return specs


def draw(tower: Tower, tokenizer: CLIPTokenizer, words: list[str], step: int) -> Arrays:
    """The scenes of a step: pictures, token ids, what is true of which picture, and labels."""
    rng = np.random.default_rng([tower.plan.seed, step, 1])
    shown = [
        spec
        for index in range(step * tower.families, (step + 1) * tower.families)
        for spec in family(tower, index)
    ]
    named = [Spec(s.subjects, None) if rng.random() < NO_BACKGROUND else s for s in shown]
    texts = [filled(caption(s, rng), words, rng) for s in named]
    return {
        "images": np.stack([compose(s, rng)[0] for s in shown]),
        "ids": tokenizer(texts, padding=True, truncation=True, return_tensors="np").input_ids,
        "true": matches(shown, named).numpy(),
        "labels": np.array([labels(s) for s in shown]),
    }


def filled(text: str, words: list[str], rng: np.random.Generator) -> str:
    """The caption, sometimes with an ordinary word in it: words that name nothing change little."""
    if rng.random() >= FILLER:
        return text
    tokens = text.split()
    tokens.insert(int(rng.integers(len(tokens) + 1)), words[rng.integers(len(words))])
    return " ".join(tokens)


def matches(shown: list[Spec], named: list[Spec]) -> Tensor:
    """[captions, pictures]: whether the caption is true of the picture."""
    return torch.tensor(
        [
            [n.subjects == s.subjects and n.background in (None, s.background) for s in shown]
            for n in named
        ]
    )


def contrastive(texts: Tensor, images: Tensor, true: Tensor, scale: Tensor) -> Tensor:
    """-log of the share of the softmax that falls on true pairs, captions and pictures averaged.

    `images` may hold more rows than `true` has columns: pictures that no caption describes.
    """
    logits = scale * texts @ images.T
    scenes = true.shape[1]
    padded = F.pad(true, (0, len(images) - scenes))

    def side(values: Tensor, mask: Tensor) -> Tensor:
        hits = values.masked_fill(~mask, float("-inf")).logsumexp(-1)
        return (values.logsumexp(-1) - hits).mean()

    return 0.5 * (side(logits, padded) + side(logits[:, :scenes].T, true.T))


def classification(head: Tensor, target: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Mean cross entropy of the label heads [n, sum(sizes)] over the slots that exist.

    `target` [n, heads] holds rows of `labels`.
    """
    terms = []
    for i, logits in enumerate(torch.split(head, list(sizes), dim=-1)):
        # a batch may have no second subject at all: a plain mean would be 0 / 0
        total = F.cross_entropy(logits.float(), target[:, i], reduction="sum")
        terms.append(total / (target[:, i] >= 0).sum().clamp(min=1))
    return torch.stack(terms).mean()


def train(
    tower: Tower,
    work: Path,
    vae: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    steps: int | None = None,
    machine: Machine = CPU,
) -> CLIPModel:
    """Train or resume one CLIP."""
    plan = tower.plan if steps is None else replace(tower.plan, steps=steps)
    words = ordinary_words()
    vae.requires_grad_(False).eval().to(machine.device)

    def prepare(batch: Batch, generator: torch.Generator) -> Batch:
        pixels, ids = signed(batch["images"]), batch["ids"]
        if ids.is_cuda:  # of one shape: what follows the end token changes nothing before it
            free = tokenizer.model_max_length - ids.shape[1]
            ids = F.pad(ids, (0, free), value=tokenizer.pad_token_id)
        empty = nothing(pixels, vae, generator)
        pixels = torch.cat([corrupt(pixels, vae, generator), empty])
        return {"pixels": pixels, "ids": ids, "true": batch["true"], "labels": batch["labels"]}

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Trainee)
        images, head = model.embed_images(batch["pixels"])
        texts = model.embed_texts(batch["ids"])
        scale = model.clip.logit_scale.exp().clamp(max=60.0)
        pair = contrastive(texts, images, batch["true"], scale)
        label = classification(head[: len(batch["labels"])], batch["labels"], model.sizes)
        return {"loss": pair + label, "pair": pair, "label": label, "scale": scale}

    model = Trainee(build(tower, tokenizer), tower.hidden)
    # the backward pass of the fused attention is several times slower on a CPU
    model.clip.set_attn_implementation("eager" if machine.device.type == "cpu" else "sdpa")
    task = Task(partial(draw, tower, tokenizer, words), prepare, loss)
    fit(tower.name, model, task, plan, work, machine=machine)
    return model.clip


def write_image_config(folder: Path) -> None:
    """What a picture in [0, 1] goes through before the vision tower."""
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 64, "width": 64},
        "do_resize": True,
        "do_center_crop": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
