"""Stable Diffusion 1.x and 2.x: one text encoder, whose last states the UNet reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models.diffusers_adapter import Encoding, LatentDiffusion


@final
class StableDiffusion(LatentDiffusion):
    """A `diffusers.StableDiffusionPipeline` with its weights frozen; see `LatentDiffusion`."""

    suffixes = ("",)

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
        """The UNet's prediction [m, C, h, w] for latents [m, C, h, w] and states [m, L, D]."""
        if pooled_prompt_embeds is not None or time_ids is not None:
            raise InvalidInput(
                "Stable Diffusion 1.x and 2.x take prompt_embeds alone; got pooled_prompt_embeds "
                "or time_ids, which are SDXL's"
            )
        out: Tensor = self.unet(
            latents,
            t,
            encoder_hidden_states=prompt_embeds,
            encoder_attention_mask=token_mask,
            timestep_cond=self._timestep_condition(guidance_scale, len(latents)),
            return_dict=False,
        )[0]
        return out

    def _read(self, outputs: Sequence[Any]) -> Encoding:
        return (outputs[0][0],)
