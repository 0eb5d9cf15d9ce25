"""Runs that train weights, end to end: the notice, the resume, the frozen model, the exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

import tiller
from tiller.api import Progress
from tiller.core.errors import InvalidInput, RunError, TillerNotice
from tiller.models.base import FrozenModel
from tiller.models.trajectory import SamplerSettings, Trajectory
from tiller.runs.export import export
from tiller.runs.png import to_image
from tiller.runs.record import read_run
from tiller.runs.store import RunStore
from tiller.testing.fake_pipeline import save_fake_pipeline

quiet = pytest.mark.filterwarnings("ignore:.* trains weights")
quiet_all = pytest.mark.filterwarnings("ignore:weights=all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fake_pipeline(tmp_path_factory.mktemp("fake"), set_alpha_to_one=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> FrozenModel:
    return tiller.load_model(folder)


def steer(model: Any, out: Path, **changes: Any) -> tiller.Result:
    settings: dict[str, Any] = {
        "method": "draft",
        "reward": "brightness",
        "held_out": ["darkness"],
        "budget": "steps=4",
        "num_inference_steps": 3,
        "lr": 0.01,
        "out": out,
    }
    return tiller.steer(model, "a red cat", **(settings | changes))


def test_a_run_says_that_it_trains_a_copy(model: FrozenModel, tmp_path: Path) -> None:
    with pytest.warns(TillerNotice, match="draft trains weights: of a copy"):
        run = steer(model, tmp_path, budget="steps=1").run_dir
    (remark,) = [text for _, text in read_run(run).remarks if "trains weights" in text]
    assert "the loaded model stays as it is" in remark
    again = tiller.resume(run, budget="steps=2").run_dir  # and not a second time
    assert [text for _, text in read_run(again).remarks if "trains" in text] == [remark]


class Stop(Exception):
    """Raised by a test to end a run where a crash would."""


@quiet
@pytest.mark.parametrize(
    "settings",
    [{"k": 2}, {"method": "ddpo", "batch": 2, "updates": 3, "lr": 0.05}],
    ids=["draft", "ddpo"],
)
@pytest.mark.parametrize("stop_at", [2])
def test_a_killed_run_resumes_to_the_uninterrupted_one_and_leaves_the_model(
    model: Any, tmp_path: Path, settings: dict[str, Any], stop_at: int
) -> None:
    before = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    fingerprint = model.fingerprint()

    def crash(progress: Progress) -> None:
        if progress.step.index == stop_at:
            raise Stop

    whole = steer(model, tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        steer(model, tmp_path / "cut", on_step=crash, **settings)
    (cut,) = (tmp_path / "cut").iterdir()
    resumed = tiller.resume(cut, model=model)
    for name in ("images/best.png", "best.safetensors"):
        assert (cut / name).read_bytes() == (whole.run_dir / name).read_bytes()
    assert RunStore.open(cut).load_state().tensors.keys() > {"last"}
    one, other = (RunStore.open(path).load_state() for path in (cut, whole.run_dir))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in other.tensors)
    assert resumed.cost.forwards == whole.cost.forwards
    now = model.unet.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert model.fingerprint() == fingerprint


def redrawn(pipeline: Any, run: Path) -> torch.Tensor:
    """The run's noise and words through the pipeline, as it stands."""
    spec = json.loads((run / "run.json").read_text())["spec"]
    model = tiller.load_model(pipeline)
    noise = load_file(run / "best.safetensors")["noise"][None]
    trajectory = Trajectory(model, SamplerSettings(**spec["sampler"]))
    with torch.no_grad():
        latents = trajectory.run(noise, model.encode(["a red cat"]))
        return model.decode(latents)[0]


def difference(picture: torch.Tensor, run: Path) -> int:
    """The largest difference from the run's best picture, in grey levels."""
    kept, _ = RunStore.open(run).load_image("best")
    mine = torch.tensor(list(to_image(picture[None]).tobytes()))
    theirs = torch.tensor(list(kept.convert("RGB").tobytes()))
    return int((mine - theirs).abs().max())


@quiet
@pytest.mark.parametrize("method", ["draft", "ddpo"])
def test_an_exported_adapter_draws_the_picture_in_diffusers(
    method: str, folder: Path, model: FrozenModel, tmp_path: Path
) -> None:
    extra = {"batch": 2, "lr": 0.3} if method == "ddpo" else {"lr": 0.3, "k": 3}
    run = steer(model, tmp_path, method=method, **extra).run_dir
    assert read_run(run).best_step > 1, "else the frozen model's own picture is the best"
    path = export(run, "diffusers")
    assert Path(path).name == "pytorch_lora_weights.safetensors"
    names = load_file(path).keys()
    assert names < load_file(run / "best.safetensors").keys()
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert difference(redrawn(pipeline, run), run) > 2  # the frozen model draws another one
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_lora_weights(Path(path).parent, weight_name=Path(path).name)
    assert difference(redrawn(pipeline, run), run) <= 1
    with pytest.raises(InvalidInput, match=r"trained weights .* --to diffusers"):
        export(run, "python")


@quiet
def test_a_resumed_training_reads_the_prompts_that_it_began_with(
    model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder; other prompts in the file are refused."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "prompts.txt"
    file.write_text("a dog\nan owl\n")
    run = steer(model, tmp_path / "runs", budget="steps=1", prompts="prompts.txt", batch=1).run_dir
    monkeypatch.chdir(run)
    assert tiller.resume(run, model=model, budget="steps=2").cost.steps == 2
    file.write_text("a dog\na pig\n")
    with pytest.raises(RunError, match="other training prompts than its files hold"):
        tiller.resume(run, model=model, budget="steps=3")


@quiet
@quiet_all
def test_all_weights_are_exported_as_a_unet(
    folder: Path, model: FrozenModel, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"method": "ddpo", "weights": "all", "batch": 2, "lr": 0.01}
    run = steer(model, tmp_path, **settings).run_dir
    assert read_run(run).best_step > 1
    path = Path(export(run, "diffusers", tmp_path / "out"))
    assert path == tmp_path / "out" / "diffusion_pytorch_model.safetensors"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.unet.load_state_dict(load_file(path))
    assert difference(redrawn(pipeline, run), run) <= 1


@quiet
def test_a_run_whose_best_is_the_frozen_models_own_has_an_adapter_that_does_nothing(
    folder: Path, model: FrozenModel, tmp_path: Path
) -> None:
    run = steer(model, tmp_path, budget="steps=1").run_dir
    with pytest.warns(TillerNotice, match="weights are the frozen model's own"):
        tensors = load_file(export(run, "diffusers"))
    assert all(float(t.abs().max()) == 0 for name, t in tensors.items() if ".lora_B." in name)
