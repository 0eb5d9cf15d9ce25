"""Putting the trained parts into one folder, in `StableDiffusionPipeline`'s layout."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from . import stages, unet
from .clip import write_image_config
from .train import progress

WEIGHTS = Path(__file__).with_name("weights")
LIMIT_MB = 40.0


def assemble(work: Path, target: Path = WEIGHTS) -> Path:
    """Write the pipeline, both CLIPs, the preference head and the judge as fp16 safetensors."""
    tokenizer = stages.load_tokenizer(work)
    text_encoder = stages.load_text_encoder(work)
    pipeline = StableDiffusionPipeline(
        vae=stages.load_vae(work),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=stages.load_unet(work, text_encoder.config.hidden_size),
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        folder = Path(beside) / "weights"
        pipeline.to(torch.float16).save_pretrained(folder)
        for file in (work / "out" / "tokenizer").iterdir():
            shutil.copy(file, folder / "tokenizer" / file.name)
        for name in ("clip", "clip_heldout"):
            stages.load_clip(work, name).half().save_pretrained(folder / name)
            write_image_config(folder / name)
        for name in ("preference", "judge"):
            half = {k: v.half().contiguous() for k, v in stages.load_state(work, name).items()}
            save_file(half, str(folder / f"{name}.safetensors"))
        shutil.copy(work / "out" / "judge.json", folder / "judge.json")
        unet.write_defaults(folder)
        names = ("vae", "clip", "clip-heldout", "preference", "judge", "unet")
        done = {name: progress(work / f"{name}.safetensors") for name in names}
        told = work / "note.txt"  # what a person has to say about how these were trained
        training = {
            "steps": {name: of.step for name, of in done.items()},
            "seconds": {name: of.seconds for name, of in done.items()},
            "device": " and ".join(sorted({of.device for of in done.values()})),
            "note": told.read_text().strip() if told.exists() else "",
        }
        (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
        _clean(folder)
        if (target / "metrics.json").exists():
            shutil.copy(target / "metrics.json", folder / "metrics.json")
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(str(folder), str(target))
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 1e6
    print(f"assembled {target}: {size:.1f} MB (limit {LIMIT_MB:.0f})", flush=True)
    return target


def _clean(folder: Path) -> None:
    """Drop from the configs this machine's paths, and what a class derives and warns about."""
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)
        if settings.get("_class_name") == "AutoencoderTiny":
            settings.pop("block_out_channels", None)
        if path.parent.name != "tokenizer":
            path.write_text(json.dumps(settings, indent=2) + "\n")
