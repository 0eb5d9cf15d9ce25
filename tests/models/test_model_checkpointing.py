"""What is kept and recomputed changes memory and time, never a bit of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor

from tiller.core.budget import metered
from tiller.core.errors import InvalidInput
from tiller.models import Gradient, SamplerSettings, Trajectory, load_model
from tiller.models.checkpointing import free_bytes, recomputed, saved_bytes
from tiller.testing.fake_pipeline import fake_pipeline

SETTINGS = SamplerSettings(6, 4.0, 1.0, 16, 16)


def run(model: Any, settings: SamplerSettings, **options: Any) -> tuple[Any, Any, Any]:
    """The trajectory, the meter and the gradients to the noise and the prompt of two candidates."""
    path = Trajectory(model, settings)
    noise = torch.stack([path.sample_noise(torch.Generator().manual_seed(s)) for s in (0, 1)])
    noise.requires_grad_()
    conditioning = model.encode(["a red cat", "a dog"])
    embeds = conditioning.prompt_embeds.requires_grad_()
    with metered() as meter:
        latents = path.run(noise, replace(conditioning, prompt_embeds=embeds), **options)
        model.decode(latents).square().sum().backward()
    return path, meter.cost, (noise.grad, embeds.grad)


@pytest.mark.parametrize("scheduler", ["ddim", "lms", "euler", "pndm", "dpmsolver++"])
def test_recomputing_equals_keeping_bit_for_bit(model: Any, scheduler: str) -> None:
    """So a run that resumes on another machine does not depend on its memory."""
    settings = replace(SETTINGS, scheduler=scheduler)
    _, _, kept = run(model, settings, gradient=Gradient.full(), checkpoint="keep")
    for checkpoint in ("recompute", 2, "auto"):
        _, _, again = run(model, settings, gradient=Gradient.full(), checkpoint=checkpoint)
        assert torch.equal(kept[0], again[0])
        assert torch.equal(kept[1], again[1])


def test_meter_counts_candidates_times_branches(model: Any) -> None:
    _, cost, _ = run(model, SETTINGS, gradient=Gradient.full(), checkpoint="keep")
    assert (cost.images, cost.forwards, cost.backwards, cost.recomputes) == (2, 24, 24, 0)
    _, cost, _ = run(model, SETTINGS, gradient=Gradient.full(), checkpoint="recompute")
    assert (cost.images, cost.forwards, cost.backwards, cost.recomputes) == (2, 24, 24, 24)
    _, cost, _ = run(model, SETTINGS, gradient=Gradient.full(), checkpoint=2)
    assert (cost.forwards, cost.backwards, cost.recomputes) == (24, 24, 16)
    _, cost, _ = run(model, SETTINGS, gradient=Gradient.last(2), checkpoint="keep")
    assert (cost.forwards, cost.backwards) == (24, 8)
    _, cost, _ = run(model, SETTINGS, gradient=Gradient.shortcut(3, 1))
    assert (cost.forwards, cost.backwards, cost.recomputes) == (16, 4, 0)  # the rest never runs
    one_branch = replace(SETTINGS, guidance_scale=1.0)
    _, cost, _ = run(model, one_branch, gradient=Gradient.full(), checkpoint="keep")
    assert (cost.forwards, cost.backwards) == (12, 12)


@pytest.mark.parametrize(("skip_prk_steps", "calls"), [(True, 7), (False, 15)])
def test_pndm_counts_its_extra_steps(skip_prk_steps: bool, calls: int) -> None:
    """As Stable Diffusion configures it one more than T; with a Runge-Kutta start 9 more."""
    pipeline = fake_pipeline()
    config = dict(pipeline.scheduler.config) | {"skip_prk_steps": skip_prk_steps}
    pipeline.scheduler = PNDMScheduler.from_config(config)
    settings = replace(SETTINGS, scheduler="pndm", guidance_scale=1.0)
    path, cost, _ = run(load_model(pipeline), settings, gradient=Gradient.full(), checkpoint="keep")
    assert path.num_steps == calls
    assert (cost.forwards, cost.backwards) == (2 * calls, 2 * calls)


def test_auto_keeps_what_fits_and_says_so(model: Any) -> None:
    path, _, _ = run(model, SETTINGS, gradient=Gradient.full(), memory_budget=1 << 40)
    assert path.plan is not None
    assert (path.plan.steps, path.plan.kept, path.plan.recomputed) == (6, 6, 0)
    each = path.plan.step_bytes
    assert each is not None
    path, cost, _ = run(model, SETTINGS, gradient=Gradient.full(), memory_budget=int(3.5 * each))
    assert (path.plan.kept, path.plan.recomputed) == (3, 3)
    assert "activations of 3 of 6 steps are kept, 3 are recomputed" in str(path.plan)
    assert "of a budget of" in str(path.plan)
    assert cost.recomputes == 12  # 3 steps, 2 candidates, 2 branches; the measurement is unbilled
    path, _, _ = run(model, SETTINGS, gradient=Gradient.full(), memory_budget=0)
    assert path.plan.kept == 1  # the step whose backward comes first is needed in any case


def test_auto_measures_once_and_scales_with_the_batch(model: Any) -> None:
    path = Trajectory(model, SETTINGS)
    noise = torch.stack([path.sample_noise(torch.Generator().manual_seed(s)) for s in range(3)])
    conditioning = model.encode(["a cat"])
    with metered() as meter:
        path.run(noise[:1].requires_grad_(), conditioning, gradient=Gradient.full())
        one = path.plan
        path.run(noise, conditioning, gradient=Gradient.full())
    assert len(path._step_bytes) == 1
    assert one is not None
    assert one.step_bytes is not None
    assert path.plan is not None
    assert path.plan.step_bytes == 3 * one.step_bytes
    assert meter.cost.recomputes == 0  # nothing ran backwards


def test_measured_bytes_are_those_that_stay_alive(model: Any) -> None:
    """One step's estimate against what a graph of several steps really holds."""
    path = Trajectory(model, replace(SETTINGS, eta=0.0))
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None].requires_grad_()
    conditioning = model.encode(["a cat"])

    def held(checkpoint: Any) -> int:
        return saved_bytes(
            lambda: path.run(noise, conditioning, gradient=Gradient.full(), checkpoint=checkpoint)
        )

    path.run(noise, conditioning, gradient=Gradient.full())
    assert path.plan is not None
    step = path.plan.step_bytes
    assert step is not None
    assert held("keep") == pytest.approx(6 * step, rel=0.1)
    assert held("recompute") < 0.1 * step  # latents only
    assert held(2) == pytest.approx(2 * step, rel=0.1)


