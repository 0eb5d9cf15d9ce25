"""Fake Stable Diffusion pipelines: tiny, random weights, the real classes and file layout.

They draw nothing sensible; they serve tests of samplers, gradients and loaders.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

FAKE_LENGTH = 16  # tokens that the fake text encoder reads, both ends included


def fake_tokenizer(length: int = FAKE_LENGTH) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer whose tokens are single characters: any text can be read.

    Args:
        length: tokens that are read, both ends included.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def fake_pipeline(
    *,
    prediction_type: str = "epsilon",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    set_alpha_to_one: bool = False,
    sample_size: int = 8,
    length: int = FAKE_LENGTH,
    **unet: Any,
) -> StableDiffusionPipeline:
    """A fake pipeline on the CPU that draws 16 x 16 pixels from latents [4, 8, 8].

    Args:
        prediction_type: epsilon, v_prediction or sample.
        dtype: of the weights.
        seed: of the weights.
        set_alpha_to_one: whether DDIM's last step lands on the x0 estimate.
        sample_size: latents along each side.
        length: tokens that the text encoder reads, both ends included.
        unet: further fields of the UNet's configuration.
    """
    tokenizer = fake_tokenizer(length)
    with _seeded(seed):
        parts = {
            "text_encoder": CLIPTextModel(_text_config(tokenizer)).eval(),
            "unet": _unet(sample_size, unet),
            "vae": _vae(sample_size),
        }
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            **_SCHEDULE, set_alpha_to_one=set_alpha_to_one, prediction_type=prediction_type
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _ready(pipeline, dtype)


def fake_lcm_pipeline(seed: int = 0) -> LatentConsistencyModelPipeline:
    """A fake latent consistency model: the guidance scale is an input of its UNet."""
    of = fake_pipeline(seed=seed, time_cond_proj_dim=8)
    pipeline = LatentConsistencyModelPipeline(
        **{**of.components, "scheduler": LCMScheduler.from_config(of.scheduler.config)},
        requires_safety_checker=False,
    )
    return _ready(pipeline, torch.float32)


def fake_sdxl_pipeline(
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scheduler: Any = None,
    force_zeros: bool = True,
    **unet: Any,
) -> StableDiffusionXLPipeline:
    """A fake Stable Diffusion XL pipeline on the CPU: two text encoders of widths 16 and 24.

    Args:
        dtype: of the weights.
        seed: of the weights.
        scheduler: in place of DDIM, e.g. a few-step model's.
        force_zeros: whether the empty negative prompt is zeros.
        unet: further fields of the UNet's configuration.
    """
    tokenizer, other = fake_tokenizer(), fake_tokenizer()
    other.pad_token = "!"
    config = {
        "cross_attention_dim": 16 + 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 12,
        "transformer_layers_per_block": 1,
        "use_linear_projection": True,
    }
    with _seeded(seed):
        second = _text_config(other, hidden_size=24, projection_dim=12, hidden_act="gelu")
        parts = {
            "text_encoder": CLIPTextModel(_text_config(tokenizer)).eval(),
            "text_encoder_2": CLIPTextModelWithProjection(second).eval(),
            "unet": _unet(8, config | unet),
            "vae": _vae(8),
        }
    pipeline = StableDiffusionXLPipeline(
        **parts,
        tokenizer=tokenizer,
        tokenizer_2=other,
        scheduler=scheduler or DDIMScheduler(**_SCHEDULE, set_alpha_to_one=False),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    return _ready(pipeline, dtype)


_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


def _text_config(tokenizer: CLIPTokenizer, **fields: Any) -> CLIPTextConfig:
    own = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**(own | fields))


def _unet(sample_size: int, fields: dict[str, Any]) -> UNet2DConditionModel:
    own: dict[str, Any] = {
        "sample_size": sample_size,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(own | fields)).eval()


def _vae(sample_size: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * sample_size,
    )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random weights from this seed; the global generator is left as it was."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _ready(pipeline: Any, dtype: torch.dtype) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline if dtype == torch.float32 else pipeline.to(dtype)


def save_fake_sdxl_pipeline(folder: Path, **fields: Any) -> Path:
    """A fake SDXL pipeline saved in the hub's layout; returns the folder."""
    fake_sdxl_pipeline(**fields).save_pretrained(folder, safe_serialization=True)
    return folder


def save_fake_pipeline(folder: Path, **fields: Any) -> Path:
    """A fake pipeline saved in the hub's layout; returns the folder."""
    fake_pipeline(**fields).save_pretrained(folder, safe_serialization=True)
    return folder
