"""Reading the shipped weights: the CLIP models, the preference head, the judge.

Nothing here trains or needs the font. On disk all is fp16; it is read as fp32, frozen, in
evaluation mode.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tiller.core.errors import TillerError

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

    from .judge import Judge

SIDE = 64  # pixels that the CLIP towers see


def weights_dir() -> Path:
    """The folder of the weights, in the layout that `StableDiffusionPipeline` reads.

    Raises:
        TillerError: the weights are not installed.

    Example:
        >>> (weights_dir() / "model_index.json").exists()
        True
    """
    folder = Path(__file__).with_name("weights")
    if not (folder / "model_index.json").exists():
        raise TillerError(
            f"expected the bundled model's weights in {folder}, got no model_index.json there; "
            "reinstall tiller, or train them: python -m tiller.models.bundled all"
        )
    return folder


def preprocess(images: Tensor) -> Tensor:
    """Pictures [n, 3, H, W] in [0, 1] -> what the vision towers take, [n, 3, 64, 64] in [-1, 1].

    Resized by `F.interpolate(bicubic, antialias=True)` if the size differs; differentiable.
    """
    if images.shape[-2:] != (SIDE, SIDE):
        images = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True)
    return (images - 0.5) / 0.5


def load_clip(held_out: bool = False) -> tuple[CLIPModel, CLIPTokenizer]:
    """The first CLIP model, the one to optimize, or the second, trained apart from it.

    Example:
        >>> model, tokenizer = load_clip()
        >>> model.get_image_features(preprocess(torch.zeros(1, 3, 64, 64))).pooler_output.shape
        torch.Size([1, 128])
    """
    from transformers import CLIPModel, CLIPTokenizer

    from tiller.models.quiet import quietly

    folder = weights_dir()
    name = "clip_heldout" if held_out else "clip"
    with quietly():
        model = CLIPModel.from_pretrained(str(folder / name), dtype=torch.float32)
    model.eval().requires_grad_(False)
    return model, CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))


class PreferenceHead(nn.Module):
    """A rating from the first CLIP's image features: a stand-in for a human-preference model.

    It imitates the synthetic rating of `preference.rating` (centred, large, contrasting with the
    background), not any human's taste. Scores have about zero mean and unit deviation over scenes.
    """

    def __init__(self, features: int = 128, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, image_embeds: Tensor) -> Tensor:
        """Image features [n, features], before or after normalisation, -> scores [n]."""
        unit = F.normalize(image_embeds, dim=-1) * image_embeds.shape[-1] ** 0.5
        scores: Tensor = self.layers(unit).squeeze(-1)
        return scores


def load_preference() -> PreferenceHead:
    """The preference head; it reads the image features of `load_clip()`'s model."""
    state = load_file(str(weights_dir() / "preference.safetensors"))
    hidden, features = state["layers.0.weight"].shape
    head = PreferenceHead(features, hidden)
    head.load_state_dict({k: v.float() for k, v in state.items()})
    return head.eval().requires_grad_(False)


def load_judge() -> Judge:
    """The judge."""
    from .judge import Judge

    folder = weights_dir()
    return Judge.load(folder / "judge.safetensors", folder / "judge.json")
