"""The denoiser: `UNet2DConditionModel` on latents [4, 16, 16], told what to draw by CLIP's states.

v-prediction (Salimans and Ho 2022, appendix D) on latents that are encoded once. Timesteps are
drawn from a bell around the middle ones, where shapes are decided (as the logit-normal of Esser et
al. 2024, section 3.1, does for flows). A tenth of the captions is replaced by the empty prompt, for
classifier-free guidance (Ho and Salimans 2022).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .advance import Batch, autocast
from .augment import signed
from .scenes import scenes
from .train import CPU, Arrays, Machine, Plan, Task, drawn_ahead, fit, moved, write_atomically

BATCH = 48
SEED = 31
POOL = 96_000  # scenes that are encoded once
PIECE = 4000  # of them to a file
GRID = 4  # pixels: the autoencoder's cell
EMPTY_PROMPT = 0.1
MIDDLE, SPREAD = 420.0, 200.0  # of the timesteps drawn: there the shapes are decided
FLOOR = 0.15  # of that bell's height, for the others
PLAN = Plan(
    steps=15_000, lr=7e-4, warmup=200, decay=0.6, ema=0.999, weight_decay=0.0, muon=True, seed=SEED
)


def scheduler() -> DDIMScheduler:
    """DDIM in Stable Diffusion's convention.

    `beta_end` is .02 instead of .012, so that almost nothing of the picture is left at the last
    timestep: the colour of a large flat background would leak through otherwise. The last step
    lands on the x0 estimate (`set_alpha_to_one`), so it adds no noise, and none is searched for it.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def build(text_width: int) -> UNet2DConditionModel:
    """The untrained denoiser: attention at 8x8 and, between the halves, at 4x4 only."""
    torch.manual_seed(SEED)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers means the number of heads by this name
        norm_num_groups=16,
    )


@dataclass(frozen=True)
class Pool:
    """Encoded scenes: latents [n, 4, 16, 16] of unit std in half precision, token ids [n, L]."""

    latents: Tensor
    ids: Tensor


