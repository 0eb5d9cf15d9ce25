"""A frozen CLIP model: pictures and prompts to unit vectors, gradients only to the pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from tiller.core.errors import InvalidInput, TillerNotice
from tiller.models.quiet import quietly
from tiller.rewards._preprocess import Preprocess

EMOJI = "emoji"  # the bundled CLIP that rewards optimize
EMOJI_HELD_OUT = "emoji-heldout"  # the bundled CLIP that only reports
BUNDLED = (EMOJI, EMOJI_HELD_OUT)
_REMEMBERED = 4096  # prompts whose vectors a tower keeps


@dataclass(frozen=True, eq=False)
class Tower:
    """One loaded CLIP.

    Attributes:
        model: the frozen `transformers.CLIPModel`.
        tokenizer: its tokenizer.
        preprocess: what images go through first.
        limit: tokens of a prompt that the text tower can read, start and end included.
    """

    model: Any
    tokenizer: Any
    preprocess: Preprocess
    limit: int
    _texts: dict[str, Tensor] = field(default_factory=dict)

    def embed_images(self, images: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [0, 1], any size -> unit vectors [n, D]; differentiable."""
        found = self.model.get_image_features(pixel_values=self.preprocess(images))
        return F.normalize(_pooled(found), dim=-1)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> unit vectors [n, D] without a graph; each prompt is encoded once."""
        return torch.stack([self._text(prompt) for prompt in prompts])

    def _text(self, prompt: str) -> Tensor:
        if prompt not in self._texts:
            if len(self._texts) >= _REMEMBERED:
                self._texts.clear()
            self._texts[prompt] = self._encode(prompt)
        return self._texts[prompt]

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        """One prompt alone, so that its vector never depends on the others' lengths."""
        used = len(self.tokenizer(prompt, verbose=False).input_ids)
        if used > self.limit:
            warnings.warn(
                f"the prompt has {used} tokens and this CLIP reads {self.limit}; its end does not "
                "count in the score",
                TillerNotice,
                stacklevel=2,
            )
        tokens = self.tokenizer(
            prompt, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(self.model.device)
        found = self.model.get_text_features(**tokens)
        return F.normalize(_pooled(found), dim=-1)[0]


def tower_for(source: str, images: Tensor) -> Tower:
    """The tower for `source` on the images' device, loaded once a process.

    It computes in float32, or in float64 for float64 images.

    Args:
        source: `emoji`, `emoji-heldout`, or the hub id or folder of a `transformers.CLIPModel`.
        images: decides the device and the precision.

    Raises:
        InvalidInput: it cannot be loaded, or is no CLIP model with safetensors weights.
    """
    double = images.dtype == torch.float64
    return _load(source, images.device, torch.float64 if double else torch.float32)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _load(source: str, device: torch.device, dtype: torch.dtype) -> Tower:
    if source in BUNDLED:
        model, tokenizer, preprocess = _bundled(held_out=source == EMOJI_HELD_OUT)
    else:
        model, tokenizer, preprocess = _pretrained(source)
    model = model.to(device=device, dtype=dtype).requires_grad_(False).eval()
    limit = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
    return Tower(model, tokenizer, preprocess, limit)


def _bundled(*, held_out: bool) -> tuple[Any, Any, Preprocess]:
    from tiller.models.bundled import load_clip

    model, tokenizer = load_clip(held_out)
    half = (0.5, 0.5, 0.5)
    side = model.config.vision_config.image_size
    return model, tokenizer, Preprocess(size=(side, side), mean=half, std=half)


def _pretrained(source: str) -> tuple[Any, Any, Preprocess]:
    """Model, tokenizer and preprocessing of a hub id or folder; never from a pickle."""
    from transformers import AutoConfig, CLIPModel, CLIPTokenizer

    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type != "clip":
            raise ValueError(f"its model_type is {config.model_type!r}, not 'clip'")
        with quietly():
            model, info = CLIPModel.from_pretrained(
                source, config=config, use_safetensors=True, output_loading_info=True
            )
        if info["missing_keys"]:
            raise ValueError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}")
        tokenizer = CLIPTokenizer.from_pretrained(source)
        return model, tokenizer, _processor(source, config.vision_config.image_size)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InvalidInput(
            f"cannot load the CLIP model {source!r}: expected 'emoji', a folder or a hub id of a "
            f"transformers CLIPModel with safetensors weights and a tokenizer; got: {first}"
        ) from error


def _processor(source: str, image_size: int) -> Preprocess:
    """From the model's `preprocessor_config.json`; without one, CLIP's own for its image size."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        config, _ = BaseImageProcessor.get_image_processor_dict(source)
    except OSError:
        return Preprocess(shortest_edge=image_size, crop=(image_size, image_size))
    return Preprocess.from_config(config)


def _pooled(found: Any) -> Tensor:
    """The projected features: a tensor before transformers 5, inside an object since."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features
