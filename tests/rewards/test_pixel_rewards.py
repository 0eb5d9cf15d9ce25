"""Rewards that read pixels only: brightness, darkness, colour, jpeg."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from tiller.core.errors import InvalidInput
from tiller.models.bundled.captions import BACKGROUNDS, COLOURS
from tiller.rewards.brightness import Brightness
from tiller.rewards.colour import Colour
from tiller.rewards.darkness import Darkness
from tiller.rewards.jpeg import Jpeg

PROMPTS = ["a", "b", "c"]


def test_brightness_is_the_mean_of_all_values_as_in_the_paper(pictures):
    images = pictures()
    expected = images.numpy().reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(Brightness()(images, PROMPTS).numpy(), expected, rtol=1e-12)


def test_brightness_in_rec601_is_what_pillow_converts_to_grey(pictures):
    images = pictures()
    eight_bit = (images * 255).round().to(torch.uint8)
    scores = Brightness("rec601")(eight_bit.double() / 255, PROMPTS)
    for score, picture in zip(scores, eight_bit, strict=True):
        grey = Image.fromarray(picture.permute(1, 2, 0).numpy()).convert("L")
        # Pillow rounds each grey pixel down to 8 bits, so its mean is up to 1/255 lower.
        assert float(score) == pytest.approx(np.asarray(grey).mean() / 255, abs=1 / 255)


def test_luma_weights_of_a_saturated_pixel():
    green = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    found = {luma: Brightness(luma)(green, ["a"]).item() for luma in ("equal", "rec601", "rec709")}
    assert found == pytest.approx({"equal": 1 / 3, "rec601": 0.587, "rec709": 0.7152})


def test_darkness_is_brightness_negated(pictures):
    images = pictures()
    assert torch.equal(Darkness("rec709")(images, PROMPTS), -Brightness("rec709")(images, PROMPTS))


@pytest.mark.parametrize("kind", [Brightness, Darkness])
def test_unknown_luma_is_refused_with_the_choices(kind):
    with pytest.raises(InvalidInput, match=r"equal, rec601, rec709; got 'bt2020'"):
        kind("bt2020")


def test_colour_is_the_mean_euclidean_distance_negated(pictures):
    images = pictures()
    target = np.array(ImageColor.getrgb("teal")) / 255
    pixels = images.permute(0, 2, 3, 1).numpy()
    expected = -np.sqrt(((pixels - target) ** 2).sum(axis=-1)).mean(axis=(1, 2))
    np.testing.assert_allclose(Colour("teal")(images, PROMPTS).numpy(), expected, rtol=1e-6)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.tuples(*[st.integers(0, 255)] * 3))
def test_colour_of_any_hex_value_is_exact_and_bounded(wanted, shown):
    picture = torch.tensor(shown, dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 2, 5) / 255
    score = Colour("#{:02X}{:02x}{:02x}".format(*wanted))(picture, ["a"]).item()
    assert score == pytest.approx(-math.dist(wanted, shown) / 255, abs=1e-6)
    assert -math.sqrt(3) - 1e-6 <= score <= 0


def test_every_colour_of_the_bundled_model_is_known():
    for name in {*COLOURS, *BACKGROUNDS}:
        assert Colour(name.upper()).colour == name


def test_the_gradient_of_colour_is_finite_where_the_colour_is_already_there():
    white = torch.ones(1, 3, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(Colour("white")(white, ["a"]).sum(), white)
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("wrong", ["rde", "#12", "#12345678", "rgb(1,2,3)", "", "hsl(0,100%,50%)"])
def test_an_unknown_colour_is_refused(wrong):
    with pytest.raises(InvalidInput, match=r"colour must be a CSS colour name .* got "):
        Colour(wrong)


def test_a_misspelt_colour_gets_the_closest_name():
    with pytest.raises(InvalidInput, match="Did you mean 'purple'"):
        Colour("purpel")


@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_is_the_size_of_pillows_file(pictures, quality):
    images = pictures(height=24, width=40)
    scores = Jpeg(quality)(images, PROMPTS)
    for score, picture in zip(scores, images, strict=True):
        array = np.round(picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(array, "RGB").save(file, format="JPEG", quality=quality)
        assert float(score) == pytest.approx(-len(file.getvalue()) / 1000)


def test_jpeg_prefers_flat_pictures_and_cuts_what_lies_outside_the_range(pictures):
    flat = torch.full((1, 3, 64, 64), 0.5)
    noise = pictures(1, 64, 64).float()
    scores = Jpeg()(torch.cat([flat, noise]), ["a", "b"])
    assert scores[1] < scores[0] < 0
    assert torch.equal(Jpeg()(flat + 7, ["a"]), Jpeg()(torch.ones_like(flat), ["a"]))


@pytest.mark.parametrize("quality", [0, 96, 7.5, True])
def test_a_jpeg_quality_outside_pillows_range_is_refused(quality):
    with pytest.raises(InvalidInput, match="quality must be a whole number, 1 to 95"):
        Jpeg(quality)


@pytest.mark.parametrize("reward", [Brightness("rec709"), Darkness(), Colour("purple")], ids=str)
def test_slopes(reward, pictures, check_slope):
    check_slope(lambda images: reward(images, PROMPTS), pictures())
