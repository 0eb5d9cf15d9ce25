"""Stable Diffusion 1.x and 2.x pipelines as frozen models.

The components are the pipeline's own and do their own work; this file only calls them with a
graph where one is wanted. SDXL is the same three functions with a second encoder's states
concatenated and `pooled_prompt_embeds` and `time_ids` filled in; `Conditioning` and `denoise` carry
them already.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models.base import Conditioning, FrozenModel, SamplerSettings
from tiller.models.pieces import Text, Tokens, checked, plain, readable
from tiller.models.schedulers import name_of, named
from tiller.models.text_encoder import TextEncoder, Weights

SUPPORTED = ("StableDiffusionPipeline",)
"""Classes of diffusers pipelines that can be steered."""

CACHED_PROMPTS = 4096  # encodings that are kept; [77, 768] in float32 is 237 kB


class StableDiffusion(FrozenModel):
    """A `diffusers.StableDiffusionPipeline` with its weights frozen.

    The pipeline object is kept as `pipeline`; its weights get `requires_grad_(False)` and `eval()`,
    nothing else about it changes.

    Args:
        pipeline: the loaded pipeline.
        name: for messages.
        source: what `load_model` can load again, for run records.
        options: what else it was given.
        defaults: fields of `SamplerSettings` that it was made for; the others are 50 steps,
            guidance 7.5, its own scheduler and its UNet's size.
        scheduler: replace the scheduler by the one of this name.

    Raises:
        InvalidInput: a pipeline, UNet or scheduler that is not supported.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        name: str = "pipeline",
        source: str | None = None,
        options: Mapping[str, str | None] | None = None,
        defaults: Mapping[str, Any] | None = None,
        scheduler: str | None = None,
    ) -> None:
        _refuse_unsupported(pipeline)
        self.pipeline = pipeline
        self.name = name
        self.source = source
        self.options = dict(options or {})
        self.text_encoder = pipeline.text_encoder
        self.unet = pipeline.unet
        self.vae = pipeline.vae
        for part in (self.text_encoder, self.unet, self.vae):
            part.requires_grad_(False).eval()
        self.device = self.unet.device
        self.dtype = self.unet.dtype
        self.latent_scale = int(pipeline.vae_scale_factor)
        self.scheduler = (
            pipeline.scheduler if scheduler is None else named(pipeline.scheduler, scheduler)
        )
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        own: dict[str, Any] = {
            "height": height * self.latent_scale,
            "width": width * self.latent_scale,
            "scheduler": name_of(self.scheduler),
        }
        own |= defaults or {}
        if scheduler is not None:
            own["scheduler"] = scheduler
        self.defaults = SamplerSettings(**own)
        self.latent_shape = (
            int(self.unet.config.in_channels),
            self.defaults.height // self.latent_scale,
            self.defaults.width // self.latent_scale,
        )
        self._reader = TextEncoder(
            pipeline.tokenizer,
            pipeline.text_encoder,
            lambda text: pipeline.maybe_convert_prompt(text, pipeline.tokenizer),
        )
        self._encodings: OrderedDict[str, Tensor] = OrderedDict()

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None
    ) -> Conditioning:
        """The text encoder's states [n, L, D] of n prompts and of their negative prompts.

        Each distinct text is encoded once, on its own, so the result does not depend on what else
        was asked for. Longer texts than the encoder can take are cut, with a `UserWarning` that
        names the words that were dropped.

        Args:
            prompts: n texts; anything that Python calls a string, the empty one included.
            negative_prompts: n texts, or one for all; by default empty.

        Raises:
            InvalidInput: no prompt, not a text, or another number of negative prompts.
        """
        positive = _texts(prompts, "prompts")
        negative = _texts(
            [""] if negative_prompts is None else negative_prompts, "negative_prompts"
        )
        _check_number(len(negative), len(positive))
        unconditional = [self._encoding(text) for text in negative]
        if len(unconditional) < len(positive):
            unconditional *= len(positive)
        return Conditioning(
            torch.stack([self._encoding(text) for text in positive]), torch.stack(unconditional)
        )

    def encode_pieces(
        self, prompts: Sequence[Text], negative_prompts: Sequence[Text] | None = None
    ) -> Conditioning:
        """The text encoder's states [n, L, D] of texts made of pieces; see `FrozenModel`."""
        positive = checked(prompts, "prompts")
        negative = checked(
            [[]] if negative_prompts is None else negative_prompts, "negative_prompts"
        )
        _check_number(len(negative), len(positive))
        states = self._mixed([*positive, *negative])
        unconditional = states[len(positive) :]
        if len(unconditional) < len(positive):
            unconditional *= len(positive)
        return Conditioning(torch.stack(states[: len(positive)]), torch.stack(unconditional))

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens of each text are read, both ends included, after truncation."""
        return self._reader.lengths(_texts(prompts, "prompts"))

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizer."""
        return (self._reader.tokenizer,)

    @property
    def token_embeddings(self) -> tuple[Tensor, ...]:
        """[V, D] the text encoder's frozen input embeddings."""
        return (self._reader.table,)

    def denoise(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """The UNet's prediction [m, C, h, w] for latents [m, C, h, w] and states [m, L, D]."""
        if pooled_prompt_embeds is not None or time_ids is not None:
            raise InvalidInput(
                "Stable Diffusion 1.x and 2.x take prompt_embeds alone; got pooled_prompt_embeds "
                "or time_ids, which are SDXL's"
            )
        out: Tensor = self.unet(latents, t, encoder_hidden_states=prompt_embeds, return_dict=False)[
            0
        ]
        return out

    def fingerprint(self) -> str:
        """A hash of the dtype and of a thousandth of each weight: milliseconds at any size."""
        digest = hashlib.blake2b(str(self.dtype).encode(), digest_size=8)
        for part in (self.text_encoder, self.unet, self.vae):
            for name, weight in part.named_parameters():
                some = weight.detach().flatten()[:: max(1, weight.numel() // 1000 or 1)][:1000]
                digest.update(name.encode() + some.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def decode(self, latents: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [0, 1], in float32 at least, of latents [n, C, h, w]."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        return (image / 2 + 0.5).clamp(0, 1)

    def _encoding(self, text: str) -> Tensor:
        """The states [L, D] of one text, from the cache where it was seen before."""
        if text not in self._encodings:
            with torch.no_grad():
                self._encodings[text] = self._states([[text]])[0]
            if len(self._encodings) > CACHED_PROMPTS:
                self._encodings.popitem(last=False)
        self._encodings.move_to_end(text)
        return self._encodings[text]

    def _mixed(self, texts: Sequence[Text]) -> list[Tensor]:
        """The states [L, D] of each text: fixed ones from the cache, the others as one batch."""
        fixed = [plain(text) for text in texts]
        rest = [text for text, whole in zip(texts, fixed, strict=True) if whole is None]
        states = iter(self._states(rest) if rest else ())
        return [next(states) if whole is None else self._encoding(whole) for whole in fixed]

    def _states(self, texts: Sequence[Text]) -> Tensor:
        """The text encoder's states [n, L, D]."""
        for text in texts:
            for piece in text:
                if isinstance(piece, Tokens) and len(piece.vectors) != 1:
                    raise InvalidInput(
                        f"expected Tokens with vectors for 1 text encoder, got {len(piece.vectors)}"
                    )
        weights = Weights(texts, self.device)
        rows = self._reader.read(texts, weights)
        for message in dict.fromkeys(self._reader.warnings(rows, self.name)):
            warnings.warn(message, UserWarning, stacklevel=5)
        states: Tensor = self._reader(rows, weights)[0].to(self.dtype)
        if weights.flat.requires_grad:  # where no stretch is left its gradient is zero, not None
            states = states + 0 * weights.flat.sum().to(states.dtype)
        return states


def _refuse_unsupported(pipeline: Any) -> None:
    kind = type(pipeline).__name__
    if kind not in SUPPORTED:
        raise InvalidInput(
            f"a {kind} cannot be steered yet; supported pipelines: {', '.join(SUPPORTED)} "
            "(Stable Diffusion 1.x and 2.x)"
        )
    unet = pipeline.unet.config
    if unet.in_channels != pipeline.vae.config.latent_channels:
        raise InvalidInput(
            f"expected a UNet that reads the VAE's {pipeline.vae.config.latent_channels} latent "
            f"channels, got {unet.in_channels}: an inpainting or editing model; load the "
            "text-to-image model it was made from"
        )
    if unet.time_cond_proj_dim is not None:
        raise InvalidInput(
            "this UNet takes the guidance scale as an input (a latent consistency model), which is "
            "not supported yet; load the Stable Diffusion model it was distilled from"
        )


def _check_number(negative: int, positive: int) -> None:
    if negative not in (1, positive):
        raise InvalidInput(
            f"expected 1 or {positive} negative_prompts, one a prompt; got {negative}"
        )


def _texts(texts: Sequence[str], what: str) -> list[str]:
    """The texts as a list, with half surrogates, which no tokenizer takes, replaced."""
    if isinstance(texts, str):
        raise InvalidInput(f"{what} must be a list of texts, got one text; write [{texts!r}]")
    if not texts:
        raise InvalidInput(f"expected at least one text in {what}, got none")
    for text in texts:
        if not isinstance(text, str):
            raise InvalidInput(f"{what} must be texts, got {text!r} of type {type(text).__name__}")
    return [readable(text) for text in texts]