def test_memory_of_recomputation_is_flat_in_the_number_of_steps(model: Any) -> None:
    """What the graph holds grows by latents only: 200 steps hold far less than one step's."""

    def held(steps: int, checkpoint: Any) -> int:
        path = Trajectory(model, replace(SETTINGS, num_inference_steps=steps, eta=0.0))
        noise = path.sample_noise(torch.Generator().manual_seed(0))[None].requires_grad_()
        conditioning = model.encode(["a cat"])
        return saved_bytes(
            lambda: path.run(noise, conditioning, gradient=Gradient.full(), checkpoint=checkpoint)
        )

    one_step = held(1, "keep")
    assert held(40, "recompute") + one_step < 1.1 * (held(4, "recompute") + one_step)


@pytest.mark.parametrize("checkpoint", ["all", -1, True, 1.5])
def test_other_choices_are_refused(model: Any, checkpoint: Any) -> None:
    with pytest.raises(InvalidInput, match="checkpoint must be"):
        run(model, SETTINGS, gradient=Gradient.full(), checkpoint=checkpoint)


def test_recomputed_is_the_function_and_its_gradient() -> None:
    calls = 0

    def counted() -> None:
        nonlocal calls
        calls += 1

    def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (x * a).sin() * b

    x, a, b = (torch.randn(4, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    a.requires_grad_()
    function: Callable[..., Tensor] = product
    out = recomputed(function, x, (a, b), counted)
    assert torch.equal(out, product(x, a, b))
    found = torch.autograd.grad(out.sum(), [x, a])
    expected = torch.autograd.grad(product(x, a, b).sum(), [x, a])
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert calls == 1


def test_free_memory_is_positive_and_below_the_machines() -> None:
    import os

    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_bytes(torch.device("cpu")) < whole


@pytest.mark.parametrize(
    ("free", "reserved", "allocated", "share", "expected"),
    [
        (50, 0, 0, 1.0, 50),
        (50, 20, 5, 1.0, 65),  # what the process holds and does not use is free to it
        (90, 20, 5, 0.1, 5),  # a process that may have a tenth of the card
        (90, 20, 15, 0.1, 0),
    ],
)
def test_free_memory_of_a_gpu_is_within_the_share_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    reserved: int,
    allocated: int,
    share: float,
    expected: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
    assert free_bytes(torch.device("cuda")) == expected
