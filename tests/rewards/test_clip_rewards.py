"""CLIP rewards against transformers' own model, tokenizer and image processor."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import LENGTH, SIDE, write_clip
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from tiller.core.errors import InvalidInput, TillerNotice
from tiller.rewards import make_reward
from tiller.rewards._preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from tiller.rewards._tower import tower_for
from tiller.rewards.clip import Clip
from tiller.rewards.spherical_clip import SphericalClip, spherical

PROMPTS = ["a red cat", "dog", ""]


def test_clip_is_the_cosine_of_transformers_own_forward(clip_folder, pictures):
    images = pictures(height=SIDE, width=SIDE).float()
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(PROMPTS, padding=True, return_tensors="pt")
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    with torch.no_grad():
        out = model(**tokens, pixel_values=(images - mean) / std)
    expected = (out.logits_per_image / model.logit_scale.exp()).diagonal()
    # One prompt at a time instead of a padded batch sums in another order: a few float32 roundings.
    torch.testing.assert_close(Clip(clip_folder)(images, PROMPTS), expected, rtol=0, atol=2e-6)


def test_spherical_clip_is_minus_half_the_squared_angle(clip_folder, pictures):
    images = pictures()
    angle = torch.arccos(Clip(clip_folder)(images, PROMPTS))
    torch.testing.assert_close(SphericalClip(clip_folder)(images, PROMPTS), -(angle**2) / 2)


def test_spherical_loss_of_equal_orthogonal_and_opposite_vectors():
    x = torch.tensor([[1.0, 0.0]]).expand(3, 2).contiguous().requires_grad_()
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    scores = spherical(x, y)
    # The argument of arcsin is held at 1 - 1e-7, which costs .003 at opposite vectors.
    expected = [0.0, -((math.pi / 2) ** 2) / 2, -(math.pi**2) / 2]
    np.testing.assert_allclose(scores.detach().numpy(), expected, atol=4e-3)
    (grad,) = torch.autograd.grad(scores.sum(), x)
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("kind", [Clip, SphericalClip])
@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (20, 27), (70, 45)])
def test_slopes_at_any_size(kind, height, width, clip_folder, pictures, check_slope):
    reward = kind(clip_folder)
    check_slope(lambda images: reward(images, PROMPTS), pictures(3, height, width))


@pytest.mark.parametrize("kind", [Clip, SphericalClip])
def test_scores_do_not_depend_on_batching(kind, clip_folder, pictures):
    reward, images = kind(clip_folder), pictures()
    one_by_one = [reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(reward(images, PROMPTS), torch.cat(one_by_one))


def test_bounds(clip_folder, pictures):
    images = pictures()
    assert bool((Clip(clip_folder)(images, PROMPTS).abs() <= 1).all())
    scores = SphericalClip(clip_folder)(images, PROMPTS)
    assert bool(((scores <= 0) & (scores >= -(math.pi**2) / 2)).all())


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (48, 80), (95, 61), (20, 24)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False},
        {"size": {"height": 24, "width": 24}, "crop_size": {"height": 31, "width": 31}},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 33, "width": 33}, "resample": 2},
        {"do_resize": False, "crop_size": {"height": 19, "width": 17}},
        {"do_normalize": False, "size": 36, "crop_size": 32},
    ],
    ids=["clip", "square", "pad", "odd-bilinear", "no-resize", "plain-numbers"],
)
def test_preprocessing_agrees_with_transformers(
    clip_folder, tmp_path, pictures, changes, height, width
):
    config = json.loads((Path(clip_folder) / "preprocessor_config.json").read_text()) | changes
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    eight_bit = (pictures(2, height, width) * 255).round().to(torch.uint8)
    arrays = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in eight_bit]
    expected = processor(arrays, return_tensors="pt").pixel_values
    ours = Preprocess.from_config(config)(eight_bit.float() / 255)
    # Pillow rounds to 8 bits after each of the two passes of a resize: at most 1/255 + 1/510,
    # over the smallest standard deviation where the result is normalized.
    scale = 1.0 if config.get("do_normalize") is False else min(CLIP_STD)
    torch.testing.assert_close(ours, expected.float(), rtol=0, atol=1.5 / 255 / scale)


def test_an_unknown_way_of_resizing_is_refused():
    with pytest.raises(InvalidInput, match="resample=1"):
        Preprocess.from_config({"resample": 1})


def test_a_model_without_a_processor_gets_clips_own(clip_folder, tmp_path, pictures):
    folder = Path(shutil.copytree(clip_folder, tmp_path / "bare"))
    (folder / "preprocessor_config.json").unlink()
    images = pictures(3, 40, 50)
    bare = Clip(str(folder))(images, PROMPTS)
    assert torch.equal(bare, Clip(clip_folder)(images, PROMPTS))


def test_features_may_come_bare_or_inside_an_object(clip_folder, pictures):
    images = pictures().float()
    tower = tower_for(clip_folder, images)

    class Bare:
        """Answers as transformers 4 did."""

        device = tower.model.device

        def get_image_features(self, **inputs):
            return tower.model.get_image_features(**inputs).pooler_output

        def get_text_features(self, **inputs):
            return SimpleNamespace(pooler_output=tower.model.get_text_features(**inputs)[1])

    bare = dataclasses.replace(tower, model=Bare(), _texts={})
    assert torch.equal(bare.embed_images(images), tower.embed_images(images))
    assert torch.equal(bare.embed_texts(PROMPTS), tower.embed_texts(PROMPTS))


def test_a_tower_is_loaded_once_frozen_and_remembers_prompts(clip_folder, pictures):
    images = pictures().float()
    tower = tower_for(clip_folder, images)
    assert tower_for(clip_folder, images.clone()) is tower
    assert not tower.model.training
    assert not any(parameter.requires_grad for parameter in tower.model.parameters())
    first = tower.embed_texts(["a new prompt"])
    assert tower._text("a new prompt").data_ptr() == tower._texts["a new prompt"].data_ptr()
    assert torch.equal(tower.embed_texts(["a new prompt"]), first)
    assert not first.requires_grad


def test_a_prompt_first_seen_in_inference_mode_serves_gradients_later(clip_folder, pictures):
    images = pictures().float()
    reward = Clip(clip_folder)
    with torch.inference_mode():
        reward(images[:1], ["unseen"])
    leaf = images[:1].clone().requires_grad_()
    (grad,) = torch.autograd.grad(reward(leaf, ["unseen"]).sum(), leaf)
    assert bool(grad.any())


def test_a_long_prompt_is_scored_by_its_beginning_and_says_so(clip_folder, pictures):
    images = pictures(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    with pytest.warns(TillerNotice, match=rf"has 28 tokens and this CLIP reads {LENGTH}"):
        long = Clip(clip_folder)(images, [letters])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Clip(clip_folder)(images, [letters])
    assert torch.equal(long, again)
    with pytest.warns(TillerNotice):
        same_beginning = Clip(clip_folder)(images, [letters[: LENGTH - 2] + "zzzz"])
    assert torch.equal(long, same_beginning)


@pytest.mark.parametrize("prompt", ["", "\x00\x1b[31m", "🐇🟥", "  \n\t"])
def test_odd_prompts_are_scored(clip_folder, pictures, prompt):
    assert bool(torch.isfinite(make_reward(f"clip:{clip_folder}")(pictures(1), [prompt])).all())


def test_a_folder_that_is_no_clip_is_refused(tmp_path, pictures):
    with pytest.raises(InvalidInput, match=r"cannot load the CLIP model .* expected 'emoji'"):
        Clip(str(tmp_path / "nothing"))(pictures(1), ["a"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InvalidInput, match="model_type is 'bert', not 'clip'"):
        Clip(str(tmp_path))(pictures(1), ["a"])


def test_a_model_with_missing_weights_is_refused(tmp_path, pictures):
    from safetensors.torch import load_file, save_file

    folder = write_clip(tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"weights are missing: visual_projection\.weight"):
        Clip(str(folder))(pictures(1), ["a"])


def test_pickled_weights_are_never_read(tmp_path, pictures):
    folder = write_clip(tmp_path / "pickled")
    model = CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="safetensors"):
        Clip(str(folder))(pictures(1), ["a"])


def test_torn_weights_are_refused(tmp_path, pictures):
    file = write_clip(tmp_path / "torn") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InvalidInput, match=r"cannot load the CLIP model .* got: "):
        Clip(str(file.parent))(pictures(1), ["a"])
