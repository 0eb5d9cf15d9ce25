"""Stable Diffusion XL against diffusers' own pipeline, and its gradients against differences."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    LatentConsistencyModelPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from tiller.core.budget import metered
from tiller.core.errors import InvalidInput
from tiller.models import (
    Choice,
    Conditioning,
    FrozenModel,
    Gradient,
    SamplerSettings,
    Tokens,
    Trajectory,
    load_model,
)
from tiller.models.schedulers import named
from tiller.models.sdxl import StableDiffusionXL
from tiller.testing.fake_pipeline import (
    FAKE_LENGTH,
    fake_lcm_pipeline,
    fake_sdxl_pipeline,
    save_fake_sdxl_pipeline,
)

SETTINGS = SamplerSettings(4, 4.0, 0.0, 16, 16)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TURBO = {**SCHEDULE, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fake SDXL in the hub's layout."""
    return save_fake_sdxl_pipeline(tmp_path_factory.mktemp("xl") / "fake")


@pytest.fixture(scope="module")
def xl(folder: Path) -> FrozenModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def double() -> FrozenModel:
    return load_model(fake_sdxl_pipeline(dtype=torch.float64))


def theirs(model: Any, settings: SamplerSettings, seeds: list[int], **texts: Any) -> Tensor:
    """The pipeline's own images [n, 3, H, W], with one generator a candidate."""
    of, kind = model.pipeline, type(model.pipeline)
    fields = {} if kind is LatentConsistencyModelPipeline else {"eta": settings.eta}
    scheduler = named(of.scheduler, settings.scheduler)
    config = {key: of.config[key] for key in ("force_zeros_for_empty_prompt",) if key in of.config}
    if kind is LatentConsistencyModelPipeline:
        config["requires_safety_checker"] = False
    reference = kind(**{**of.components, "scheduler": scheduler}, **config)
    reference.set_progress_bar_config(disable=True)
    with torch.no_grad():
        images: Tensor = kind.__call__.__wrapped__(
            reference,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height,
            width=settings.width,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            **fields,
            **texts,
        ).images
    return images


def noises(path: Trajectory, *seeds: int) -> Tensor:
    return torch.stack([path.sample_noise(torch.Generator().manual_seed(s)) for s in seeds])


def ours(model: Any, settings: SamplerSettings, seeds: list[int], *texts: Any) -> Tensor:
    path = Trajectory(model, settings)
    with torch.no_grad():
        images: Tensor = model.decode(path.run(noises(path, *seeds), model.encode(*texts)))
    return images


