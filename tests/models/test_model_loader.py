"""Folders, pipeline objects, hub ids, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.constants
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, LMSDiscreteScheduler
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models import SamplerSettings, Trajectory, load_model
from tiller.testing.fake_pipeline import fake_pipeline, save_fake_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fake model in the hub's layout; tests that change it copy it."""
    return save_fake_pipeline(tmp_path_factory.mktemp("model") / "fake")


def picture(model: Any) -> Tensor:
    path = Trajectory(model, SamplerSettings(2, 3.0, 0.0, 16, 16))
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None]
    image: Tensor = model.decode(path.run(noise, model.encode(["a cat"])))
    return image


def message(spec: Any, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        load_model(spec, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_draws_as_the_object_it_was_saved_from(folder: Path, model: Any) -> None:
    loaded = load_model(folder)
    assert loaded.name == str(folder)
    assert loaded.dtype == torch.float32
    assert torch.equal(picture(loaded), picture(model))
    weights = [*loaded.unet.parameters(), *loaded.vae.parameters()]  # type: ignore[attr-defined]
    assert not any(weight.requires_grad for weight in weights)


def test_defaults_without_a_file_are_stable_diffusions(folder: Path) -> None:
    defaults = load_model(str(folder)).defaults
    assert defaults == SamplerSettings(50, 7.5, 0.0, 16, 16, "ddim")


def test_defaults_of_the_folder(folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path)
    (copy / "defaults.json").write_text('{"num_inference_steps": 20, "guidance_scale": 4.0}')
    assert load_model(copy).defaults == SamplerSettings(20, 4.0, 0.0, 16, 16, "ddim")
    (copy / "defaults.json").write_text('{"steps": 20}')
    assert "num_inference_steps" in message(copy)
    (copy / "defaults.json").write_text("{")
    assert "is not JSON" in message(copy)


def test_another_scheduler(folder: Path) -> None:
    model = load_model(folder, scheduler="lms")
    assert model.defaults.scheduler == "lms"
    assert isinstance(model.scheduler, LMSDiscreteScheduler)
    assert "unknown scheduler='heun'" in message(folder, scheduler="heun")


def test_dtype_and_device(folder: Path) -> None:
    model = load_model(folder, dtype="float64", device="cpu")
    assert model.dtype == torch.float64
    assert model.encode(["a"]).prompt_embeds.dtype == torch.float64
    assert "dtype must be" in message(folder, dtype="int8")
    for device in ("gpu", "cuda:99"):
        assert f"cannot use device='{device}'" in message(folder, device=device)


def test_half_precision_draws_float32_pictures(folder: Path, model: Any) -> None:
    image = picture(load_model(folder, dtype=torch.bfloat16))
    assert image.dtype == torch.float32
    assert (image - picture(model)).abs().max() < 0.1


def test_variant(folder: Path, tmp_path: Path) -> None:
    fake_pipeline().save_pretrained(tmp_path / "half", variant="fp16")
    assert load_model(tmp_path / "half", variant="fp16").dtype == torch.float32
    assert "cannot load the model in" in message(folder, variant="fp16")


def test_loading_a_folder_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    diffusers.utils.logging.enable_progress_bar()
    load_model(folder)
    assert capfd.readouterr() == ("", "")
    assert diffusers.utils.logging.is_progress_bar_enabled()  # for whoever else draws one


def test_an_object_stays_as_it_is() -> None:
    pipeline = fake_pipeline(dtype=torch.float64)
    model = load_model(pipeline)
    assert model.pipeline is pipeline  # type: ignore[attr-defined]
    assert model.dtype == torch.float64


def test_unsupported_pipelines_are_refused_with_the_list(folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path)
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "FluxPipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    text = message(copy)
    assert "is a FluxPipeline" in text
    assert "supported pipelines: StableDiffusionPipeline, " in text
    assert "StableDiffusionXLPipeline (" in text
    other = DDPMPipeline(fake_pipeline().unet, DDPMScheduler())
    assert "a DDPMPipeline cannot be steered yet; supported" in message(other)
    assert "got a int" in message(3)


def test_other_denoisers_are_refused() -> None:
    assert "an inpainting or editing model" in message(fake_pipeline(in_channels=9))


@pytest.mark.parametrize("spec", ["./nothing/here", "/no/such/folder", "a/b/c", "~/none there"])
def test_a_missing_folder(spec: str) -> None:
    assert "there is none" in message(spec)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "cannot load the model in" in message(tmp_path)


def test_a_name_that_names_nothing() -> None:
    assert message(" ").startswith("expected a model:")
    assert "cannot look for '~nobody-of-that-name/sd'" in message("~nobody-of-that-name/sd")


@pytest.mark.parametrize("index", ["{}", "[]", '{"_class_name": 3}'])
def test_an_index_that_names_no_pipeline(index: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(index)
    assert "names no pipeline" in message(tmp_path)


def test_a_torn_weight_file(folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path)
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot load the model in" in message(copy)


def test_pickles_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04N.")
    assert "expected a .safetensors file" in message(tmp_path / "model.ckpt")
    copy = clone(folder, tmp_path)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "cannot load the model in" in message(copy)


def test_a_hub_id_that_is_not_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = message("tiller-tests/not-a-model")
    assert "HF_HUB_OFFLINE=1" in text
    assert "is not in its cache" in text


def test_a_hub_id_with_local_files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    text = message("tiller-tests/none", local_files_only=True)
    assert "cannot load the model 'tiller-tests/none' from the hub" in text


def clone(folder: Path, where: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, where / "copy"))


@pytest.mark.parametrize("text", ['{"guidance_scale": "7"}', '{"eta": null}', '{"eta": 3}'])
def test_defaults_that_no_sampler_takes(text: str, folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path)
    (copy / "defaults.json").write_text(text)
    assert "defaults.json' holds what no sampler takes" in message(copy)


def test_a_torn_text_encoder(folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path)
    weights = copy / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot load the model" in message(copy)


def test_a_schedule_that_diffusers_does_not_know(folder: Path, tmp_path: Path) -> None:
    copy = clone(folder, tmp_path)
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_schedule": "foo"}))
    assert "foo" in message(copy)
