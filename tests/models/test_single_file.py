"""A `.safetensors` single file in the original layout draws as the folder it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models import SamplerSettings, Trajectory, load_model
from tiller.models.loader import _kind_of_file
from tiller.testing.fake_pipeline import fake_pipeline, fake_sdxl_pipeline

# Where the fake's layers lie in the original layout; longest names first.
UNET = {
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "conv_in.": "input_blocks.0.0.",
    "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
    "down_blocks.1.resnets.0.": "input_blocks.3.0.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.",
    "up_blocks.0.resnets.1.": "output_blocks.1.0.",
    "up_blocks.0.upsamplers.0.": "output_blocks.1.1.",
    "up_blocks.1.resnets.0.": "output_blocks.2.0.",
    "up_blocks.1.attentions.0.": "output_blocks.2.1.",
    "up_blocks.1.resnets.1.": "output_blocks.3.0.",
    "up_blocks.1.attentions.1.": "output_blocks.3.1.",
}
RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
VAE = {
    "coder.down_blocks.0.resnets.": "coder.down.0.block.",
    "coder.down_blocks.1.resnets.": "coder.down.1.block.",
    "coder.down_blocks.0.downsamplers.0.": "coder.down.0.downsample.",
    "coder.up_blocks.0.resnets.": "coder.up.1.block.",
    "coder.up_blocks.1.resnets.": "coder.up.0.block.",
    "coder.up_blocks.0.upsamplers.0.": "coder.up.1.upsample.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.group_norm.": "mid.attn_1.norm.",
    "mid_block.attentions.0.to_q.": "mid.attn_1.q.",
    "mid_block.attentions.0.to_k.": "mid.attn_1.k.",
    "mid_block.attentions.0.to_v.": "mid.attn_1.v.",
    "mid_block.attentions.0.to_out.0.": "mid.attn_1.proj_out.",
    "conv_norm_out.": "norm_out.",
    "conv_shortcut.": "nin_shortcut.",
}

OPEN_CLIP = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.final_layer_norm.": "ln_final.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}


def renamed(key: str, names: dict[str, str]) -> str:
    for ours, original in names.items():
        key = key.replace(ours, original)
    return key


def original_layout(pipeline: Any) -> dict[str, Tensor]:
    """The pipeline's weights under the names of the first release's checkpoints."""
    tensors: dict[str, Tensor] = {}
    for key, value in pipeline.unet.state_dict().items():
        name = renamed(key, UNET)
        if ".resnets." in key:
            name = renamed(name, RESNET)
        tensors[f"model.diffusion_model.{name}"] = value
    for key, value in pipeline.vae.state_dict().items():
        flat = ".attentions." in key and key.endswith("weight") and "group_norm" not in key
        shaped = value[:, :, None, None] if flat else value
        tensors[f"first_stage_model.{renamed(key, VAE)}"] = shaped
    two = hasattr(pipeline, "text_encoder_2")
    first = "conditioner.embedders.0.transformer." if two else "cond_stage_model.transformer."
    for key, value in pipeline.text_encoder.state_dict().items():
        tensors[first + "text_model." + key.removeprefix("text_model.")] = value
    if two:
        second = open_clip(pipeline.text_encoder_2.state_dict())
        tensors |= {f"conditioner.embedders.1.model.{key}": v for key, v in second.items()}
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def open_clip(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder's weights as OpenCLIP names them, the three projections as one."""
    tensors = {
        renamed(key, OPEN_CLIP): value
        for key, value in states.items()
        if not any(part in key for part in ("q_proj", "k_proj", "v_proj", "text_projection"))
    }
    for key in states:
        if ".q_proj." in key:
            name = renamed(key, OPEN_CLIP).replace("self_attn.q_proj.", "attn.in_proj_")
            tensors[name] = torch.cat([states[key.replace("q_proj", p + "_proj")] for p in "qkv"])
    return {**tensors, "text_projection": states["text_projection.weight"].T}


def picture(model: Any) -> Tensor:
    path = Trajectory(model, SamplerSettings(2, 3.0, 0.0, 16, 16))
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None]
    image: Tensor = model.decode(path.run(noise, model.encode(["a cat"])))
    return image


@pytest.mark.parametrize("made", [fake_pipeline, fake_sdxl_pipeline], ids=["sd", "xl"])
def test_a_single_file_draws_as_its_folder(tmp_path: Path, made: Any) -> None:
    """The configuration comes from the folder in which the file lies."""
    pipeline = made()
    pipeline.save_pretrained(tmp_path)
    save_file(original_layout(pipeline), str(tmp_path / "fake.safetensors"))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for weights in (tmp_path / part).glob("*.safetensors"):
            weights.unlink()  # nothing but the single file has weights
    loaded = load_model(tmp_path / "fake.safetensors")
    assert torch.equal(picture(loaded), picture(load_model(pipeline)))


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, str(tmp_path / "none.safetensors"))
    with pytest.raises(InvalidInput, match="A single file holds no configuration"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(InvalidInput, match="there is none"):
        load_model(tmp_path / "gone.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "none.safetensors").read_bytes()[:20])
    with pytest.raises(InvalidInput, match="is not whole"):
        load_model(tmp_path / "torn.safetensors")


def test_an_xl_checkpoint_is_known_by_its_names(tmp_path: Path) -> None:
    """So that its configuration is asked for in the right place."""
    save_file(original_layout(fake_sdxl_pipeline()), str(tmp_path / "xl.safetensors"))
    assert _kind_of_file(tmp_path / "xl.safetensors") == "StableDiffusionXLPipeline"
    save_file(original_layout(fake_pipeline()), str(tmp_path / "sd.safetensors"))
    assert _kind_of_file(tmp_path / "sd.safetensors") == "StableDiffusionPipeline"
