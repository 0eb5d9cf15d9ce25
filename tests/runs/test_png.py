"""PNG text chunks: ours exact, A1111's as its own readers take it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tiller.core.errors import InvalidInput, RunError
from tiller.runs.png import (
    encode_png,
    format_parameters,
    open_png,
    parameters_of,
    parse_parameters,
    to_image,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
ABOUT = {
    "prompt": "a red cat and a blue dog",
    "negative_prompt": "blurry, dark",
    "model": "emoji",
    "method": {"name": "dno", "settings": {"lr": 0.01}},
    "seed": 7,
    "sampler": {
        "scheduler": "ddim",
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "eta": 1.0,
        "width": 64,
        "height": 48,
    },
}


def written(folder, metadata):
    path = folder / "picture.png"
    path.write_bytes(encode_png(torch.rand(1, 3, 5, 7), metadata))
    return path


def test_the_a1111_text():
    assert parameters_of(ABOUT) == (
        "a red cat and a blue dog\n"
        "Negative prompt: blurry, dark\n"
        "Steps: 20, Sampler: DDIM, CFG scale: 4.0, Size: 64x48, Model: emoji, "
        "Eta: 1.0, Tiller method: dno, Tiller seed: 7"
    )


def test_a_plainly_sampled_picture_has_its_seed():
    plain = {name: value for name, value in ABOUT.items() if name != "method"}
    assert parse_parameters(parameters_of(plain))[2]["Seed"] == "7"


@given(prompt=ANY_TEXT, negative=ANY_TEXT)
@example(prompt="\U0001f989 ü \x00\x1b \ud83d", negative="Steps: 3, Sampler: x, Seed: 1")
def test_our_chunk_is_exact_for_any_text(tmp_path_factory, prompt, negative):
    about = {**ABOUT, "prompt": prompt, "negative_prompt": negative}
    _, text, own = open_png(written(tmp_path_factory.mktemp("png"), about))
    assert own == about
    assert text is not None
    _, _, settings = parse_parameters(text)
    assert settings["Tiller seed"] == "7"


words = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), max_size=40
).map(str.strip)


@given(prompt=words, negative=words, model=words.filter(lambda t: "\0" not in t))
@example(prompt="two\nlines, with: colons", negative="and\n\nmore", model='a, "b": c\nd')
def test_what_is_formatted_is_parsed(prompt, negative, model):
    text = format_parameters(prompt, negative, {"Steps": 20, "Model": model, "Seed": 0})
    assert parse_parameters(text) == (
        prompt,
        negative,
        {"Steps": "20", "Model": model, "Seed": "0"},
    )


def test_a_prompt_cannot_pass_for_the_negative_prompt_or_the_settings():
    hostile = "a cat\nNegative prompt: dog\nSteps: 9, Sampler: Euler, Seed: 1"
    text = format_parameters(hostile, "blurry", {"Steps": 20, "Seed": 0})
    prompt, negative, settings = parse_parameters(text)
    assert prompt == "a cat\nNegative prompt : dog\nSteps : 9, Sampler: Euler, Seed: 1"
    assert (negative, settings) == ("blurry", {"Steps": "20", "Seed": "0"})


def test_a_text_of_the_web_ui_itself():
    text = (
        "portrait of a fox\nNegative prompt: ugly\nSteps: 20, Sampler: DPM++ 2M Karras, "
        'CFG scale: 7, Seed: 1, Size: 512x512, Lora hashes: "a: 1, b: 2", Version: v1.7.0'
    )
    prompt, negative, settings = parse_parameters(text)
    assert (prompt, negative) == ("portrait of a fox", "ugly")
    assert settings["Lora hashes"] == "a: 1, b: 2"
    assert settings["Sampler"] == "DPM++ 2M Karras"
    assert parse_parameters("only words") == ("only words", "", {})


def test_pixels_are_rounded_as_the_pipeline_rounds_them():
    from diffusers.image_processor import VaeImageProcessor

    image = torch.rand(1, 3, 9, 6) * 1.2 - 0.1
    theirs = VaeImageProcessor().postprocess(image * 2 - 1, output_type="pil")[0]
    assert np.array_equal(np.asarray(to_image(image)), np.asarray(theirs))
    assert to_image(image[0]).size == (6, 9)
    assert to_image(theirs) is theirs


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 4, 4), (4, 4)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(InvalidInput, match=r"\[1, 3, H, W\]"):
        to_image(torch.zeros(shape))


def test_damaged_and_foreign_files(tmp_path):
    path = written(tmp_path, ABOUT)
    whole = path.read_bytes()
    for size in (0, 20, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(RunError, match="not a readable picture"):
            open_png(path)
    with pytest.raises(RunError, match="does not exist"):
        open_png(tmp_path / "none.png")
    Image.new("RGB", (2, 2)).save(path)
    assert open_png(path)[1:] == (None, None)
    with pytest.raises(RunError, match="plain data"):
        encode_png(Image.new("RGB", (2, 2)), {"x": float("nan")})