@torch.no_grad()
def encode_pool(
    work: Path, vae: AutoencoderTiny, tokenizer: CLIPTokenizer, size: int, machine: Machine = CPU
) -> Pool:
    """Encode the pool once, in pieces that a restart finds again.

    Its scenes lie on the autoencoder's grid: a subject of one size then has the same latents
    wherever it stands, and the denoiser has some fifty times fewer patterns to learn.
    """
    folder = work / "pool"
    folder.mkdir(parents=True, exist_ok=True)

    def path(piece: int) -> Path:
        return folder / f"{piece * PIECE:07d}.safetensors"

    def draw(piece: int) -> Arrays:
        if path(piece).exists():
            return {}
        start = piece * PIECE
        batch = scenes(start, min(PIECE, size - start), seed=SEED, grid=GRID)
        ids = tokenizer(
            [s.caption for s in batch], padding="max_length", truncation=True, return_tensors="np"
        ).input_ids
        return {"images": np.stack([s.image for s in batch]), "ids": ids.astype(np.int16)}

    parts = []
    pieces = range(-(-size // PIECE))
    for piece, arrays in zip(pieces, drawn_ahead(draw, pieces, machine.workers), strict=True):
        if arrays:
            images = torch.from_numpy(arrays["images"])
            latents = [encode(vae, part) for part in torch.split(images, 250)]
            tensors = {"latents": torch.cat(latents), "ids": torch.from_numpy(arrays["ids"])}
            write_atomically(tensors, path(piece), {"seed": str(SEED)})
            print(f"unet pool {min(size, (piece + 1) * PIECE)}/{size}", flush=True)
        parts.append(load_file(str(path(piece))))
    return Pool(torch.cat([p["latents"] for p in parts]), torch.cat([p["ids"] for p in parts]))


@torch.no_grad()
def encode(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """Pictures [n, 64, 64, 3] of bytes -> latents [n, 4, 16, 16] of unit std, half precision."""
    device = vae.device
    with autocast(device):
        latents: Tensor = vae.encode(signed(images.to(device))).latents
    return (latents.float() * float(vae.config.scaling_factor)).half().cpu()


@torch.no_grad()
def read(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """Token ids [n, L] -> the frozen encoder's last hidden states [n, L, width], half precision."""
    with autocast(ids.device):
        parts = [
            text_encoder(input_ids=part.long()).last_hidden_state.half()
            for part in torch.split(ids, 500)
        ]
    return torch.cat(parts)


def make_task(pool: Pool, text_encoder: CLIPTextModel, empty: Tensor, device: torch.device) -> Task:
    """v-prediction on batches of the pool; `empty` is the empty prompt's ids."""
    alphas = scheduler().alphas_cumprod
    count = len(pool.latents)
    text_encoder.to(device)
    pool = Pool(pool.latents.to(device), pool.ids.to(device))
    empty = empty.to(device)
    said = read(text_encoder, pool.ids)
    silence = read(text_encoder, empty[None])[0]
    middle = torch.exp(-0.5 * ((torch.arange(len(alphas)) - MIDDLE) / SPREAD) ** 2)
    weight = middle.clamp(min=FLOOR)
    cumulative = (weight / weight.sum()).cumsum(0)

    @lru_cache(maxsize=1)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([SEED, epoch]).permutation(count)

    def draw(step: int) -> Arrays:
        epoch, place = divmod(step * BATCH, count - count % BATCH)
        return {"index": order(epoch)[place : place + BATCH]}

    def prepare(batch: Batch, generator: torch.Generator) -> Batch:
        index = batch["index"]
        mute = torch.rand(len(index), generator=generator) < EMPTY_PROMPT
        noise = torch.randn(len(index), 4, 16, 16, generator=generator)
        # stratified: one draw from each of the batch's equal shares of the distribution
        share = (torch.arange(len(index)) + torch.rand(len(index), generator=generator)) / len(
            index
        )
        t = torch.searchsorted(cumulative, share).clamp(max=len(alphas) - 1)
        drawn = {"mute": mute, "noise": noise, "t": t, "a": alphas[t]}
        near = {name: moved(value, device) for name, value in drawn.items()}
        mute = near.pop("mute").view(-1, 1, 1)
        near["states"] = torch.where(mute, silence, said[index]).float()
        return {"x0": pool.latents[index].float(), **near}

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x0, noise = batch["x0"], batch["noise"]
        a = batch["a"].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * x0
        out = model(noisy, batch["t"], encoder_hidden_states=batch["states"]).sample.float()
        error = (out - v).square().mean((1, 2, 3))
        return {"loss": error.mean()}

    return Task(draw, prepare, loss)


def train(
    work: Path,
    vae: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    steps: int | None = None,
    pool_size: int = POOL,
    machine: Machine = CPU,
) -> UNet2DConditionModel:
    """Train or resume the denoiser; more `steps` than the plan's extend a finished run."""
    plan = PLAN if steps is None else replace(PLAN, steps=steps)
    text_encoder.requires_grad_(False).eval()
    vae.to(machine.device)
    pool = encode_pool(work, vae, tokenizer, pool_size, machine)
    blank = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    model = build(text_encoder.config.hidden_size)
    restored = work / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    if restored.exists() and not (work / "unet.safetensors").exists():  # see stages.restore
        model.load_state_dict(load_file(str(restored)))
    if machine.device.type == "cpu":  # the fused attention's backward pass is slow there
        model.set_attn_processor(AttnProcessor())
    task = make_task(pool, text_encoder, blank, machine.device)
    # nothing is drawn but indices
    fit("unet", model, task, plan, work, machine=replace(machine, workers=0))
    return model


def write_defaults(folder: Path) -> None:
    """What the loader samples with unless told otherwise."""
    settings = {
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "eta": 0.0,
        "height": 64,
        "width": 64,
    }
    (folder / "defaults.json").write_text(json.dumps(settings, indent=2) + "\n")
