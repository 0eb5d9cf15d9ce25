"""Calls of the denoiser in one trajectory: counted, kept or recomputed, recorded or not."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiller.core.budget import count
from tiller.models.checkpointing import recomputed
from tiller.models.guidance import Denoiser
from tiller.models.replay import Recording

__all__ = ["Calls"]


@dataclass(frozen=True)
class Calls:
    """Calls of the denoiser in one trajectory, each counted once forwards and once backwards.

    `amount` is candidates times branches. A backward may run on another thread (it does on
    accelerators), where the caller's meter is not active: it is counted in the context of the
    forward.
    """

    denoiser: Denoiser
    amount: int
    recording: Recording | None = None

    def __call__(self, latents: Tensor, t: Tensor, *, keep: bool) -> Tensor:
        denoiser, amount, recording = self.denoiser, self.amount, self.recording
        count(forwards=amount)
        plain = denoiser if recording is None else recording.call
        if not torch.is_grad_enabled():
            return plain(latents, t, *denoiser.inputs)
        context = contextvars.copy_context()

        def function(x: Tensor, *inputs: Tensor) -> Tensor:
            return (denoiser if torch.is_grad_enabled() else plain)(x, t, *inputs)

        def pullback(given: Sequence[Tensor], grad: Tensor) -> Sequence[Tensor | None]:
            assert recording is not None
            return recording.pull(given[0], t, given[1:], grad)

        if keep:
            # A node for each step, so that the sums over its layers are made as recomputation
            # makes them: the gradient is the same bit for bit, however much is kept.
            own = (v.view_as(v) if v.requires_grad else v for v in (latents, *denoiser.inputs))
            out = function(*own)
        else:
            out = recomputed(
                function,
                latents,
                denoiser.inputs,
                lambda: context.run(count, recomputes=amount),
                None if recording is None else pullback,
            )
        if out.requires_grad:
            out.register_hook(  # type: ignore[no-untyped-call]  # of torch
                lambda grad: context.run(count, backwards=amount)
            )
        return out
