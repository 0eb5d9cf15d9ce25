"""Classifier-free guidance as one batched call (arXiv 2207.12598, equation 6).

epsilon = epsilon_u + s (epsilon_c - epsilon_u), with both branches in one forward, the
unconditional one first. Guidance inside a trajectory (LGD) wraps the same `Denoiser`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models.base import Conditioning, FrozenModel

EXTRAS = ("pooled_prompt_embeds", "time_ids", "token_mask", "weights")


@dataclass(frozen=True)
class Denoiser:
    """The model under guidance, for a fixed conditioning.

    Attributes:
        model: the frozen model.
        guidance_scale: s; with one branch used by models alone that take it as an input.
        branches: 1, or 2 with an unconditional one; a call costs this many forwards a candidate.
        inputs: the conditioning tensors, [branches * n, ...] each, computed once a trajectory.
        names: the keyword of each of the inputs in `FrozenModel.denoise`.
    """

    model: FrozenModel
    guidance_scale: float
    branches: int
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]

    def __call__(self, latents: Tensor, t: Tensor, *inputs: Tensor) -> Tensor:
        """The guided prediction [n, C, h, w] of latents [n, C, h, w] at timestep t.

        `inputs` stand in for `self.inputs`, so that a gradient can be taken for them.
        """
        conditioning: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        if self.model.guidance_input:
            conditioning["guidance_scale"] = self.guidance_scale
        if self.branches == 1:
            return self.model.denoise(latents, t, **conditioning)
        both = self.model.denoise(torch.cat([latents, latents]), t, **conditioning)
        unconditional, conditional = both.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)


def guided(model: FrozenModel, conditioning: Conditioning, guidance_scale: float) -> Denoiser:
    """The denoiser of `model` under `guidance_scale` for the candidates of `conditioning`.

    Raises:
        InvalidInput: guidance is on and the conditioning has no unconditional branch.
    """
    branches = model.branches(guidance_scale)
    if branches == 2 and conditioning.negative_prompt_embeds is None:
        raise InvalidInput(
            f"{guidance_scale=} needs negative_prompt_embeds, got None; encode with "
            "negative prompts (the empty one is the default) or set guidance_scale=1"
        )
    tensors: dict[str, Tensor] = {}
    for name in ("prompt_embeds", *EXTRAS):
        positive = getattr(conditioning, name)
        if positive is None:
            continue
        negative = getattr(conditioning, f"negative_{name}", None)
        first = positive if negative is None else negative
        tensors[name] = torch.cat([first, positive]) if branches == 2 else positive
    cast = (
        v.to(device=model.device, dtype=v.dtype if name == "weights" else model.dtype)
        for name, v in tensors.items()
    )
    return Denoiser(model, guidance_scale, branches, tuple(cast), tuple(tensors))
