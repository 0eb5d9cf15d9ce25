"""The stages: each reads what the earlier ones left in `work/out` and adds its own part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from tiller.core.errors import InvalidInput

from .train import CPU, Machine, write_atomically


def need(path: Path, stage: str) -> str:
    """The path as a string if an earlier stage has written it."""
    if not path.exists():
        raise InvalidInput(
            f"expected the result of an earlier stage in {path}, found nothing; "
            f"run first: python -m tiller.models.bundled {stage}"
        )
    return str(path)


def load_vae(work: Path) -> AutoencoderTiny:
    """The trained autoencoder."""
    vae: AutoencoderTiny = AutoencoderTiny.from_pretrained(need(work / "out" / "vae", "vae"))
    return vae.eval().requires_grad_(False)


def load_tokenizer(work: Path) -> CLIPTokenizer:
    """The tokenizer, learned now if it is not there: that takes a second."""
    from . import tokenizer

    folder = work / "out" / "tokenizer"
    if (folder / "merges.txt").exists():
        return CLIPTokenizer.from_pretrained(str(folder))
    return tokenizer.write(folder)


def load_clip(work: Path, name: str = "clip") -> CLIPModel:
    """A trained CLIP."""
    return CLIPModel.from_pretrained(need(work / "out" / name, name.replace("_", "-"))).eval()


def load_text_encoder(work: Path) -> CLIPTextModel:
    """The first CLIP's text tower as it was when the denoiser's training began."""
    return CLIPTextModel.from_pretrained(need(work / "out" / "text_encoder", "unet")).eval()


def restore(work: Path, source: Path) -> None:
    """The parts of a weights folder into `work/out`, to go on training without checkpoints.

    The denoiser then starts from those weights with a fresh optimizer; give `unet --steps`.
    """
    out = work / "out"
    if (work / "unet.safetensors").exists():
        raise InvalidInput(f"{work} has a checkpoint of the denoiser; give another --work folder")
    kinds = {
        "vae": AutoencoderTiny,
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "clip": CLIPModel,
        "clip_heldout": CLIPModel,
    }
    shutil.copytree(source / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    for part, kind in kinds.items():
        kind.from_pretrained(str(source / part)).float().save_pretrained(out / part)
    for part in ("clip", "clip_heldout"):
        shutil.copy(source / part / "preprocessor_config.json", out / part)
    for part in ("judge", "preference"):
        weights = load_file(source / f"{part}.safetensors")
        single = {name: weight.float() for name, weight in weights.items()}
        write_atomically(single, out / f"{part}.safetensors", {})
    shutil.copy(source / "judge.json", out)


def scenes(work: Path, steps: int | None, machine: Machine = CPU) -> None:
    """Draw a sheet of scenes to look at."""
    import numpy as np

    from .scenes import scenes, sheet

    batch = scenes(0, 64)
    work.mkdir(parents=True, exist_ok=True)
    sheet(np.stack([s.image for s in batch])).save(work / "scenes.png")
    print("\n".join(s.caption for s in batch))
    print(f"sheet: {work / 'scenes.png'}")


def vae(work: Path, steps: int | None, machine: Machine = CPU) -> None:
    """The autoencoder."""
    from . import vae as stage

    stage.train(work, steps, machine).save_pretrained(work / "out" / "vae")


def clip(work: Path, steps: int | None, machine: Machine = CPU) -> None:
    """The tokenizer and the first CLIP, whose text tower the denoiser listens to."""
    from . import clip as stage

    folder = work / "out" / "clip"
    model = stage.train(stage.FIRST, work, load_vae(work), load_tokenizer(work), steps, machine)
    model.save_pretrained(folder)
    stage.write_image_config(folder)


def clip_heldout(work: Path, steps: int | None, machine: Machine = CPU) -> None:
    """The second CLIP: another seed, another division of the combinations, another width."""
    from . import clip as stage

    folder = work / "out" / "clip_heldout"
    model = stage.train(stage.SECOND, work, load_vae(work), load_tokenizer(work), steps, machine)
    model.save_pretrained(folder)
    stage.write_image_config(folder)


def preference(work: Path, steps: int | None, machine: Machine = CPU) -> None:
    """The preference head on the first CLIP."""
    from . import preference as stage

    head = stage.train(work, load_clip(work), steps, machine)
    write_atomically(head.state_dict(), work / "out" / "preference.safetensors", {})


def judge(work: Path, steps: int | None, machine: Machine = CPU) -> None:
    """The judge."""
    from . import judge_training as stage

    net = stage.train(work, load_vae(work), steps, machine)
    write_atomically(net.state_dict(), work / "out" / "judge.safetensors", {})
    (work / "out" / "judge.json").write_text(json.dumps({"widths": net.widths}) + "\n")


def unet(work: Path, steps: int | None, machine: Machine = CPU) -> None:
    """The denoiser, on latents that are encoded once."""
    from . import unet as stage

    folder = work / "out" / "text_encoder"
    if not folder.exists():  # later training of CLIP must not move what the denoiser listens to
        clip_model = load_clip(work)
        text_encoder = CLIPTextModel(clip_model.config.text_config)
        text_encoder.load_state_dict(clip_model.text_model.state_dict())
        text_encoder.save_pretrained(folder)
    text_encoder = load_text_encoder(work)
    size = stage.POOL
    if steps is not None:  # a short trial encodes no more scenes than it looks at, in whole files
        size = min(size, -(-steps * stage.BATCH // stage.PIECE) * stage.PIECE)
    model = stage.train(
        work, load_vae(work), text_encoder, load_tokenizer(work), steps, size, machine
    )
    model.save_pretrained(work / "out" / "unet")


def load_unet(work: Path, text_width: int) -> UNet2DConditionModel:
    """The denoiser's averaged weights, from its checkpoint: also while it is still training."""
    from . import unet as stage
    from .train import averaged

    model = stage.build(text_width)
    step = averaged(Path(need(work / "unet.safetensors", "unet")), model)
    print(f"unet: averaged weights of step {step}", flush=True)
    return model.eval().requires_grad_(False)


def load_state(work: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a small part."""
    return load_file(need(work / "out" / f"{name}.safetensors", name))
