"""Images equal those of the pipeline's own `__call__`, whose `no_grad` is peeled off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tiller.models import SamplerSettings, Trajectory, load_model
from tiller.models.schedulers import NAMES, named
from tiller.testing.fake_pipeline import fake_pipeline

SAMPLERS = [(name, 0.0) for name in NAMES] + [("ddim", 1.0)]


def of_pipeline(pipeline: Any, settings: SamplerSettings, seeds: list[int], **texts: Any) -> Any:
    """The pipeline's own images [n, 3, H, W], with one generator a candidate."""
    parts = {**pipeline.components, "scheduler": named(pipeline.scheduler, settings.scheduler)}
    reference = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    reference.set_progress_bar_config(disable=True)
    call = StableDiffusionPipeline.__call__.__wrapped__
    with torch.no_grad():
        return call(
            reference,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            eta=settings.eta,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            **texts,
        ).images


def ours(model: Any, settings: SamplerSettings, seeds: list[int], *texts: Any) -> torch.Tensor:
    path = Trajectory(model, settings)
    noise = torch.stack([path.sample_noise(torch.Generator().manual_seed(s)) for s in seeds])
    with torch.no_grad():
        images: torch.Tensor = model.decode(path.run(noise, model.encode(*texts)))
    return images


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize(("scheduler", "eta"), SAMPLERS)
def test_images_equal_the_pipelines(
    pipeline: Any, model: Any, scheduler: str, eta: float, guidance_scale: float
) -> None:
    """With its variance noise drawn from the same generators, in the same order."""
    settings = SamplerSettings(6, guidance_scale, eta, 16, 16, scheduler)
    prompts, negatives = ["a red cat", "two dogs"], ["blue", ""]
    theirs = of_pipeline(pipeline, settings, [3, 4], prompt=prompts, negative_prompt=negatives)
    assert (ours(model, settings, [3, 4], prompts, negatives) - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.01  # a picture, not a constant


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize(("scheduler", "eta"), SAMPLERS)
def test_other_predictions(prediction_type: str, scheduler: str, eta: float) -> None:
    """v and x0 predictions; PNDM and the ancestral Euler know no x0 prediction and say so."""
    pipeline = fake_pipeline(prediction_type=prediction_type)
    settings = SamplerSettings(4, 4.0, eta, 16, 16, scheduler)
    if prediction_type == "sample" and scheduler in ("pndm", "euler_a"):
        with pytest.raises(Exception, match="prediction_type"):
            Trajectory(load_model(pipeline), settings)
        return
    theirs = of_pipeline(pipeline, settings, [1], prompt=["a cat"])
    assert (ours(load_model(pipeline), settings, [1], ["a cat"]) - theirs).abs().max() < 1e-4


def test_no_negative_prompt_is_the_empty_one(pipeline: Any, model: Any) -> None:
    settings = SamplerSettings(3, 7.5, 0.0, 16, 16)
    theirs = of_pipeline(pipeline, settings, [0], prompt=["a cat"])
    assert (ours(model, settings, [0], ["a cat"]) - theirs).abs().max() < 1e-4


def test_other_size_than_the_models(pipeline: Any, model: Any) -> None:
    settings = SamplerSettings(3, 3.0, 0.0, 24, 32)
    theirs = of_pipeline(pipeline, settings, [0], prompt=["a cat"], height=24, width=32)
    images = ours(model, settings, [0], ["a cat"])
    assert images.shape == (1, 3, 24, 32)
    assert (images - theirs).abs().max() < 1e-4
