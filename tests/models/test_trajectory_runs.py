"""Noise, batching, guidance, hooks, x0 estimates and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models import (
    Conditioning,
    FrozenModel,
    Gradient,
    SamplerSettings,
    Trajectory,
    load_model,
)
from tiller.models.schedulers import DRAWING, NAMES
from tiller.testing.fake_pipeline import fake_pipeline

SETTINGS = SamplerSettings(5, 4.0, 1.0, 16, 16)


def noises(path: Trajectory, *seeds: int) -> Tensor:
    return torch.stack([path.sample_noise(torch.Generator().manual_seed(s)) for s in seeds])


class PointMass(FrozenModel):
    """The exact denoiser of data that is one point: its x0 estimate is that point, always."""

    def __init__(self, prediction_type: str, set_alpha_to_one: bool = True) -> None:
        self.name, self.source = "point mass", None
        self.defaults = SamplerSettings(10, 1.0, 0.0, 4, 4)
        self.latent_shape, self.latent_scale = (3, 4, 4), 1
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type=prediction_type,
            set_alpha_to_one=set_alpha_to_one,
            steps_offset=1,
        )
        generator = torch.Generator().manual_seed(5)
        self.point = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None
    ) -> Conditioning:
        return Conditioning(torch.zeros(len(prompts), 1, 1, dtype=torch.float64))

    def denoise(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        alpha = self.scheduler.alphas_cumprod[int(t)].double().sqrt()
        sigma = (1 - alpha**2).sqrt()
        epsilon = (latents - alpha * self.point) / sigma
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return epsilon
        return self.point.expand_as(latents) if kind == "sample" else (
            alpha * epsilon - sigma * self.point
        )  # fmt: skip

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(0, 1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", NAMES)
def test_x0_estimates_of_a_point_mass_are_the_point(scheduler: str, prediction_type: str) -> None:
    """At every step of every scheduler, and as the end of every shortcut."""
    if prediction_type == "sample" and scheduler in ("pndm", "euler_a"):
        pytest.skip("diffusers' PNDM and ancestral Euler have no x0 prediction")
    model = PointMass(prediction_type)
    path = Trajectory(model, replace(model.defaults, scheduler=scheduler))
    noise, conditioning = noises(path, 0, 1), model.encode(["", ""])
    estimates: list[Tensor] = []

    def collect(index: int, latents: Tensor, estimate: Tensor) -> Tensor:
        assert index == len(estimates)
        estimates.append(estimate)
        return latents

    path.run(noise, conditioning, hook=collect)
    assert len(estimates) == path.num_steps
    shortcut = path.run(noise, conditioning, gradient=Gradient.shortcut(4, 1))
    for estimate in (*estimates, shortcut):  # float32 tables, divided by a small alpha at first
        torch.testing.assert_close(estimate, model.point.expand_as(estimate), rtol=2e-4, atol=2e-4)


def test_ddim_ends_on_the_point_mass() -> None:
    model = PointMass("epsilon")
    path = Trajectory(model, replace(model.defaults, eta=1.0))
    latents = path.run(noises(path, 0), model.encode([""]))
    torch.testing.assert_close(latents[0], model.point, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("set_alpha_to_one", "eta", "slots"),
    [(True, 0.0, 1), (True, 1.0, 5), (False, 0.0, 1), (False, 1.0, 6)],
)
def test_slots_are_the_steps_with_a_variance(
    set_alpha_to_one: bool, eta: float, slots: int
) -> None:
    """x_T and one a step but the last; without `set_alpha_to_one` that one has a variance too."""
    path = Trajectory(PointMass("epsilon", set_alpha_to_one), SamplerSettings(5, 1, eta, 4, 4))
    assert path.noise_shape == (slots, 3, 4, 4)


@pytest.mark.parametrize("scheduler", NAMES[1:])
def test_other_schedulers_have_one_slot_or_one_a_step_but_the_last(
    model: Any, scheduler: str
) -> None:
    slots = 5 if scheduler in DRAWING else 1
    path = Trajectory(model, replace(SETTINGS, scheduler=scheduler))
    assert path.noise_shape == (slots, 4, 8, 8)
    if scheduler != "pndm":  # which takes more than one
        one = Trajectory(model, replace(SETTINGS, scheduler=scheduler, num_inference_steps=1))
        assert one.noise_shape == (1, 4, 8, 8)


@pytest.mark.parametrize("scheduler", ["euler_a", "lcm"])
def test_noise_that_a_scheduler_draws_itself_is_an_input(model: Any, scheduler: str) -> None:
    """Every slot counts, linearly at the last one, and nothing else is random."""
    path = Trajectory(model, replace(SETTINGS, scheduler=scheduler, guidance_scale=1.0))
    noise, words = noises(path, 0), model.encode(["a cat"])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = path.run(noise, words)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(path.run(noise, words), whole)
    moved = noise.clone().requires_grad_()
    path.run(moved, words, gradient=Gradient.full()).square().sum().backward()
    assert moved.grad is not None
    assert (moved.grad[0].flatten(1).abs().amax(1) > 0).all()
    # The last noisy step alone: x = mean + deviation * noise.
    index = path.noisy_steps[-1]
    mean, deviation = path.transition(index, noise[:, 0], words)
    assert deviation > 0
    assert not mean.isnan().any()


def test_timesteps_in_the_trailing_order_start_at_pure_noise(model: Any) -> None:
    """As few-step models are configured; one step of DDIM then is the x0 estimate itself."""
    pipeline = fake_pipeline(set_alpha_to_one=True)
    config = pipeline.scheduler.config
    pipeline.scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing")
    path = Trajectory(load_model(pipeline), SamplerSettings(1, 1.0, 0.0, 16, 16))
    assert path.timesteps.tolist() == [999]
    words = path.model.encode(["a cat"])
    estimates: list[Tensor] = []
    out = path.run(noises(path, 0), words, hook=lambda i, x, x0: estimates.append(x0) or x)
    assert torch.equal(out, estimates[0])


def test_noise_is_drawn_slot_by_slot(model: Any) -> None:
    """As a pipeline draws it, so x_T does not depend on how many slots follow."""
    stochastic = Trajectory(model, SETTINGS)
    plain = Trajectory(model, replace(SETTINGS, eta=0.0))
    one, other = noises(stochastic, 7)[0], noises(plain, 7)[0]
    assert torch.equal(one[:1], other)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(one[1], [torch.randn(4, 8, 8, generator=generator) for _ in range(2)][1])


@pytest.mark.parametrize("scheduler", NAMES)
def test_batching_does_not_change_a_result(model: Any, scheduler: str) -> None:
    """Neither the pictures nor the gradients, to float tolerance."""
    path = Trajectory(model, replace(SETTINGS, scheduler=scheduler))
    noise = noises(path, 0, 1, 2).requires_grad_()
    prompts, negatives = ["a cat", "", "two blue dogs"], ["", "red", "x"]
    conditioning = model.encode(prompts, negatives)

    def images(rows: slice) -> Tensor:
        latents = path.run(noise[rows], conditioning.index(rows), gradient=Gradient.full())
        decoded: Tensor = model.decode(latents)
        return decoded

    together = images(slice(None))
    (grad,) = torch.autograd.grad(together.square().sum(), noise)
    for i in range(3):
        alone = images(slice(i, i + 1))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)
        (own,) = torch.autograd.grad(alone.square().sum(), noise)
        torch.testing.assert_close(own[i], grad[i], rtol=1e-3, atol=1e-3 * float(grad.abs().max()))
        assert not own[[j for j in range(3) if j != i]].any()


def test_guidance_of_one_is_the_conditional_branch_alone(model: Any) -> None:
    path = Trajectory(model, replace(SETTINGS, guidance_scale=1.0))
    noise = noises(path, 0)
    ours = path.run(noise, model.encode(["a cat"], ["dogs"]))
    without = replace(model.encode(["a cat"]), negative_prompt_embeds=None)
    assert torch.equal(ours, path.run(noise, without))
    with pytest.raises(InvalidInput, match="needs negative_prompt_embeds"):
        Trajectory(model, SETTINGS).run(noises(Trajectory(model, SETTINGS), 0), without)


def test_guidance_extrapolates_between_the_branches(model: Any) -> None:
    """One step of x0 prediction is linear in the guidance scale."""
    noise = noises(Trajectory(model, replace(SETTINGS, eta=0.0)), 0)

    def estimate(scale: float, prompt: str = "a cat") -> Tensor:
        path = Trajectory(model, replace(SETTINGS, eta=0.0, guidance_scale=scale))
        mode = Gradient.shortcut(0, 1)
        return path.run(noise, model.encode([prompt]), gradient=mode)

    unconditional, conditional = estimate(1.0, ""), estimate(1.0)
    expected = unconditional + 5 * (conditional - unconditional)
    torch.testing.assert_close(estimate(5.0), expected, rtol=1e-4, atol=1e-3)


def test_one_conditioning_serves_all_candidates(model: Any) -> None:
    path = Trajectory(model, SETTINGS)
    noise = noises(path, 0, 1)
    one, each = model.encode(["a cat"]), model.encode(["a cat", "a cat"])
    assert torch.equal(path.run(noise, one), path.run(noise, each))
    with pytest.raises(InvalidInput, match="1 or 2 candidates, got 3"):
        path.run(noise, model.encode(["a", "b", "c"]))


def test_hook_may_change_and_resample_the_candidates(model: Any) -> None:
    """Rows of a particle method: copying candidate 1 over 0 half way makes the ends equal."""
    path = Trajectory(model, replace(SETTINGS, eta=0.0))
    seen: list[int] = []

    def resample(index: int, latents: Tensor, estimate: Tensor) -> Tensor:
        seen.append(index)
        assert latents.shape == estimate.shape == (2, 4, 8, 8)
        return latents[[1, 1]] if index == 2 else latents

    out = path.run(noises(path, 0, 1), model.encode(["a cat"]), hook=resample)
    assert seen == [0, 1, 2, 3, 4]
    torch.testing.assert_close(out[0], out[1])


def test_hook_that_returns_nothing_is_told_so(model: Any) -> None:
    path = Trajectory(model, SETTINGS)
    hook: Any = lambda index, latents, estimate: None  # noqa: E731
    with pytest.raises(InvalidInput, match="a hook must return latents of shape"):
        path.run(noises(path, 0), model.encode(["a cat"]), hook=hook)


@pytest.mark.parametrize("scheduler", NAMES)
def test_the_loaded_pipeline_is_never_stepped(scheduler: str) -> None:
    pipeline = fake_pipeline()
    model = load_model(pipeline, scheduler=scheduler)
    before = (str(pipeline.scheduler.__dict__), str(model.scheduler.__dict__))
    path = Trajectory(model, SETTINGS_OF(scheduler))
    noise, conditioning = noises(path, 0), model.encode(["a cat"])
    first = path.run(noise, conditioning)
    assert torch.equal(first, path.run(noise, conditioning))  # nor does a run change the next
    assert before == (str(pipeline.scheduler.__dict__), str(model.scheduler.__dict__))


def SETTINGS_OF(scheduler: str) -> SamplerSettings:  # noqa: N802
    return replace(SETTINGS, scheduler=scheduler, eta=0.0)


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (1, 4, 4, 8, 8), (1, 5, 4, 8, 4), (0, 5, 4, 8, 8)])
def test_other_noise_shapes_are_refused(model: Any, shape: tuple[int, ...]) -> None:
    path = Trajectory(model, replace(SETTINGS, scheduler="ddim"))
    slots = path.noise_shape[0]
    wrong = shape if shape[1:2] != (5,) else (shape[0], slots, *shape[2:])
    with pytest.raises(InvalidInput, match=rf"noise must be \[n, {slots}, 4, 8, 8\]"):
        path.run(torch.zeros(wrong), model.encode(["a cat"]))


def test_sizes_and_schedules_that_cannot_be(model: Any) -> None:
    with pytest.raises(InvalidInput, match="multiples of 2"):
        Trajectory(model, replace(SETTINGS, height=17))
    with pytest.raises(InvalidInput, match="unknown name='heun'"):
        Trajectory(model, replace(SETTINGS, scheduler="heun"))
    with pytest.raises(InvalidInput, match="num_inference_steps=2000"):
        Trajectory(model, replace(SETTINGS, num_inference_steps=2000))


def test_other_schedulers_are_refused() -> None:
    pipeline = fake_pipeline()
    pipeline.scheduler = DDPMScheduler()
    with pytest.raises(InvalidInput, match="DDPMScheduler is not supported"):
        load_model(pipeline)
    assert load_model(pipeline, scheduler="ddim").defaults.scheduler == "ddim"
    pipeline.scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    with pytest.raises(InvalidInput, match="draws noise of its own"):
        Trajectory(load_model(pipeline))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", 2.5),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("eta", 1.5),
        ("height", True),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=field):
        replace(SETTINGS, **{field: value})


def test_conditioning_rows() -> None:
    embeds = torch.arange(12.0).view(3, 2, 2)
    whole = Conditioning(embeds, -embeds, pooled_prompt_embeds=embeds[:, 0])
    assert torch.equal(Conditioning.cat([whole.index([2]), whole.index(slice(0, 2))]).prompt_embeds,
                       embeds[[2, 0, 1]])  # fmt: skip
    assert len(whole.index([1]).expand(4)) == 4
    assert whole.to(torch.float64).pooled_prompt_embeds.dtype == torch.float64  # type: ignore[union-attr]
    with pytest.raises(InvalidInput, match="some of the conditionings only"):
        Conditioning.cat([whole, Conditioning(embeds)])
    with pytest.raises(InvalidInput, match="must have the shape of"):
        Conditioning(embeds, embeds[:, :1])
    with pytest.raises(InvalidInput, match=r"must be \[n, L, D\]"):
        Conditioning(embeds[0])
