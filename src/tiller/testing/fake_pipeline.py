"""A fake Stable Diffusion pipeline: tiny, random weights, the real classes and file layout.

It draws nothing sensible; it serves tests of samplers, gradients and loaders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

FAKE_LENGTH = 16  # tokens that the fake text encoder reads, both ends included


def fake_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer whose tokens are single characters: any text can be read."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=FAKE_LENGTH)


def fake_pipeline(
    *,
    prediction_type: str = "epsilon",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    set_alpha_to_one: bool = False,
    sample_size: int = 8,
    **unet: Any,
) -> StableDiffusionPipeline:
    """A fake pipeline on the CPU that draws 16 x 16 pixels from latents [4, 8, 8].

    Args:
        prediction_type: epsilon, v_prediction or sample.
        dtype: of the weights.
        seed: of the weights.
        set_alpha_to_one: whether DDIM's last step lands on the x0 estimate.
        sample_size: latents along each side.
        unet: further fields of the UNet's configuration.
    """
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    tokenizer = fake_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=FAKE_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    config: dict[str, Any] = {
        "sample_size": sample_size,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    denoiser = UNet2DConditionModel(**(config | unet))
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * sample_size,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=set_alpha_to_one,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    torch.set_rng_state(state)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=denoiser.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline if dtype == torch.float32 else pipeline.to(dtype)


def save_fake_pipeline(folder: Path, **fields: Any) -> Path:
    """A fake pipeline saved in the hub's layout; returns the folder."""
    fake_pipeline(**fields).save_pretrained(folder, safe_serialization=True)
    return folder
