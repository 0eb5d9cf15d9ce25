"""A diffusers pipeline of CLIP text encoders, a UNet and a VAE as a frozen model.

The components are the pipeline's own and do their own work; this file only calls them with a
graph where one is wanted. What the families differ in is in `stable_diffusion.py` and `sdxl.py`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models.base import Conditioning, FrozenModel, SamplerSettings
from tiller.models.concepts import Concept, Vocabulary
from tiller.models.pieces import Piece, Text, checked, plain, readable
from tiller.models.replay import Replays
from tiller.models.schedulers import name_of, named
from tiller.models.text_encoder import TextEncoder, Weights

CACHED_PROMPTS = 4096  # encodings that are kept; [77, 768] in float32 is 237 kB
ENCODED_AT_ONCE = {"cpu": 1}
OTHERWISE_AT_ONCE = 32
"""Texts that go through the encoder as one batch, always so many, so that no text's encoding
depends on how many others there are: an accelerator takes as long for one as for these."""

Encoding = tuple[Tensor, ...]
"""What the text encoders say of one text: states [L, D] and, of SDXL, a pooled state [P]."""

_FIELDS = ("prompt_embeds", "pooled_prompt_embeds")


class LatentDiffusion(FrozenModel):
    """A diffusers pipeline with its weights frozen.

    The pipeline object is kept as `pipeline`; its weights get `requires_grad_(False)` and `eval()`,
    nothing else about it changes.

    Args:
        pipeline: the loaded pipeline.
        name: for messages.
        source: what `load_model` can load again, for run records.
        options: what else it was given.
        defaults: fields of `SamplerSettings` that it was made for; the others are the pipeline
            call's own steps and guidance, its own scheduler and its UNet's size.
        scheduler: replace the scheduler by the one of this name.
        concepts: learned words, which prompts may name by their tokens.

    Raises:
        InvalidInput: a pipeline, UNet or scheduler that is not supported.
    """

    masks_tokens = True

    suffixes: ClassVar[tuple[str, ...]]
    """Of the names of the pipeline's tokenizers and text encoders."""

    def __init__(
        self,
        pipeline: Any,
        *,
        name: str = "pipeline",
        source: str | None = None,
        options: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        scheduler: str | None = None,
        concepts: Sequence[Concept] = (),
    ) -> None:
        _refuse_unsupported(pipeline, self.suffixes)
        self.pipeline = pipeline
        self.pipeline_class = type(pipeline).__name__
        self.name = name
        self.source = source
        self.options = dict(options or {})
        self.unet = pipeline.unet
        self.vae = pipeline.vae
        self._readers = _readers(pipeline, self.suffixes)
        for part in self._parts():
            part.requires_grad_(False).eval()
        self.device = self.unet.device
        self.dtype = self.unet.dtype
        self.replays = Replays() if self.device.type == "cuda" else None
        self.latent_scale = int(pipeline.vae_scale_factor)
        self.guidance_input = self.unet.config.time_cond_proj_dim is not None
        self.scheduler = (
            pipeline.scheduler if scheduler is None else named(pipeline.scheduler, scheduler)
        )
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        own: dict[str, Any] = {
            **_call_defaults(pipeline),
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
        self._zero_without_words = False
        widths = [table.shape[1] for table in self.token_embeddings]
        self.concepts = Vocabulary(concepts, self.tokenizers, widths)
        self.taught = len(self.concepts) > 0
        self._encodings: OrderedDict[str, Encoding] = OrderedDict()
        self._scales: dict[float, Tensor] = {}

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None
    ) -> Conditioning:
        """The text encoders' states [n, L, D] of n prompts and of their negative prompts.

        Each distinct text is encoded once, on its own (on an accelerator in batches of one size),
        so the result does not depend on what else was asked for. Longer texts than the encoder can
        take are cut, with a `UserWarning` that names the words that were dropped.

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
        encoded = self._encoded([*positive, *negative])
        unconditional = [
            self._unconditional(encoding, not text.strip())
            for encoding, text in zip(encoded[len(positive) :], negative, strict=True)
        ]
        return _conditioning(encoded[: len(positive)], unconditional)

    def encode_pieces(
        self, prompts: Sequence[Text], negative_prompts: Sequence[Text] | None = None
    ) -> Conditioning:
        """The text encoders' states of texts made of pieces; see `FrozenModel.encode_pieces`."""
        positive = checked(prompts, "prompts")
        negative = checked(
            [[]] if negative_prompts is None else negative_prompts, "negative_prompts"
        )
        _check_number(len(negative), len(positive))
        texts = [self._named(text) for text in (*positive, *negative)]
        fixed = [plain(text) for text in texts]
        rest = [text for text, whole in zip(texts, fixed, strict=True) if whole is None]
        weights = Weights(rest, self.device)
        mixed = iter(self._mixed(rest, weights) if rest else ())
        known = iter(self._encoded([whole for whole in fixed if whole is not None]))
        found = [next(mixed) if whole is None else next(known) for whole in fixed]
        unconditional = [
            self._unconditional(encoding, weights.without_words(text))
            for encoding, text in zip(found[len(positive) :], texts[len(positive) :], strict=True)
        ]
        return _conditioning(found[: len(positive)], unconditional)

    def token_counts(self, prompts: Sequence[str], *, cut: bool = True) -> list[int]:
        """How many tokens of each text are read, ends included; the most of two encoders."""
        texts = [self._named([text]) for text in _texts(prompts, "prompts")]
        return [max(n) for n in zip(*(r.lengths(texts, cut) for r in self._readers), strict=True)]

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizer of each text encoder."""
        return tuple(reader.tokenizer for reader in self._readers)

    @property
    def token_embeddings(self) -> tuple[Tensor, ...]:
        """[V, D_e] the frozen input embeddings of each text encoder."""
        return tuple(reader.table for reader in self._readers)

    def fingerprint(self) -> str:
        """A hash of the weights (see `weights_fingerprint`) and of the learned words."""
        digest = self._weights_digest()
        for concept in self.concepts.concepts.values():
            for vectors in concept.vectors:
                digest.update(concept.token.encode() + vectors.numpy().tobytes())
        return digest.hexdigest()

    def weights_fingerprint(self) -> str:
        """A hash of the dtype and of a thousandth of each weight: milliseconds at any size."""
        return self._weights_digest().hexdigest()

    def decode(self, latents: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [0, 1], in float32 at least, of latents [n, C, h, w]."""
        scaled = self._unscaled(latents.to(self.vae.dtype))
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        return (image / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [n, C, h, w] of images [n, 3, H, W] in [0, 1]; a distribution's mean."""
        pixels = (2 * images - 1).to(device=self.device, dtype=self.vae.dtype)
        found = self.vae.encode(pixels)
        exact = hasattr(found, "latents")  # of a tiny autoencoder, which has no distribution
        latents: Tensor = found.latents if exact else found.latent_dist.mean
        return self._scaled(latents).to(self.dtype)

    @abstractmethod
    def _read(self, outputs: Sequence[Any]) -> Encoding:
        """From the output of each text encoder for n texts: states [n, L, D] and what else."""

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Latents [n, C, h, w] as the VAE takes them."""
        scaled: Tensor = latents / self.vae.config.scaling_factor
        return scaled

    def _scaled(self, latents: Tensor) -> Tensor:
        """What the VAE gives, [n, C, h, w], as the denoiser reads it."""
        scaled: Tensor = latents * self.vae.config.scaling_factor
        return scaled

    def _weights_digest(self) -> hashlib.blake2b:
        digest = hashlib.blake2b(str(self.dtype).encode(), digest_size=8)
        for part in self._parts():
            for name, weight in part.named_parameters():
                some = weight.detach().flatten()[:: max(1, weight.numel() // 1000 or 1)][:1000]
                digest.update(name.encode() + some.float().cpu().numpy().tobytes())
        return digest

    def _parts(self) -> tuple[Any, ...]:
        return (*(reader.encoder for reader in self._readers), self.unet, self.vae)

    def _timestep_condition(self, guidance_scale: float | None, m: int) -> Tensor | None:
        """[m, E] of a UNet that takes the guidance scale as an input, else None."""
        if not self.guidance_input:
            return None
        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        if scale not in self._scales:  # kept: a recorded call may copy nothing to the device
            embedding: Tensor = self.pipeline.get_guidance_scale_embedding(
                torch.tensor([scale - 1.0]), embedding_dim=self.unet.config.time_cond_proj_dim
            )
            self._scales[scale] = embedding.to(device=self.device, dtype=self.dtype)
        return self._scales[scale].expand(m, -1)

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        """What the encoders say of each text, from the cache where it was seen before."""
        found: dict[str, Encoding] = {}
        for text in dict.fromkeys(texts):
            if text in self._encodings:
                self._encodings.move_to_end(text)
                found[text] = self._encodings[text]
        new = [text for text in dict.fromkeys(texts) if text not in found]
        size = ENCODED_AT_ONCE.get(self.device.type, OTHERWISE_AT_ONCE)
        for first in range(0, len(new), size):
            some = new[first : first + size]
            rows = [self._named([text]) for text in some]
            rows += rows[-1:] * (size - len(rows))
            with torch.no_grad():
                read = self._mixed(rows, Weights((), self.device))[: len(some)]
            # Copies: a row of the batch would keep all of it.
            own = [tuple(v.clone() for v in row) for row in read] if size > 1 else read
            found.update(zip(some, own, strict=True))
        self._encodings.update((text, found[text]) for text in new)
        while len(self._encodings) > CACHED_PROMPTS:
            self._encodings.popitem(last=False)
        return [found[text] for text in texts]

    def _named(self, text: Text) -> list[Piece]:
        """The text with the concepts that it names by their tokens in place of these."""
        if not len(self.concepts):
            return list(text)
        read = [self.concepts.read(piece) if isinstance(piece, str) else [piece] for piece in text]
        return [piece for pieces in read for piece in pieces]

    def _unconditional(self, encoding: Encoding, wordless: bool) -> Encoding:
        """What guidance steers away from: of no words, zeros where the pipeline says so."""
        if not (wordless and self._zero_without_words):
            return encoding
        return tuple(0 * value for value in encoding)

    def _mixed(self, texts: Sequence[Text], weights: Weights) -> list[Encoding]:
        """What the encoders say of each text, as one batch."""
        rows = [reader.read(texts, weights) for reader in self._readers]
        said = [
            line
            for reader, own in zip(self._readers, rows, strict=True)
            for line in reader.warnings(own, self.name)
        ]
        for line in dict.fromkeys(said):
            warnings.warn(line, UserWarning, stacklevel=4)
        read = self._read(
            [
                reader(own, weights, output_hidden_states=True)
                for reader, own in zip(self._readers, rows, strict=True)
            ]
        )
        values = [value.to(self.dtype) for value in read]
        if weights.flat.requires_grad:  # where no stretch is left its gradient is zero, not None
            nothing = 0 * weights.flat.sum().to(self.dtype)
            values = [value + nothing for value in values]
        return list(zip(*values, strict=True))


def _call_defaults(pipeline: Any) -> dict[str, Any]:
    """The steps and the guidance that the pipeline's own `__call__` takes without being told."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return {name: parameters[name].default for name in ("num_inference_steps", "guidance_scale")}


def _readers(pipeline: Any, suffixes: Sequence[str]) -> tuple[TextEncoder, ...]:
    found = []
    for index, end in enumerate(suffixes):
        tokenizer, encoder = (getattr(pipeline, f"{n}{end}") for n in ("tokenizer", "text_encoder"))
        convert = functools.partial(pipeline.maybe_convert_prompt, tokenizer=tokenizer)
        found.append(TextEncoder(tokenizer, encoder, convert, index, len(suffixes)))
    return tuple(found)


def _conditioning(positive: Sequence[Encoding], negative: Sequence[Encoding]) -> Conditioning:
    """The rows of both branches; one negative row serves all."""
    if len(negative) < len(positive):
        negative = [*negative] * len(positive)
    fields: dict[str, Tensor] = {}
    for name, values, others in zip(
        _FIELDS, zip(*positive, strict=True), zip(*negative, strict=True), strict=False
    ):
        fields[name], fields[f"negative_{name}"] = torch.stack(values), torch.stack(others)
    return Conditioning(**fields)


def _refuse_unsupported(pipeline: Any, suffixes: Sequence[str]) -> None:
    needed = [f"{kind}{end}" for end in suffixes for kind in ("tokenizer", "text_encoder")]
    missing = [part for part in (*needed, "unet", "vae") if getattr(pipeline, part) is None]
    if missing:
        raise InvalidInput(
            f"expected a whole pipeline, this {type(pipeline).__name__} has no "
            f"{', '.join(missing)}; load it with all of its components"
        )
    unet = pipeline.unet.config
    if unet.in_channels != pipeline.vae.config.latent_channels:
        raise InvalidInput(
            f"expected a UNet that reads the VAE's {pipeline.vae.config.latent_channels} latent "
            f"channels, got {unet.in_channels}: an inpainting or editing model; load the "
            "text-to-image model it was made from"
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
