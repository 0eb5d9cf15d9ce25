"""One noisy step as a Gaussian, and a picture noised and denoised again: closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import metered
from tiller.core.errors import Incompatible
from tiller.models.base import FrozenModel, SamplerSettings
from tiller.models.loader import load_model
from tiller.models.trajectory import Trajectory
from tiller.testing.fake_pipeline import fake_pipeline


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return load_model(fake_pipeline(dtype=torch.float64))


def path(model: FrozenModel, **changes: Any) -> Trajectory:
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "eta": 1.0} | changes
    return Trajectory(model, SamplerSettings(height=16, width=16, **settings))


def latents_of(trajectory: Trajectory, noise: Tensor, words: Any) -> list[Tensor]:
    """x_T and every latent after it."""
    chain = [trajectory.initial(noise)]

    def keep(index: int, latents: Tensor, estimate: Tensor) -> Tensor:
        chain.append(latents)
        return latents

    trajectory.run(noise, words, hook=keep)
    return chain


def prediction(model: FrozenModel, x: Tensor, t: Tensor, words: Any) -> Tensor:
    """epsilon_u + 3 (epsilon_c - epsilon_u)."""
    conditional = model.denoise(x, t, words.prompt_embeds)
    unconditional = model.denoise(x, t, words.negative_prompt_embeds)
    return unconditional + 3.0 * (conditional - unconditional)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_a_noisy_step_is_the_gaussian_of_the_ddim_paper(model: FrozenModel, eta: float) -> None:
    """mean and deviation by equations 12 and 16, and the chain's own next latents lie there."""
    trajectory = path(model, eta=eta)
    words = model.encode(["a red cat"])
    noise = torch.stack(
        [trajectory.sample_noise(torch.Generator().manual_seed(s)) for s in (0, 1)]
    ).double()
    chain = latents_of(trajectory, noise, words)
    alphas = model.scheduler.alphas_cumprod.double()
    steps = trajectory.noisy_steps
    assert list(steps) == [0, 1, 2, 3]  # this model's last step has a small noise too
    for slot, index in enumerate(steps, start=1):
        t = int(trajectory.timesteps[index])
        last = index == len(steps) - 1
        after = alphas[0] if last else alphas[int(trajectory.timesteps[index + 1])]
        now = alphas[t]
        sigma = eta * ((1 - after) / (1 - now)).sqrt() * (1 - now / after).sqrt()
        epsilon = prediction(model, chain[index], trajectory.timesteps[index], words.expand(2))
        x0 = (chain[index] - (1 - now).sqrt() * epsilon) / now.sqrt()
        expected = after.sqrt() * x0 + (1 - after - sigma**2).sqrt() * epsilon
        mean, deviation = trajectory.transition(index, chain[index], words)
        assert deviation == pytest.approx(float(sigma), rel=1e-4)
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(chain[index + 1], mean + deviation * noise[:, slot])


@pytest.mark.parametrize("scheduler", ["euler_a", "lcm"])
def test_samplers_that_draw_themselves_have_gaussian_steps_too(
    model: FrozenModel, scheduler: str
) -> None:
    trajectory = path(model, scheduler=scheduler, eta=0.0)
    words = model.encode(["a red cat"])
    noise = trajectory.sample_noise(torch.Generator().manual_seed(0))[None].double()
    chain = latents_of(trajectory, noise, words)
    assert list(trajectory.noisy_steps) == [0, 1, 2]
    for slot, index in enumerate(trajectory.noisy_steps, start=1):
        mean, deviation = trajectory.transition(index, chain[index], words)
        assert deviation > 0
        torch.testing.assert_close(chain[index + 1], mean + deviation * noise[:, slot])


def test_a_transition_is_billed_as_its_forward_and_backward(model: FrozenModel) -> None:
    trajectory = path(model)
    x = torch.zeros(3, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    with metered() as meter:
        mean, _ = trajectory.transition(1, x, model.encode(["a red cat"]))
        mean.sum().backward()  # type: ignore[no-untyped-call]
    assert (meter.cost.forwards, meter.cost.backwards, meter.cost.images) == (6, 6, 0)


@pytest.mark.parametrize(("changes", "index"), [({"eta": 0.0}, 0), ({}, 9)])
def test_a_step_without_noise_has_no_density(
    model: FrozenModel, changes: dict[str, Any], index: int
) -> None:
    trajectory = path(model, **changes)
    with pytest.raises(Incompatible, match="has no density"):
        trajectory.transition(index, torch.zeros(1, 4, 8, 8), model.encode(["a red cat"]))


@pytest.mark.parametrize("scheduler", ["ddim", "lms"])
def test_a_picture_noised_and_denoised_again(model: FrozenModel, scheduler: str) -> None:
    trajectory = path(model, scheduler=scheduler, eta=0.0)
    words = model.encode(["a red cat"])
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=generator, dtype=torch.float64)
    found = trajectory.renoised(3, x0, noise, words)
    t = trajectory.timesteps[3]
    alpha_squared = model.scheduler.alphas_cumprod.double()[t.long()]
    alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
    x = alpha * x0 + sigma * noise
    expected = (x - sigma * prediction(model, x, t, words.expand(2))) / alpha
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_another_model_is_sampled_alike(model: FrozenModel) -> None:
    """`over` shares the schedule and nothing that belongs to a run."""
    trajectory, other = path(model), load_model(fake_pipeline(seed=1, dtype=torch.float64))
    noise = trajectory.sample_noise(torch.Generator().manual_seed(0))[None]
    moved = trajectory.over(other)
    words = other.encode(["a red cat"])
    expected = path(other).run(noise, words)
    assert torch.equal(moved.run(noise, words), expected)
    assert trajectory.plan is None
    assert trajectory.model is model
