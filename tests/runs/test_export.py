"""Exports: the script redraws the best picture without Tiller, for each kind of run."""

from __future__ import annotations

import ast
import dataclasses
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tiller.core.errors import InvalidInput, RunError, TillerNotice
from tiller.models.loader import load_model
from tiller.models.trajectory import SamplerSettings, Trajectory
from tiller.runs.export import export, redraw_script
from tiller.runs.png import open_png, to_image
from tiller.runs.store import RunStore
from tiller.testing.fake_pipeline import (
    fake_lcm_pipeline,
    save_fake_pipeline,
    save_fake_sdxl_pipeline,
)

# Long for the fake model: dropping its last words is part of what must be redrawn.
pytestmark = pytest.mark.filterwarnings("ignore:the prompt has:UserWarning")

PROMPT = 'a "red" cat\'s \\ {{ x }} \U0001f989\n\x07'


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two saved fake pipelines: one whose last step adds no noise, one of SD's convention."""
    out = tmp_path_factory.mktemp("models")
    return {
        end: str(save_fake_pipeline(out / str(end), set_alpha_to_one=end)) for end in (True, False)
    }


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Two saved fake SDXL models, one of whose empty negative prompt is zeros, and an LCM."""
    out = tmp_path_factory.mktemp("families")
    found = {
        name: str(save_fake_sdxl_pipeline(out / name, force_zeros=name == "xl"))
        for name in ("xl", "xl-words")
    }
    fake_lcm_pipeline().save_pretrained(out / "lcm")
    return {**found, "lcm": str(out / "lcm")}


def drawn(tmp_path, folder, *, embeds=(), negative="dark", **sampler):
    """A run folder whose best picture our own trajectory drew, and that picture."""
    settings = SamplerSettings(
        **{"num_inference_steps": 4, "guidance_scale": 3.0, "height": 16, "width": 16} | sampler
    )
    model = load_model(folder)
    trajectory = Trajectory(model, settings)
    noise = trajectory.sample_noise(torch.Generator().manual_seed(5))[None]
    conditioning = model.encode([PROMPT], [negative])
    if "pooled_prompt_embeds" in embeds:  # changed, as a method may
        pooled = conditioning.pooled_prompt_embeds + 1
        conditioning = dataclasses.replace(conditioning, pooled_prompt_embeds=pooled)
    inputs = {"noise": noise}
    for name in embeds:
        inputs[name] = getattr(conditioning, name)
    with torch.no_grad():
        picture = model.decode(trajectory.run(noise, conditioning))
    about = {
        "prompt": PROMPT,
        "negative_prompt": negative,
        "model": folder,
        "pipeline": model.pipeline_class,
        "sampler": {**vars(settings)},
        "seed": 0,
    }
    with RunStore.create(tmp_path, about, "raw") as store:
        store.save_image("best", picture, about)
        store.save_best(inputs, about)
    return store.path, np.asarray(to_image(picture)).astype(int)


def redrawn(script, monkeypatch, *arguments):
    text = script.read_text()
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert names - {"copy"} == {"sys", "pathlib", "torch", "diffusers", "safetensors"}
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    return np.asarray(Image.open(script.with_name("best.png"))).astype(int)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(
    "sampler",
    [
        {"eta": 1.0},
        {"eta": 0.3, "guidance_scale": 1.0},
        {"eta": 0.0},
        {"scheduler": "euler"},
        {"scheduler": "pndm"},
    ],
    ids=str,
)
def test_the_script_redraws_the_picture(tmp_path, folders, monkeypatch, sampler, end):
    run, picture = drawn(tmp_path, folders[end], **sampler)
    again = redrawn(export(run, "python"), monkeypatch)
    # 8 bits: a float at the edge of two values may fall to either side.
    assert np.abs(again - picture).max() <= 1
    assert (again != picture).mean() < 0.01
    assert picture.std() > 5, "a flat picture would prove nothing"


@pytest.mark.parametrize(
    "embeds", [("prompt_embeds", "negative_prompt_embeds"), ("prompt_embeds",)], ids=len
)
def test_embeddings_take_the_place_of_words(tmp_path, folders, monkeypatch, embeds):
    run, picture = drawn(tmp_path, folders[True], embeds=embeds, eta=1.0)
    again = redrawn(export(run, "python", tmp_path / "elsewhere"), monkeypatch, folders[True])
    assert np.abs(again - picture).max() <= 1


@pytest.mark.parametrize("scheduler", ["euler_a", "lcm"])
def test_noise_that_a_scheduler_draws_itself(tmp_path, folders, monkeypatch, scheduler):
    run, picture = drawn(tmp_path, folders[True], scheduler=scheduler)
    assert np.abs(redrawn(export(run, "python"), monkeypatch) - picture).max() <= 1
    assert picture.std() > 5, "a flat picture would prove nothing"


@pytest.mark.parametrize(
    ("name", "negative", "sampler"),
    [
        ("xl", "", {"eta": 1.0}),
        ("xl-words", "", {"eta": 1.0}),
        ("xl", "dark", {"scheduler": "euler"}),
        ("xl", "", {"scheduler": "euler_a", "num_inference_steps": 1, "guidance_scale": 0.0}),
    ],
    ids=["zeros", "words", "euler", "turbo"],
)
def test_an_sdxl_picture_is_redrawn(tmp_path, families, monkeypatch, name, negative, sampler):
    run, picture = drawn(tmp_path, families[name], negative=negative, **sampler)
    again = redrawn(export(run, "python"), monkeypatch)
    assert np.abs(again - picture).max() <= 1
    assert picture.std() > 5, "a flat picture would prove nothing"


@pytest.mark.parametrize(
    "embeds",
    [("pooled_prompt_embeds",), ("prompt_embeds", "negative_prompt_embeds")],
    ids="-".join,
)
def test_sdxl_embeddings_take_the_place_of_words(tmp_path, families, monkeypatch, embeds):
    run, picture = drawn(tmp_path, families["xl"], embeds=embeds, eta=1.0)
    assert np.abs(redrawn(export(run, "python"), monkeypatch) - picture).max() <= 1


@pytest.mark.parametrize(
    ("embeds", "sampler"),
    [((), {"scheduler": "lcm"}), (("prompt_embeds",), {"eta": 1.0})],
    ids=["words", "states"],
)
def test_a_consistency_models_picture_is_redrawn(tmp_path, families, monkeypatch, embeds, sampler):
    run, picture = drawn(tmp_path, families["lcm"], embeds=embeds, **sampler)
    assert np.abs(redrawn(export(run, "python"), monkeypatch) - picture).max() <= 1
    assert picture.std() > 5, "a flat picture would prove nothing"


def test_the_noise_file_says_how_it_is_used(tmp_path, folders):
    run, _ = drawn(tmp_path, folders[True], eta=1.0)
    script = export(run, "python")
    with safe_open(script.with_name("noise.safetensors"), "pt") as file:
        assert file.get_tensor("noise").shape == (4, 4, 8, 8)  # x_T and 3 noises: no dead slot
        about = file.metadata()
    assert about["num_inference_steps"] == "4"
    assert (about["scheduler"], about["eta"], about["guidance_scale"]) == ("ddim", "1.0", "3.0")


def test_png_and_prompt(tmp_path, folders):
    run, picture = drawn(tmp_path, folders[True])
    path = export(run, "png")
    image, text, own = open_png(path)
    assert np.array_equal(np.asarray(image).astype(int), picture)
    assert "Sampler: DDIM" in text
    assert own["prompt"] == PROMPT
    with pytest.warns(TillerNotice, match="its noise .*--to python takes that along"):
        assert export(run, "prompt") == f"{PROMPT}\nNegative prompt: dark\n"


@pytest.mark.parametrize("to", ["diffusers", "a1111", "comfyui", "jpeg", ""])
def test_what_a_run_does_not_have_is_refused_with_what_it_has(tmp_path, to):
    with RunStore.create(tmp_path, {"prompt": "x"}, "raw") as store:
        store.save_image("best", torch.zeros(1, 3, 4, 4))
    with pytest.raises(InvalidInput, match=r"This run has: png, prompt$"):
        export(store.path, to)


def test_guided_sampling_is_not_redrawn_by_plain_diffusers(tmp_path):
    sampler = {"num_inference_steps": 4, "guidance_scale": 1.0}
    method = {"name": "lgd", "settings": {}}
    about = {"prompt": "x", "method": method, "redrawable": False, "sampler": sampler}
    with RunStore.create(tmp_path, about, "run") as store:
        store.save_image("best", torch.zeros(1, 3, 4, 4))
        store.save_best({"noise": torch.zeros(1, 4, 8, 8)}, about)
    with pytest.raises(InvalidInput, match=r"lgd.* guides every .*This run has: png, prompt$"):
        export(store.path, "python")
    with pytest.warns(TillerNotice, match="another picture: its noise made this one, too$"):
        assert export(store.path, "prompt") == "x\n"


def test_a_run_without_a_finished_round(tmp_path):
    RunStore.create(tmp_path, {"prompt": "x"}, "raw").close()
    (run,) = tmp_path.iterdir()
    for to in ("png", "python"):
        with pytest.raises(RunError, match="tiller resume"):
            export(run, to)
    assert export(run, "prompt") == "x\n"


def test_other_schedulers_and_pipelines_have_no_script():
    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "scheduler": "euler"}
    with pytest.raises(RunError, match="a noise at each step of ddim, euler_a, lcm; this run"):
        redraw_script(settings, {"noise": 4})
    with pytest.raises(RunError, match=r"this run has 'os'\. Export it to png"):
        redraw_script({**settings, "pipeline": "os"}, {"noise": 1})
    with pytest.raises(RunError, match="'os'"):
        redraw_script({**settings, "scheduler": "os"}, {"noise": 1})


def test_nothing_from_the_run_is_executed_by_the_script():
    hostile = '\')\nimport os  # """'
    settings = {
        **dict.fromkeys(("prompt", "negative_prompt", "model", "device", "dtype"), hostile),
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
    }
    tree = ast.parse(redraw_script(settings, {"noise": 1}))
    literals = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    assert literals.count(hostile) == 4
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import) and n.names[0].name == "os"]