@pytest.mark.parametrize("negatives", [None, ["blue", "a dog"]], ids=["none", "words"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize(("scheduler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("euler", 0.0)])
def test_images_equal_the_pipelines(
    xl: Any, scheduler: str, eta: float, guidance_scale: float, negatives: list[str] | None
) -> None:
    settings = SamplerSettings(4, guidance_scale, eta, 16, 16, scheduler)
    prompts = ["a red cat", "two dogs"]
    expected = theirs(xl, settings, [3, 4], prompt=prompts, negative_prompt=negatives)
    assert (ours(xl, settings, [3, 4], prompts, negatives) - expected).abs().max() < 1e-4
    assert expected.std() > 0.01


def test_other_size_than_the_models(xl: Any) -> None:
    """The sizes that the UNet is told follow the picture's."""
    settings = replace(SETTINGS, height=24, width=32)
    expected = theirs(xl, settings, [0], prompt=["a cat"])
    assert (ours(xl, settings, [0], ["a cat"]) - expected).abs().max() < 1e-4
    told = xl.encode(["a cat"])
    told = replace(told, time_ids=torch.tensor([[64.0, 64.0, 0.0, 0.0, 24.0, 32.0]]))
    path = Trajectory(xl, settings)
    moved = xl.decode(path.run(noises(path, 0), told))
    other = theirs(xl, settings, [0], prompt=["a cat"], original_size=(64, 64))
    assert (moved - other).abs().max() < 1e-4
    assert (other - expected).abs().max() > 1e-4


def test_states_are_both_encoders(xl: Any) -> None:
    found = xl.encode(["a red cat"], ["blue"])
    states, negative, pooled, other = xl.pipeline.encode_prompt(
        ["a red cat"], negative_prompt=["blue"], device="cpu"
    )
    assert torch.equal(found.prompt_embeds, states)
    assert torch.equal(found.negative_prompt_embeds, negative)
    assert torch.equal(found.pooled_prompt_embeds, pooled)
    assert torch.equal(found.negative_pooled_prompt_embeds, other)
    assert states.shape == (1, FAKE_LENGTH, 40)
    assert pooled.shape == (1, 12)


@pytest.mark.parametrize("negatives", [None, [""], [" "]])
def test_an_empty_negative_prompt_is_zeros_where_the_pipeline_says_so(
    xl: Any, negatives: list[str] | None
) -> None:
    found = xl.encode(["a cat", "a dog"], negatives)
    assert not found.negative_prompt_embeds.any()
    assert not found.negative_pooled_prompt_embeds.any()
    assert found.negative_prompt_embeds.shape == found.prompt_embeds.shape
    other = load_model(fake_sdxl_pipeline(force_zeros=False))
    said = other.encode(["a cat"], negatives).negative_prompt_embeds
    assert said is not None
    assert torch.equal(said, other.encode([""]).prompt_embeds)
    settings = replace(SETTINGS, num_inference_steps=2)
    expected = theirs(other, settings, [0], prompt=["a cat"])
    assert (ours(other, settings, [0], ["a cat"], negatives) - expected).abs().max() < 1e-4


def directional(model: Any, mode: Gradient, steps: int = 3, eta: float = 1.0) -> None:
    """Gradients to noise, states and pooled state along random directions."""
    path = Trajectory(model, replace(SETTINGS, num_inference_steps=steps, eta=eta))
    generator = torch.Generator().manual_seed(7)
    words = model.encode(["a red cat"], ["blue"])
    start = [noises(path, 0).double(), words.prompt_embeds, words.pooled_prompt_embeds]
    probe = torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64)

    def value(noise: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        told = replace(words, prompt_embeds=states, pooled_prompt_embeds=pooled)
        latents = path.run(noise, told, gradient=mode, checkpoint="keep")
        return (model.decode(latents) * probe).sum()

    inputs = [tensor.clone().requires_grad_() for tensor in start]
    grads = torch.autograd.grad(value(*inputs), inputs)
    for i, grad in enumerate(grads):
        way = torch.randn(grad.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        with torch.no_grad():
            ends = []
            for sign in (step, -step):
                moved = [t + sign * way if j == i else t for j, t in enumerate(start)]
                ends.append(value(*moved))
        expected = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((grad * way).sum(), expected, rtol=1e-4, atol=1e-7)
        assert grad.abs().max() > 0


def test_gradients_are_those_of_finite_differences(double: FrozenModel) -> None:
    directional(double, Gradient.full())


def test_gradients_of_the_shortcut(double: FrozenModel) -> None:
    """From the first step, so that a difference sees no more than the gradient does."""
    directional(double, Gradient.shortcut(0, 2))


def test_truncated_gradients_and_recomputation(xl: Any) -> None:
    path = Trajectory(xl, replace(SETTINGS, eta=1.0))
    words = xl.encode(["a red cat", "a dog"])

    def grads(**how: Any) -> tuple[Tensor, Any]:
        noise = noises(path, 0, 1).requires_grad_()
        pooled = words.pooled_prompt_embeds.clone().requires_grad_()
        told = replace(words, pooled_prompt_embeds=pooled)
        with metered() as meter:
            xl.decode(path.run(noise, told, **how)).square().sum().backward()
        assert noise.grad is not None
        assert pooled.grad is not None
        return torch.cat([noise.grad.flatten(), pooled.grad.flatten()]), meter.cost

    kept, cost = grads(gradient=Gradient.full(), checkpoint="keep")
    assert (cost.forwards, cost.backwards, cost.recomputes) == (16, 16, 0)
    again, cost = grads(gradient=Gradient.full(), checkpoint="recompute")
    assert torch.equal(kept, again)
    assert cost.recomputes == 16
    grads(gradient=Gradient.full(), memory_budget=1 << 40)
    assert path.plan is not None
    assert path.plan.kept == 4
    last, cost = grads(gradient=Gradient.last(2), checkpoint="keep")
    assert (cost.forwards, cost.backwards) == (16, 8)
    assert not torch.equal(last, kept)


def test_a_one_step_model_is_a_plain_configuration() -> None:
    """Turbo's: one step from pure noise without guidance, whose gradient to x_T is exact (ReNO)."""
    scheduler = DDIMScheduler(**TURBO, clip_sample=False, set_alpha_to_one=True)
    model = load_model(fake_sdxl_pipeline(scheduler=scheduler))
    settings = SamplerSettings(1, 0.0, 0.0, 16, 16)
    path = Trajectory(model, settings)
    assert path.timesteps.tolist() == [999]
    assert path.noise_shape == (1, 4, 8, 8)
    expected = theirs(model, settings, [5], prompt=["a cat"])
    assert (ours(model, settings, [5], ["a cat"]) - expected).abs().max() < 1e-4
    precise = load_model(fake_sdxl_pipeline(scheduler=scheduler, dtype=torch.float64))
    noise = noises(Trajectory(precise, settings), 0).double()
    words = precise.encode(["a cat"])
    path = Trajectory(precise, settings)

    def drawn(noise: Tensor) -> Tensor:
        out: Tensor = precise.decode(path.run(noise, words, gradient=Gradient.full()))
        return out.square().sum()

    (grad,) = torch.autograd.grad(drawn(noise.requires_grad_()), noise)
    way = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        difference = (drawn(noise + 1e-5 * way) - drawn(noise - 1e-5 * way)) / 2e-5
    torch.testing.assert_close((grad * way).sum(), difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_few_steps_of_the_ancestral_sampler(steps: int) -> None:
    """As turbo's own configuration says: its noise is drawn from the candidate's generator."""
    model = load_model(fake_sdxl_pipeline(scheduler=EulerAncestralDiscreteScheduler(**TURBO)))
    assert model.defaults.scheduler == "euler_a"
    settings = replace(model.defaults, num_inference_steps=steps, guidance_scale=0.0)
    assert Trajectory(model, settings).noise_shape[0] == steps
    expected = theirs(model, settings, [3, 4], prompt=["a red cat", "two dogs"])
    found = ours(model, settings, [3, 4], ["a red cat", "two dogs"])
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("xl_too", [False, True], ids=["sd", "xl"])
def test_the_guidance_scale_as_an_input(xl_too: bool) -> None:
    """Latent consistency models: one branch, LCM's own steps, the scale in the embedding."""
    if xl_too:
        model = load_model(fake_sdxl_pipeline(time_cond_proj_dim=8), scheduler="lcm")
    else:
        model = load_model(fake_lcm_pipeline())
        assert model.defaults == SamplerSettings(4, 8.5, 0.0, 16, 16, "lcm")
    assert model.guidance_input
    settings = SamplerSettings(4, 6.0, 0.0, 16, 16, "lcm")
    path = Trajectory(model, settings)
    assert path.noise_shape[0] == 4
    assert path.forwards_per_image == 4
    with metered() as meter:
        found = ours(model, settings, [3, 4], ["a red cat", "two dogs"])
    assert meter.cost.forwards == 8  # one branch
    expected = theirs(model, settings, [3, 4], prompt=["a red cat", "two dogs"])
    assert (found - expected).abs().max() < 1e-4
    other = ours(model, replace(settings, guidance_scale=2.0), [3, 4], ["a red cat", "two dogs"])
    assert (found - other).abs().max() > 1e-4
    noise = noises(path, 0).requires_grad_()
    words = model.encode(["a cat"])
    model.decode(path.run(noise, words, gradient=Gradient.full())).square().sum().backward()
    assert noise.grad is not None
    assert (noise.grad[0].flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("chosen", ["red", "dark", ""])
def test_decided_pieces_are_the_ordinary_text_bit_for_bit(xl: FrozenModel, chosen: str) -> None:
    options = ("red", "dark", "")
    weights = torch.tensor([float(option == chosen) for option in options], requires_grad=True)
    text = ["a", Choice(options, weights), "cat"]
    found, expected = xl.encode_pieces([text]), xl.encode([f"a {chosen} cat"])
    assert torch.equal(found.prompt_embeds, expected.prompt_embeds)
    assert found.pooled_prompt_embeds is not None
    assert expected.pooled_prompt_embeds is not None
    assert torch.equal(found.pooled_prompt_embeds, expected.pooled_prompt_embeds)
    # In the negative prompt as well: without a word it is the pipeline's zeros.
    found = xl.encode_pieces([["a cat"]], [[Choice(options, weights)]])
    expected = xl.encode(["a cat"], [chosen])
    assert found.negative_prompt_embeds is not None
    assert expected.negative_prompt_embeds is not None
    assert torch.equal(found.negative_prompt_embeds, expected.negative_prompt_embeds)
    (grad,) = torch.autograd.grad(found.negative_prompt_embeds.square().sum(), weights)
    assert bool(grad.any()) == bool(chosen)


def test_pieces_reach_both_encoders_with_exact_gradients(double: FrozenModel) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, generator=generator, dtype=torch.float64)
    vectors = [
        0.02 * torch.randn(2, width, generator=generator, dtype=torch.float64) for width in (16, 24)
    ]
    probes = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((1, FAKE_LENGTH, 40), (1, 12))
    ]

    def value(logits: Tensor, *vectors: Tensor) -> Tensor:
        colour = Choice(("red", "dark", "blue"), logits.softmax(0))
        found = double.encode_pieces([["a", colour, Tokens(vectors), "cat"]])
        assert found.pooled_prompt_embeds is not None
        parts = (found.prompt_embeds, found.pooled_prompt_embeds)
        return torch.stack([(a * b).sum() for a, b in zip(parts, probes, strict=True)]).sum()

    inputs = [logits.requires_grad_(), *(v.requires_grad_() for v in vectors)]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)
    assert all(g.abs().min() > 0 for g in torch.autograd.grad(value(*inputs), inputs))


def test_two_tokenizers_and_tables(xl: FrozenModel) -> None:
    assert [table.shape[1] for table in xl.token_embeddings] == [16, 24]
    first, second = xl.tokenizers
    assert (first.pad_token, second.pad_token) == ("<|endoftext|>", "!")
    assert xl.token_counts(["", "a cat", "x" * 100]) == [2, 6, FAKE_LENGTH]
    with pytest.raises(InvalidInput, match="vectors for 2 text encoders, got 1"):
        xl.encode_pieces([[Tokens((torch.zeros(1, 16),))]])


def test_a_long_prompt_is_said_once(xl: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        xl.encode(["a prompt of too many letters"])
    assert len(caught) == 1
    assert "these words are dropped" in str(caught[0].message)


def test_a_folder_an_object_and_its_fingerprint(folder: Path, xl: Any) -> None:
    assert isinstance(xl, StableDiffusionXL)
    assert xl.pipeline_class == "StableDiffusionXLPipeline"
    assert xl.source == str(folder)
    assert xl.defaults == SamplerSettings(50, 5.0, 0.0, 16, 16, "ddim")
    same, other = load_model(fake_sdxl_pipeline()), load_model(fake_sdxl_pipeline(seed=1))
    assert xl.fingerprint() == same.fingerprint() != other.fingerprint()
    other = fake_sdxl_pipeline()
    with torch.no_grad():  # every component counts, the second text encoder too
        next(other.text_encoder_2.parameters()).add_(1)
    assert load_model(other).fingerprint() != xl.fingerprint()
    assert torch.equal(ours(xl, SETTINGS, [0], ["a"]), ours(same, SETTINGS, [0], ["a"]))
    weights = [p for part in xl._parts() for p in part.parameters()]
    assert not any(weight.requires_grad for weight in weights)


def test_a_half_precision_vae_that_overflows_decodes_in_float32() -> None:
    pipeline = fake_sdxl_pipeline(dtype=torch.float16)
    assert pipeline.vae.config.force_upcast
    model: Any = load_model(pipeline)
    assert pipeline.vae.dtype == torch.float16  # the pipeline stays as it is
    assert model.vae.dtype == torch.float32
    assert not any(weight.requires_grad for weight in model.vae.parameters())
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = load_model(fake_sdxl_pipeline()).decode(latents)
    assert (model.decode(latents.half()) - exact).abs().max() < 0.01


def test_a_vae_that_tells_its_latents_mean_and_deviation() -> None:
    pipeline = fake_sdxl_pipeline()
    pipeline.vae.register_to_config(
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[0.5, 0.6, 0.7, 0.8]
    )
    model = load_model(pipeline)
    settings = replace(SETTINGS, num_inference_steps=2)
    expected = theirs(model, settings, [0], prompt=["a cat"])
    assert (ours(model, settings, [0], ["a cat"]) - expected).abs().max() < 1e-4


def test_what_is_not_an_sdxl_base_is_refused(folder: Path) -> None:
    refiner = fake_sdxl_pipeline(
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=5 * 4 + 12
    )
    with pytest.raises(InvalidInput, match="36 numbers in all, got 32: not an SDXL base"):
        load_model(refiner)
    with pytest.raises(InvalidInput, match="inpainting or editing"):
        load_model(fake_sdxl_pipeline(in_channels=9))
    parts = fake_sdxl_pipeline().components | {"text_encoder": None, "tokenizer": None}
    half = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    with pytest.raises(InvalidInput, match="has no tokenizer, text_encoder;"):
        load_model(half)


def test_a_conditioning_of_another_family_is_refused(xl: FrozenModel) -> None:
    path = Trajectory(xl, replace(SETTINGS, guidance_scale=1.0))
    states = xl.encode(["a cat"]).prompt_embeds
    with pytest.raises(InvalidInput, match="SDXL needs pooled_prompt_embeds"):
        path.run(noises(path, 0), Conditioning(states))


def test_the_index_says_which_family_it_is(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(InvalidInput, match="is a FluxPipeline, which cannot be steered yet"):
        load_model(tmp_path)
