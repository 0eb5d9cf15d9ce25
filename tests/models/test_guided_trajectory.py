"""Guidance inside a trajectory: the score it makes is the right one, for every scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tiller.core.budget import metered
from tiller.core.errors import Incompatible, InvalidInput
from tiller.models import Conditioning, FrozenModel, Gradient, SamplerSettings, Trajectory
from tiller.models.schedulers import NAMES

SHIFT = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
CASES = [
    (scheduler, kind)
    for scheduler in NAMES
    for kind in ("epsilon", "v_prediction", "sample")
    if kind != "sample" or scheduler not in ("pndm", "euler_a")  # they know no x0 prediction
]


class GaussianData(FrozenModel):
    """The exact denoiser of data from N(mean, I): x0_hat = mean + alpha (x_t - alpha mean)."""

    def __init__(self, mean: Tensor, prediction_type: str = "epsilon") -> None:
        self.name, self.source, self.options = "gaussian data", None, {}
        self.defaults = SamplerSettings(6, 1.0, 0.0, 2, 2)
        self.latent_shape, self.latent_scale = (3, 2, 2), 1
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.mean = mean
        self.scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, prediction_type=prediction_type
        )

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
        alpha = self.scheduler.alphas_cumprod[int(t)] ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        x0 = self.mean + alpha * (latents - alpha * self.mean)
        epsilon = (latents - alpha * x0) / sigma
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return epsilon
        return x0 if kind == "sample" else alpha * epsilon - sigma * x0

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def drawn(mean: Tensor, kind: str, settings: SamplerSettings, seeds: int = 2, **how: object):
    model = GaussianData(mean, kind)
    path = Trajectory(model, settings)
    noise = [path.sample_noise(torch.Generator().manual_seed(s)) for s in range(seeds)]
    return path.run(torch.stack(noise).double(), model.encode(["x"]), **how)


def towards_shift(index: int, x: Tensor, estimate: Tensor, sigma: float) -> Tensor:
    """d log E exp(<SHIFT, x0>) / d x_t for any Gaussian around the estimate."""
    return torch.autograd.grad(estimate, x, SHIFT.expand_as(estimate))[0]


@pytest.mark.parametrize(("scheduler", "kind"), CASES)
def test_a_tilted_gaussian_is_drawn_as_the_model_of_the_tilted_data_draws_it(
    scheduler: str, kind: str
) -> None:
    """N(mean, I) weighted by exp(<shift, x0>) is N(mean + shift, I): the same scores exactly."""
    settings = SamplerSettings(6, 1.0, 0.0, 2, 2, scheduler)
    guided = drawn(0 * SHIFT, kind, settings, guide=towards_shift)
    expected = drawn(SHIFT, kind, settings)
    # Euler and DPM-Solver++ compute in float32.
    assert torch.allclose(guided.double(), expected.double(), rtol=1e-5, atol=1e-5)
    assert (expected - drawn(0 * SHIFT, kind, settings)).abs().max() > 0.5
    assert not guided.requires_grad


def test_the_stochastic_sampler_is_guided_in_the_same_way() -> None:
    settings = SamplerSettings(6, 1.0, 1.0, 2, 2)
    guided = drawn(0 * SHIFT, "epsilon", settings, guide=towards_shift)
    assert torch.allclose(guided, drawn(SHIFT, "epsilon", settings), rtol=1e-6, atol=1e-6)


def test_a_guide_that_says_nothing_changes_nothing(model: FrozenModel) -> None:
    path = Trajectory(model, SamplerSettings(3, 4.0, 1.0, 16, 16))
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None]
    words = model.encode(["a red cat"])
    seen: list[tuple[int, float]] = []

    def silent(index: int, x: Tensor, estimate: Tensor, sigma: float) -> Tensor:
        seen.append((index, sigma))
        assert estimate.requires_grad
        return torch.zeros_like(x)

    with torch.no_grad():
        assert torch.equal(path.run(noise, words, guide=silent), path.run(noise, words))
    assert [index for index, _ in seen] == [0, 1, 2]
    assert 1 > seen[0][1] > seen[1][1] > seen[2][1] > 0


def test_each_step_is_billed_a_forward_and_a_backward(model: FrozenModel) -> None:
    path = Trajectory(model, SamplerSettings(3, 4.0, 0.0, 16, 16))
    noise = torch.stack([path.sample_noise(torch.Generator().manual_seed(s)) for s in (0, 1)])

    def pull(index: int, x: Tensor, estimate: Tensor, sigma: float) -> Tensor:
        return torch.autograd.grad(estimate.square().sum(), x)[0]

    with metered() as meter, torch.no_grad():
        path.run(noise, model.encode(["a red cat"]), guide=pull)
    cost = meter.cost
    assert (cost.forwards, cost.backwards, cost.recomputes, cost.images) == (12, 12, 0, 2)


def test_what_a_guide_cannot_do_is_refused(model: FrozenModel) -> None:
    path = Trajectory(model, SamplerSettings(2, 1.0, 0.0, 16, 16))
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None]
    words = model.encode(["a red cat"])
    with pytest.raises(InvalidInput, match=r"a guide must return a gradient of shape \[1, 4, 8, 8"):
        path.run(noise, words, guide=lambda index, x, estimate, sigma: x[0])
    with pytest.raises(Incompatible, match="no gradient of its own"):
        path.run(noise, words, gradient=Gradient.full(), guide=towards_shift)
