"""Stable Diffusion XL (arXiv 2307.01952): two text encoders, a pooled state and the sizes.

The UNet reads both encoders' penultimate states side by side, and its timestep embedding takes the
second encoder's pooled state and six numbers: the original size, the crop and the target size.
Few-step models of this architecture (turbo, Lightning, Hyper) are plain configurations of it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models.diffusers_adapter import Encoding, LatentDiffusion

SIZES = 6  # numbers in time_ids


@final
class StableDiffusionXL(LatentDiffusion):
    """A `diffusers.StableDiffusionXLPipeline` with its weights frozen; see `LatentDiffusion`.

    - An empty negative prompt is zeros where the pipeline says `force_zeros_for_empty_prompt`, as
      it is for diffusers without a negative prompt.
    - Without `time_ids` the sizes are those of the picture that is drawn, uncropped.
    - A VAE in float16 that must not overflow (`force_upcast`) decodes as a float32 copy of its own,
      so that the pipeline stays as it is.
    """

    suffixes = ("", "_2")

    def __init__(self, pipeline: Any, **options: Any) -> None:
        super().__init__(pipeline, **options)
        self._size_ids: dict[tuple[Any, ...], Tensor] = {}
        self._zero_without_words = bool(pipeline.config.force_zeros_for_empty_prompt)
        self._refuse_other_sizes()
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae = copy.deepcopy(self.vae).to(torch.float32)

    def denoise(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        token_mask: Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The UNet's prediction [m, C, h, w] for latents [m, C, h, w].

        Args:
            latents: [m, C, h, w].
            t: the timestep.
            prompt_embeds: [m, L, D_1 + D_2].
            pooled_prompt_embeds: [m, P].
            time_ids: [m, 6] original height and width, top and left of the crop, target height and
                width, in pixels; by default the picture's own.
            token_mask: [m, L] 1 for the tokens that are read; None for all.
            guidance_scale: for UNets that take it as an input.
        """
        if pooled_prompt_embeds is None:
            raise InvalidInput(
                "SDXL needs pooled_prompt_embeds [n, P] beside prompt_embeds, got None; take both "
                "from model.encode"
            )
        if time_ids is None:
            time_ids = self._sizes(latents)
        out: Tensor = self.unet(
            latents,
            t,
            encoder_hidden_states=prompt_embeds,
            encoder_attention_mask=token_mask,
            timestep_cond=self._timestep_condition(guidance_scale, len(latents)),
            added_cond_kwargs={"text_embeds": pooled_prompt_embeds, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return out

    def _read(self, outputs: Sequence[Any]) -> Encoding:
        states = [output.hidden_states[-2] for output in outputs]
        return torch.cat(states, dim=-1), outputs[-1].text_embeds

    def _sizes(self, latents: Tensor) -> Tensor:
        height, width = (side * self.latent_scale for side in latents.shape[-2:])
        like = (height, width, latents.device, latents.dtype)
        if like not in self._size_ids:  # kept: a recorded call may copy nothing to the device
            sizes = [height, width, 0, 0, height, width]
            self._size_ids[like] = torch.tensor([sizes], device=like[2], dtype=like[3])
        return self._size_ids[like].expand(len(latents), SIZES)

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, deviation = self._moments(latents)
        return super()._unscaled(latents) * deviation + mean

    def _scaled(self, latents: Tensor) -> Tensor:
        mean, deviation = self._moments(latents)
        return super()._scaled((latents - mean) / deviation)

    def _moments(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """The latents' mean and deviation, which some VAEs of this family say."""
        mean, deviation = (getattr(self.vae.config, f"latents_{n}", None) for n in ("mean", "std"))
        if mean is None or deviation is None:
            return 0.0, 1.0
        shape = (1, -1, 1, 1)
        return latents.new_tensor(mean).view(shape), latents.new_tensor(deviation).view(shape)

    def _refuse_other_sizes(self) -> None:
        """The refiner reads five numbers and an aesthetic score, other models no pooled state."""
        unet = self.unet.config
        pooled = self._readers[-1].encoder.config.projection_dim
        got = None
        if unet.addition_embed_type == "text_time":
            got = self.unet.add_embedding.linear_1.in_features
        expected = SIZES * (unet.addition_time_embed_dim or 0) + pooled
        if got != expected:
            raise InvalidInput(
                f"expected a UNet that reads a pooled state and {SIZES} sizes, {expected} numbers "
                f"in all, got {got}: not an SDXL base model; load the base in place of a refiner"
            )
