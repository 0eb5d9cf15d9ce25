"""Sampling, written once: noise and conditioning in, latents out, differentiable.

A pipeline's own `__call__` runs under `no_grad`; this is the same loop over the same components
and the scheduler's own `step`, so that images agree with the pipeline's to float tolerance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tiller.core.budget import count
from tiller.core.errors import Incompatible, InvalidInput
from tiller.models.base import Conditioning, FrozenModel, SamplerSettings
from tiller.models.calls import Calls
from tiller.models.checkpointing import (
    MEMORY_SHARE,
    Checkpoint,
    Plan,
    chosen,
    free_bytes,
    saved_bytes,
)
from tiller.models.gradient import Gradient
from tiller.models.guidance import Denoiser, guided
from tiller.models.replay import Recording
from tiller.models.schedulers import (
    closed_form,
    deviation,
    noise_level,
    noisy_steps,
    prepared,
    step,
    tilted,
)

__all__ = ["Gradient", "Guide", "Hook", "Trajectory"]

Hook = Callable[[int, Tensor, Tensor], Tensor]
"""(index, latents [n, C, h, w] after the step, x0 estimate [n, C, h, w]) -> latents to go on with.

Called once a step for all candidates together: previews return the latents as they came, guidance
changes them, particle methods resample their rows.
"""

Guide = Callable[[int, Tensor, Tensor, float], Tensor]
"""(index, x_t [n, C, h, w], x0 estimate [n, C, h, w], sigma_t) -> d log p(y | x_t) / d x_t.

