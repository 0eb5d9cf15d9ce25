"""Gradients in all four modes, against central differences in float64 and against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.errors import Incompatible, InvalidInput
from tiller.models import Conditioning, Gradient, SamplerSettings, Trajectory, load_model
from tiller.testing.fake_pipeline import fake_pipeline

STEPS = 5
STOCHASTIC = SamplerSettings(STEPS, 4.0, 1.0, 16, 16)


def start(model: Any, settings: SamplerSettings) -> tuple[Trajectory, Tensor, Conditioning]:
    path = Trajectory(model, settings)
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None].to(model.dtype)
    return path, noise, model.encode(["a red cat"], ["blue"])


def value(model: Any, latents: Tensor) -> Tensor:
    """A smooth function of the picture."""
    image = model.decode(latents)
    weight = torch.linspace(-1, 1, image.numel(), dtype=image.dtype).view_as(image)
    return (image * weight).sum() + image.square().sum()


def gradients(
    model: Any, path: Trajectory, noise: Tensor, conditioning: Conditioning, **options: Any
) -> tuple[Tensor, Tensor]:
    """d value / d noise and d value / d prompt_embeds; zeros where nothing arrives."""
    noise = noise.clone().requires_grad_()
    embeds = conditioning.prompt_embeds.clone().requires_grad_()
    latents = path.run(noise, replace(conditioning, prompt_embeds=embeds), **options)
    found = torch.autograd.grad(value(model, latents), [noise, embeds], allow_unused=True)
    return tuple(  # type: ignore[return-value]
        torch.zeros_like(leaf) if grad is None else grad
        for leaf, grad in zip((noise, embeds), found, strict=True)
    )


def central(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> float:
    h = 1e-5
    with torch.no_grad():
        return float(function(x + h * direction) - function(x - h * direction)) / (2 * h)


def direction_like(x: Tensor, seed: int) -> Tensor:
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return d / d.norm()


def check(
    model: Any, settings: SamplerSettings, gradient: Gradient, first: int, stop: int | None
) -> None:
    """Compare with differences of the function that the mode differentiates.

    Its steps before `first` are constants: a hook puts the unperturbed latents back there. A
    shortcut's value is its own x0 estimate, which `run` returns in every mode.
    """
    path, noise, conditioning = start(model, settings)
    frozen: dict[int, Tensor] = {}

    def remember(index: int, latents: Tensor, estimate: Tensor) -> Tensor:
        frozen[index] = latents.clone()
        return latents

    def restore(index: int, latents: Tensor, estimate: Tensor) -> Tensor:
        return frozen[index] if index == first - 1 else latents

    with torch.no_grad():
        path.run(noise, conditioning, gradient=gradient, hook=remember)
    assert len(frozen) == (path.num_steps if stop is None else stop)

    def of_noise(x: Tensor) -> Tensor:
        return value(model, path.run(x, conditioning, gradient=gradient, hook=restore))

    def of_embeds(x: Tensor) -> Tensor:
        given = replace(conditioning, prompt_embeds=x)
        return value(model, path.run(noise, given, gradient=gradient, hook=restore))

    by_noise, by_embeds = gradients(model, path, noise, conditioning, gradient=gradient)
    for x, grad, function in (
        (noise, by_noise, of_noise),
        (conditioning.prompt_embeds, by_embeds, of_embeds),
    ):
        for seed in (1, 2):
            d = direction_like(x, seed)
            expected = central(function, x, d)
            assert float((grad * d).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert by_embeds.abs().max() > 0


@pytest.mark.parametrize(
    ("gradient", "first", "stop"),
    [
        (Gradient.full(), 0, None),
        (Gradient.last(2), STEPS - 2, None),
        (Gradient.shortcut(2, 2), 2, 4),
        (Gradient.shortcut(1, 1), 1, 2),
    ],
    ids=str,
)
def test_modes_against_central_differences(
    double: Any, gradient: Gradient, first: int, stop: int | None
) -> None:
    check(double, STOCHASTIC, gradient, first, stop)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_predictions_against_central_differences(prediction_type: str) -> None:
    pipeline = fake_pipeline(prediction_type=prediction_type, dtype=torch.float64)
    check(load_model(pipeline), STOCHASTIC, Gradient.full(), 0, None)


@pytest.mark.parametrize("scheduler", ["lms", "pndm"])
def test_multistep_schedulers_against_central_differences(double: Any, scheduler: str) -> None:
    """Their state carries gradient from step to step. (Euler and DPM++ cast to float32.)"""
    check(double, SamplerSettings(4, 3.0, 0.0, 16, 16, scheduler), Gradient.full(), 0, None)


@pytest.mark.parametrize("scheduler", ["euler", "dpmsolver++"])
def test_float32_schedulers_against_coarse_differences(model: Any, scheduler: str) -> None:
    path, noise, conditioning = start(model, SamplerSettings(4, 3.0, 0.0, 16, 16, scheduler))
    grad, _ = gradients(model, path, noise, conditioning, gradient=Gradient.full())
    d, h = grad / grad.norm(), 0.02
    with torch.no_grad():
        up, down = (value(model, path.run(noise + sign * h * d, conditioning)) for sign in (1, -1))
    # float32 rounding over h, and h squared, bound the difference from above
    assert float(up - down) / (2 * h) == pytest.approx(float(grad.norm()), rel=0.02)


def test_none_has_no_graph(model: Any) -> None:
    path, noise, conditioning = start(model, STOCHASTIC)
    assert not path.run(noise.requires_grad_(), conditioning).requires_grad


def test_no_graph_under_no_grad(model: Any) -> None:
    path, noise, conditioning = start(model, STOCHASTIC)
    with torch.no_grad():
        out = path.run(noise.requires_grad_(), conditioning, gradient=Gradient.full())
    assert not out.requires_grad
    assert str(path.plan) == "no gradient: nothing is kept"


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_last_of_all_steps_and_a_shortcut_of_full_length_equal_full(
    double: Any, eta: float
) -> None:
    """DDIM's last step lands on the x0 estimate here, with eta 1 as well: it has no noise."""
    path, noise, conditioning = start(double, replace(STOCHASTIC, eta=eta))
    full = gradients(double, path, noise, conditioning, gradient=Gradient.full())
    for mode in (Gradient.last(STEPS), Gradient.shortcut(0, STEPS)):
        for a, b in zip(full, gradients(double, path, noise, conditioning, gradient=mode),
                        strict=True):  # fmt: skip
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_euler_shortcut_of_full_length_equals_full(model: Any) -> None:
    path, noise, conditioning = start(model, SamplerSettings(4, 3.0, 0.0, 16, 16, "euler"))
    full = gradients(model, path, noise, conditioning, gradient=Gradient.full())
    short = gradients(model, path, noise, conditioning, gradient=Gradient.shortcut(0, 4))
    for a, b in zip(full, short, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_noise_before_the_window_gets_no_gradient(double: Any) -> None:
    path, noise, conditioning = start(double, STOCHASTIC)
    assert path.noise_shape[0] == STEPS  # x_T and one for each step but the last
    grad, _ = gradients(double, path, noise, conditioning, gradient=Gradient.last(2))
    reached = grad.flatten(2).abs().amax(-1)[0] > 0
    assert reached.tolist() == [False, False, False, False, True]
    full, _ = gradients(double, path, noise, conditioning, gradient=Gradient.full())
    assert (full.flatten(2).abs().amax(-1) > 0).all()  # no slot is dead


@pytest.mark.parametrize("gradient", [Gradient.last(2), Gradient.shortcut(2, 1)], ids=str)
def test_noise_out_of_reach_is_refused(model: Any, gradient: Gradient) -> None:
    path, noise, conditioning = start(model, replace(STOCHASTIC, eta=0.0))
    with pytest.raises(Incompatible, match="reaches none of the noise"):
        path.run(noise.requires_grad_(), conditioning, gradient=gradient)


@pytest.mark.parametrize(
    "gradient",
    [Gradient.last(0), Gradient.last(6), Gradient.shortcut(5, 1), Gradient.shortcut(0, 0)],
    ids=str,
)
def test_modes_beyond_the_trajectory_are_refused(model: Any, gradient: Gradient) -> None:
    path, noise, conditioning = start(model, STOCHASTIC)
    with pytest.raises(InvalidInput, match="5 steps"):
        path.run(noise, conditioning, gradient=gradient)


@pytest.mark.parametrize("text", ["none", "full", "last(3)", "shortcut(25, 1)"])
def test_modes_print_and_parse(text: str) -> None:
    assert str(Gradient.parse(text)) == text


@pytest.mark.parametrize("text", ["", "last", "last()", "full(1)", "last(1, 2)", "half"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected a gradient mode"):
        Gradient.parse(text)
