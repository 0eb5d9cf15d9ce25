"""Measuring the shipped model over unseen prompts; writes `metrics.json` and the model card."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from .captions import Spec, Split, caption, prompts
from .card import card
from .judge import Judge
from .loaders import PreferenceHead, preprocess
from .scenes import Scene, scenes, sheet
from .train import Machine

SEED = 123
ONE, TWO = 400, 200  # unseen prompts with one and with two subjects
BATCH = 50
TRUE_SCENES = 2000
RETRIEVAL = 256  # scenes and captions ranked against each other
UNSEEN = 90_000_000  # scene numbers from here on are never trained on


def evaluate(weights: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Measure everything the model card states; writes `metrics.json`, the card and a sheet.

    The card and the sheet of samples lie beside the folder of the weights.
    """
    pipeline = load_pipeline(weights).to(device)
    judge = Judge.load(weights / "judge.safetensors", weights / "judge.json")
    metrics: dict[str, Any] = {"megabytes": _megabytes(weights)}
    metrics |= json.loads((weights / "training.json").read_text())
    metrics["judge"] = judge_accuracy(judge)
    metrics["vae_l1"] = vae_l1(pipeline.vae)
    for name in ("clip", "clip_heldout"):
        clip = CLIPModel.from_pretrained(str(weights / name), dtype=torch.float32).to(device).eval()
        split: Split = "test" if name == "clip" else "test-b"
        metrics[name] = retrieval(clip, pipeline.tokenizer, split)
        if name == "clip":
            metrics["preference_correlation"] = _preference(weights, clip)
    metrics["sampling"] = sampling_time(pipeline)
    metrics["prompts"], images = faithfulness(pipeline, judge)
    (weights / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    again = weights.parent / "retrained.json"  # a second training of the package's own weights
    found = json.loads(again.read_text()) if again.exists() else None
    (weights.parent / "MODEL_CARD.md").write_text(card(metrics, found))
    sheet(images[:32]).save(weights.parent / "samples.png", optimize=True)
    print(json.dumps(metrics, indent=2), flush=True)
    return metrics


def load_pipeline(weights: Path) -> StableDiffusionPipeline:
    """The pipeline of a weights folder, in fp32, silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(str(weights)).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: StableDiffusionPipeline, texts: list[str], *, seed: int = SEED) -> Tensor:
    """Pictures [n, 3, 64, 64] in [0, 1], 20 steps with guidance 4; prompt i has its own seed."""
    out = []
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        generators = [
            torch.Generator().manual_seed(seed * 100_003 + first + i) for i in range(len(batch))
        ]
        result = pipeline(
            batch, num_inference_steps=20, guidance_scale=4.0, generator=generators,
            output_type="pt",
        )  # fmt: skip
        out.append(result.images.float().cpu())
    return torch.cat(out)


def faithfulness(
    pipeline: StableDiffusionPipeline, judge: Judge
) -> tuple[dict[str, float], np.ndarray[Any, Any]]:
    """The judge's verdict on pictures of unseen prompts; also the pictures as bytes."""
    one = prompts("test", ONE, SEED, "one")
    two = prompts("test", TWO, SEED, "two")
    images = sample(pipeline, [text for text, _ in (*one, *two)])
    verdicts = judge.verdict(images)
    pairs = list(zip(verdicts, [spec for _, spec in (*one, *two)], strict=True))

    def share(test: str, rows: list[Any]) -> float:
        return round(float(np.mean([getattr(v, test)(spec) for v, spec in rows])), 4)

    metrics: dict[str, float] = {"one_prompts": ONE, "two_prompts": TWO}
    for name, rows in (("one", pairs[:ONE]), ("two", pairs[ONE:])):
        for test in ("subjects_right", "colours_right", "background_right", "faithful"):
            metrics[f"{name}_{test}"] = share(test, rows)
    shown = images.permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    return metrics, np.concatenate([shown[:20], shown[ONE : ONE + 12]])


def judge_accuracy(judge: Judge) -> dict[str, float]:
    """The judge on true scenes of the held-out combinations: each label, and all at once."""
    truth = scenes(UNSEEN, TRUE_SCENES, seed=SEED, split="test")
    verdicts = judge.verdict(_pixels(truth))
    seen = [v.spec for v in verdicts]
    pairs = [(a, s.spec) for a, s in zip(seen, truth, strict=True)]
    alike = [(a, b) for a, b in pairs if len(a.subjects) == len(b.subjects)]
    slots = [(x, y) for a, b in alike for x, y in zip(a.subjects, b.subjects, strict=True)]
    tests = {
        "count": [len(a.subjects) == len(b.subjects) for a, b in pairs],
        "subject": [x[0] == y[0] for x, y in slots],
        "colour": [x[1] == y[1] for x, y in slots],
        "background": [a.background == b.background for a, b in pairs],
        "all": [a == b for a, b in pairs],
    }
    return {name: round(float(np.mean(values)), 4) for name, values in tests.items()}


@torch.no_grad()
def vae_l1(vae: AutoencoderTiny) -> float:
    """Mean absolute error of reconstructions of unseen scenes, on pixels in [-1, 1]."""
    pixels = (_pixels(scenes(UNSEEN, 512, seed=SEED)) * 2 - 1).to(vae.device)
    out = vae.decode(vae.encode(pixels).latents).sample.clamp(-1, 1)
    return round(float(F.l1_loss(out, pixels)), 4)


@torch.no_grad()
def retrieval(clip: CLIPModel, tokenizer: CLIPTokenizer, split: Split) -> dict[str, float]:
    """Rank-one retrieval among `RETRIEVAL` scenes of unseen combinations, all different.

    Every caption names the background, so that each has one true picture. "bound" is how often a
    two-subject caption scores above the same caption with its two colours swapped.
    """
    found: dict[Spec, Scene] = {}
    index = UNSEEN
    while len(found) < RETRIEVAL:
        drawn = scenes(index, 1, seed=SEED, split=split)[0]
        found.setdefault(drawn.spec, drawn)
        index += 1
    specs = list(found)
    rng = np.random.default_rng(SEED)
    texts = _embed_texts(clip, tokenizer, [caption(s, rng, rare=0.0) for s in specs])
    shown = preprocess(_pixels(list(found.values()))).to(clip.device)
    images = F.normalize(clip.get_image_features(pixel_values=shown).pooler_output, dim=-1).cpu()
    similar = texts @ images.T
    own = torch.arange(len(specs))
    twos = [i for i, s in enumerate(specs) if len({colour for _, colour in s.subjects}) == 2]
    plain = _embed_texts(clip, tokenizer, [_plain(specs[i].subjects) for i in twos])
    swapped = _embed_texts(clip, tokenizer, [_plain(_swap(specs[i].subjects)) for i in twos])
    bound = ((plain - swapped) * images[twos]).sum(-1) > 0
    return {
        "text_to_image": round(float((similar.argmax(1) == own).float().mean()), 4),
        "image_to_text": round(float((similar.argmax(0) == own).float().mean()), 4),
        "bound": round(float(bound.float().mean()), 4),
        "mean_cosine": round(float(similar.diagonal().mean()), 4),
    }


def sampling_time(pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    """Seconds for one picture (20 steps, guidance 4), the median of five."""
    sample(pipeline, ["a cat"])
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        sample(pipeline, ["a red cat on a blue background"])
        spent.append(time.perf_counter() - start)
    return {
        "seconds": round(float(np.median(spent)), 3),
        "threads": torch.get_num_threads(),
        "device": Machine(pipeline.device).name,
    }


def _pixels(batch: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([s.image for s in batch])).permute(0, 3, 1, 2).float() / 255.0


def _embed_texts(clip: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states = clip.get_text_features(input_ids=ids.to(clip.device)).pooler_output
    return F.normalize(states, dim=-1).cpu()


def _plain(subjects: tuple[tuple[str, str | None], ...]) -> str:
    return " and ".join(
        f"a {colour} {name}" if colour else f"a {name}" for name, colour in subjects
    )


def _swap(
    subjects: tuple[tuple[str, str | None], ...],
) -> tuple[tuple[str, str | None], ...]:
    (a, x), (b, y) = subjects
    return (a, y), (b, x)


def _preference(weights: Path, clip: CLIPModel) -> float:
    from safetensors.torch import load_file

    from . import preference

    head = PreferenceHead()
    state = load_file(str(weights / "preference.safetensors"))
    head.load_state_dict({k: v.float() for k, v in state.items()})
    return round(preference.correlation(head, clip), 4)


def _megabytes(folder: Path) -> float:
    return round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6, 2)