Called once a step, before it: what it returns, [n, C, h, w], is added to the model's score, so a
guide is a wrapper around the denoiser and goes with every scheduler. x_t = alpha_t x0 + sigma_t eps
is a leaf, and the estimate holds the graph of the one denoiser call that led to it.
"""


class Trajectory:
    """The sampling map x_T, step noises, conditioning -> latents, for fixed settings.

    A candidate's noise is one tensor [slots, C, h, w] of standard normal numbers. Slot 0 is x_T
    (the scheduler's `init_noise_sigma` is applied inside); with DDIM and eta > 0 there is one
    more slot for each step whose variance is above zero, so none is dead.

    Attributes:
        model: the frozen model.
        settings: how it is sampled.
        timesteps: [num_steps] the scheduler's, on the CPU.
        noise_shape: (slots, C, h, w).
        plan: what the latest `run` kept and recomputed; `str(plan)` is a sentence.

    Raises:
        InvalidInput: a size that the model cannot draw, or an impossible schedule.

    Example:
        >>> model = tiller.load_model("emoji")                              # doctest: +SKIP
        >>> path = Trajectory(model, model.defaults)                        # doctest: +SKIP
        >>> noise = path.sample_noise(torch.Generator().manual_seed(0))[None]   # doctest: +SKIP
        >>> noise.requires_grad_()                                          # doctest: +SKIP
        >>> latents = path.run(noise, model.encode(["a red cat"]), gradient=Gradient.full())
        ...                                                                 # doctest: +SKIP
        >>> model.decode(latents).mean().backward()                         # doctest: +SKIP
    """

    def __init__(self, model: FrozenModel, settings: SamplerSettings | None = None) -> None:
        self.model = model
        self.settings = settings or model.defaults
        self._scheduler = prepared(
            model.scheduler, self.settings.scheduler, self.settings.num_inference_steps
        )
        self.timesteps: Tensor = self._scheduler.timesteps
        self._device_timesteps = self.timesteps.to(model.device)
        noisy = noisy_steps(self._scheduler, self.settings.eta)
        self._slot = {index: slot for slot, index in enumerate(noisy, start=1)}
        self.noise_shape = (1 + len(noisy), *self._latent_shape())
        self.plan: Plan | None = None
        self._step_bytes: dict[tuple[Any, ...], int] = {}

    @property
    def num_steps(self) -> int:
        """Denoiser calls of a whole trajectory: T, and more with PNDM."""
        return len(self.timesteps)

    @property
    def forwards_per_image(self) -> int:
        """Denoiser forwards of a whole trajectory without gradient, guidance counting double."""
        return self.num_steps * self.model.branches(self.settings.guidance_scale)

    def sample_noise(self, generator: torch.Generator) -> Tensor:
        """One candidate's noise [slots, C, h, w], float32 on the CPU.

        Slots are drawn one after another, in the order in which a pipeline draws them.
        """
        slots, *shape = self.noise_shape
        return torch.stack([torch.randn(shape, generator=generator) for _ in range(slots)])

    def run(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        *,
        gradient: Gradient = Gradient.none(),  # noqa: B008  # frozen
        checkpoint: Checkpoint = "auto",
        memory_budget: int | None = None,
        hook: Hook | None = None,
        guide: Guide | None = None,
    ) -> Tensor:
        """The latents [n, C, h, w] at the end of the trajectory, or where a shortcut leaves it.

        Args:
            noise: [n, slots, C, h, w], standard normal.
            conditioning: of n candidates, or of one for all.
            gradient: which steps carry a graph, to `noise` and to the conditioning.
            checkpoint: "keep" all activations, "recompute" all, the number of steps to keep, or
                "auto": as many as fit the budget.
            memory_budget: bytes of activations for "auto"; by default half of the free memory.
            hook: called once a step, see `Hook`.
            guide: tilts the score at each step, see `Guide`. Each step then costs a backward too.

        Raises:
            InvalidInput: a wrong shape, or a gradient mode that reaches beyond the trajectory.
            Incompatible: the noise wants a gradient that this mode cannot give, or one is asked
                for through a guide.
        """
        self._check(noise)
        window = gradient.window(self.num_steps)
        noise = noise.to(device=self.model.device, dtype=self.model.dtype)
        conditioning = conditioning.expand(len(noise))
        denoiser = guided(self.model, conditioning, self.settings.guidance_scale)
        graph = torch.is_grad_enabled()
        if guide is not None and graph and window.steps:
            raise Incompatible(
                f"a guided trajectory has no gradient of its own, got gradient={gradient}; "
                "leave out the guide, or set gradient=Gradient.none()"
            )
        if graph and noise.requires_grad and not any(v.requires_grad for v in denoiser.inputs):
            self.check_reaches_noise(gradient)
        steps = window.steps if graph else 0
        recording = self._recorded(denoiser, self.initial(noise), graph=steps > 0)
        calls = Calls(denoiser, len(noise) * denoiser.branches, recording)
        if checkpoint == "auto" and steps and recording is not None and recording.faster:
            self.plan = Plan(steps, 0, replayed=True)
        else:
            self.plan = chosen(
                checkpoint,
                steps,
                measure=lambda: len(noise) * self._measured(denoiser),
                memory_budget=memory_budget,
                device=self.model.device,
            )
        first_kept = window.stop - self.plan.kept
        scheduler = copy.deepcopy(self._scheduler)
        latents = self.initial(noise)
        for index in range(window.stop):
            with torch.set_grad_enabled(graph and index >= window.start):
                if 0 < window.start >= index:  # before and where the gradient starts: a constant
                    latents = latents.detach()
                t = self.timesteps[index]
                model_input = scheduler.scale_model_input(latents, t)
                if guide is None:
                    prediction = calls(
                        model_input, self._device_timesteps[index], keep=index >= first_kept
                    )
                else:
                    prediction = self._guided(guide, calls, scheduler, index, model_input)
                slot = self._slot.get(index)
                latents, estimate = step(
                    scheduler,
                    prediction,
                    t,
                    latents,
                    model_input,
                    eta=self.settings.eta,
                    noise=None if slot is None else noise[:, slot],
                )
                if window.closed_form and index == window.stop - 1:
                    latents = estimate
                if hook is not None:
                    latents = _hooked(hook, index, latents, estimate)
        count(images=len(noise))  # a shortcut's estimates too: they are decoded and scored alike
        return latents if window.steps else latents.detach()

    def over(self, model: FrozenModel) -> Trajectory:
        """The same sampling for a copy of the model that draws with other weights."""
        other = copy.copy(self)
        other.model, other.plan, other._step_bytes = model, None, {}
        return other

    @property
    def noisy_steps(self) -> tuple[int, ...]:
        """The steps that add noise, in order: slot k of the noise is the k-th one's."""
        return tuple(self._slot)

    def initial(self, noise: Tensor) -> Tensor:
        """x_T [n, C, h, w] of noise [n, slots, C, h, w], in the scheduler's scaling."""
        latents: Tensor = noise[:, 0] * self._scheduler.init_noise_sigma
        return latents

    def transition(
        self, index: int, latents: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, float]:
        """A noisy step alone: mean [n, C, h, w] and standard deviation of x_{t-1} given x_t.

            p(x_{t-1} | x_t) = N(mean(x_t), deviation^2 I)

        Args:
            index: one of `noisy_steps`.
            latents: [n, C, h, w] x_t, as a hook is given them.
            conditioning: of n candidates, or of one for all.

        Raises:
            Incompatible: the step adds no noise, so that its density is not defined.

        Source: Song et al., "Denoising diffusion implicit models", equations 12 and 16.
        """
        if index not in self._slot:
            raise Incompatible(
                f"step {index + 1} of {self.num_steps} adds no noise, so x_{{t-1}} has no density; "
                f"expected one of the steps {[i + 1 for i in self._slot]}. Use ddim with eta > 0, "
                "euler_a or lcm"
            )
        t, eta = self.timesteps[index], self.settings.eta
        scheduler = copy.deepcopy(self._scheduler)
        model_input = scheduler.scale_model_input(latents, t)
        prediction = self._predicted(index, model_input, conditioning)
        mean, _ = step(scheduler, prediction, t, latents, model_input, eta=eta, noise=None)
        return mean, deviation(scheduler, t, eta=eta)

    def renoised(self, index: int, x0: Tensor, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """The estimate of x0 [n, C, h, w] after x0 was noised to step `index`, from one call.

        x_t = alpha_t x0 + sigma_t noise, and the estimate is x_t's in closed form. Goes with every
        scheduler.
        """
        t = self.timesteps[index]
        alpha, sigma = noise_level(self._scheduler, t)
        x = alpha * x0 + sigma * noise.to(x0)
        return closed_form(self._scheduler, self._predicted(index, x, conditioning), t, x)

    def _predicted(self, index: int, model_input: Tensor, conditioning: Conditioning) -> Tensor:
        """One guided prediction [n, C, h, w], counted, with a graph where those are on."""
        n = len(model_input)
        denoiser = guided(self.model, conditioning.expand(n), self.settings.guidance_scale)
        t, graph = self._device_timesteps[index], torch.is_grad_enabled()
        recording = self._recorded(denoiser, model_input, graph=graph)
        calls = Calls(denoiser, n * denoiser.branches, recording)
        return calls(model_input, t, keep=recording is None or not recording.faster)

    def _recorded(self, denoiser: Denoiser, latents: Tensor, *, graph: bool) -> Recording | None:
        """The recording of the model's calls for such latents, where there is one."""
        replays, t = self.model.replays, self._device_timesteps[0]
        return None if replays is None else replays.find(denoiser, latents, t, graph=graph)

    def room(self, conditioning: Conditioning) -> int:
        """How many candidates' gradients fit into half of the free memory, all recomputed."""
        denoiser = guided(self.model, conditioning.detach(), self.settings.guidance_scale)
        step_bytes = self._measured(denoiser)
        budget = int(MEMORY_SHARE * free_bytes(self.model.device))
        return max(1, budget // max(1, step_bytes))

    def _guided(
        self, guide: Guide, calls: Calls, scheduler: Any, index: int, model_input: Tensor
    ) -> Tensor:
        """The prediction [n, C, h, w] with the guide's gradient in its score, without a graph."""
        t = self.timesteps[index]
        with torch.enable_grad():
            x = model_input.detach().requires_grad_()
            prediction = calls(x, self._device_timesteps[index], keep=True)
            estimate = closed_form(scheduler, prediction, t, x)
            gradient = guide(index, x, estimate, float(noise_level(scheduler, t)[1]))
        _check_returned("a guide must return a gradient", gradient, x, index)
        return tilted(scheduler, prediction.detach(), t, gradient.detach())

    def _latent_shape(self) -> tuple[int, int, int]:
        scale = self.model.latent_scale
        height, width = self.settings.height, self.settings.width
        if height % scale or width % scale:
            raise InvalidInput(
                f"{height=} and {width=} must be multiples of {scale}, the pixels per latent"
            )
        return self.model.latent_shape[0], height // scale, width // scale

    def _check(self, noise: Tensor) -> None:
        if noise.ndim != 5 or tuple(noise.shape[1:]) != self.noise_shape or not len(noise):
            raise InvalidInput(
                f"noise must be [n, {', '.join(map(str, self.noise_shape))}] for these settings, "
                f"got {list(noise.shape)}"
            )

    def check_reaches_noise(self, gradient: Gradient) -> None:
        """Refuse a mode that gives the noise no gradient.

        Raises:
            InvalidInput: the mode reaches beyond the trajectory.
            Incompatible: it covers steps alone that have no noise of their own.
        """
        window = gradient.window(self.num_steps)
        used = range(window.start, window.stop - window.closed_form)
        if window.steps and window.start > 0 and not any(index in self._slot for index in used):
            raise Incompatible(
                f"the gradient mode {gradient} reaches none of the noise: x_T comes before the "
                f"first step that carries a gradient, and with eta={self.settings.eta:g} no step "
                "in its reach has noise of its own. Use the mode full, or eta=1 with DDIM"
            )

    def _measured(self, denoiser: Denoiser) -> int:
        """Bytes that one step keeps for one candidate; measured once, by one unbilled forward.

        Unbilled, so that a resumed run, which measures again, costs what the whole one did.
        """
        wanted = tuple(tensor.requires_grad for tensor in denoiser.inputs)
        key = (denoiser.branches, wanted, *(tuple(v.shape[1:]) for v in denoiser.inputs))
        if key not in self._step_bytes:
            rows = slice(None, None, len(denoiser.inputs[0]) // denoiser.branches)
            inputs = tuple(
                tensor[rows].detach().requires_grad_(need)
                for tensor, need in zip(denoiser.inputs, wanted, strict=True)
            )
            latents = torch.zeros(
                1,
                *self.noise_shape[1:],
                device=self.model.device,
                dtype=self.model.dtype,
                requires_grad=True,
            )
            self._step_bytes[key] = saved_bytes(
                lambda: denoiser(latents, self._device_timesteps[0], *inputs)
            )
        return self._step_bytes[key]


def _hooked(hook: Hook, index: int, latents: Tensor, estimate: Tensor) -> Tensor:
    returned = hook(index, latents, estimate)
    _check_returned("a hook must return latents", returned, latents, index)
    return returned


def _check_returned(must: str, returned: Any, like: Tensor, index: int) -> None:
    if not isinstance(returned, Tensor) or returned.shape != like.shape:
        got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise InvalidInput(
            f"{must} of shape {list(like.shape)}, got {got} at {index=}; one that only looks "
            "returns what it was given (a hook) or zeros (a guide)"
        )
