"""What a training leaves: its file, whatever stands in the way or fails before the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

import tiller
from tiller.affixes.plan import Plan
from tiller.affixes.training import resume_training, train
from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput, RewardError, RunError
from tiller.core.search import Step
from tiller.methods._affix_files import read_affix
from tiller.methods.base import Task
from tiller.methods.raw import Raw
from tiller.models.base import FrozenModel
from tiller.rewards import make_reward
from tiller.runs.png import to_image
from tiller.testing.fake_pipeline import save_fake_pipeline

UNSEEN = ["a fox", "a green hen"]
PLAN = Plan(
    ["a red cat", "a dog", "an owl", "a blue dog", "a pig"],
    UNSEEN,
    reward="brightness",
    batch=2,
    epochs=2,
    seed=7,
    settings={"num_inference_steps": 2, "prefix": 2, "suffix": 1, "rank": 3, "lr": 0.02},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    return tiller.load_model(save_fake_pipeline(tmp_path_factory.mktemp("fake")))


def test_what_is_drawn_with_the_file_is_what_the_training_drew(
    model: FrozenModel, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    trained = train(model, PLAN, file, out=tmp_path)
    saved = read_affix(file)
    assert torch.equal(saved.affix.prefix, trained.affix.prefix)
    about = saved.about
    assert (about["width"], about["prompts"], about["steps"]) == (16, 5, 6)
    results = [
        tiller.steer(
            model,
            UNSEEN[0],
            method="raw",
            reward="brightness",
            held_out="darkness",
            affix=str(file),
            num_inference_steps=2,
            out=tmp_path / "draws",
        )
        for _ in range(2)
    ]
    first, second = (result.best.image.tobytes() for result in results)
    assert first == second
    assert first != results[0].baseline.image.tobytes()
    method = Raw(num_inference_steps=2)
    task = Task(model, UNSEEN[0], "", make_reward("brightness"))
    told = method.words(task).conditioning(trained.affix)
    with torch.no_grad():
        latents = method.trajectory(model).run(method.baseline(task, 0).noise, told)
        held = to_image(model.decode(latents))
    assert held.tobytes() == first, "the tokens in memory draw what those of the file draw"


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_drawn(
    model: FrozenModel, tmp_path: Path
) -> None:
    (tmp_path / "text").touch()
    for file, says in ((tmp_path, "is a folder"), (tmp_path / "text" / "a", "above it is a file")):
        with pytest.raises(RunError, match=says):
            train(model, PLAN, file, out=tmp_path / "runs")
    with pytest.raises(InvalidInput, match="is there already; give another file"):
        train(model, PLAN, tmp_path / "text", out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    plan = replace(PLAN, epochs=1, unseen=(), budget=Budget(images=2))
    trained = train(model, plan, tmp_path / "new" / "a.safetensors", out=tmp_path)
    assert trained.file == tmp_path / "new" / "a.safetensors", "its folder is made"
    assert trained.stopped == "budget: images=2"


def test_a_training_whose_file_cannot_be_written_in_the_end_is_not_lost(
    model: FrozenModel, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "a.safetensors"

    def obstruct(step: Step) -> None:
        if step.stopped is not None:
            file.mkdir()

    plan = replace(PLAN, epochs=1, unseen=())
    with pytest.raises(RunError, match="cannot save the affix") as failed:
        train(model, plan, file, out=tmp_path, on_step=obstruct)
    (run,) = (note.removeprefix("run: ") for note in failed.value.__notes__)
    assert "tiller resume" in str(failed.value)
    file.rmdir()
    assert resume_training(run, model=model).file == file


def test_a_resumed_training_replaces_its_own_file_and_no_others(
    model: FrozenModel, tmp_path: Path
) -> None:
    plan, file = replace(PLAN, epochs=1, unseen=()), tmp_path / "a.safetensors"
    mine = train(model, plan, file, out=tmp_path / "mine")
    own = file.read_bytes()
    file.unlink()
    train(model, replace(plan, seed=8), file, out=tmp_path / "other")
    other = file.read_bytes()
    with pytest.raises(RunError, match=r"is there and not of this run, .*; take it from") as failed:
        resume_training(mine.run_dir, model=model)
    assert "tiller resume" in str(failed.value)
    assert file.read_bytes() == other
    assert (mine.run_dir / "affix.safetensors").read_bytes() == own, "nothing is lost"
    file.unlink()
    assert resume_training(mine.run_dir, model=model).file == file
    more = resume_training(mine.run_dir, model=model, budget="steps=4")
    assert more.file == file
    assert read_affix(file).about["steps"] == 4
    tensors, about = load(file.read_bytes()), read_affix(file).about
    before = {key: value for key, value in about.items() if key not in ("run", "seal")}
    file.write_bytes(save(tensors, {"tiller": json.dumps(before)}))
    assert resume_training(mine.run_dir, model=model).file == file, "of before runs were named"
    file.write_text("a letter")
    with pytest.raises(RunError, match="not of this run"):
        resume_training(mine.run_dir, model=model)
    assert file.read_text() == "a letter"


def test_a_reward_that_fails_leaves_the_affix_of_the_rounds_before(
    model: FrozenModel, tmp_path: Path
) -> None:
    """Also on a resume that meets the same number, and where no other budget can be had."""
    broken: list[bool] = []

    def fails(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        nan = broken and set(prompts) <= {"an owl", "a pig"}  # the reward is tried on others
        return images.mean((1, 2, 3)) + (float("nan") if nan else 0.0)

    def break_it(step: Step) -> None:
        if step.index == 3:
            broken.append(True)

    plan = replace(
        PLAN,
        prompts=["an owl", "a pig"],
        batch=1,
        epochs=3,
        unseen=(),
        reward=fails,
        held_out="clip",
    )
    file = tmp_path / "a.safetensors"
    with pytest.raises(
        RewardError, match=r"as round 3 left it is saved as .*a\.safetensors"
    ) as one:
        train(model, plan, file, out=tmp_path, on_step=break_it)
    (run,) = {note.removeprefix("run: ") for note in one.value.__notes__}
    assert str(one.value).endswith(f"its run is {run}")
    first = file.read_bytes()
    file.unlink()
    with pytest.raises(RewardError, match="is saved as"):
        resume_training(run, model=model, reward=fails)
    assert file.read_bytes() == first
    broken.clear()
    whole = resume_training(run, model=model, reward=fails)
    assert (whole.file, read_affix(file).about["steps"]) == (file, 6)
    broken.append(True)
    with pytest.raises(RewardError, match="so there is no affix"):
        train(model, plan, tmp_path / "b.safetensors", out=tmp_path / "b")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_training_whose_reward_or_settings_were_edited_does_not_go_on(
    model: FrozenModel, tmp_path: Path
) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text("def bright(images):\n    return images.mean(dim=(1, 2, 3))\n")
    plan = replace(PLAN, reward=f"{reward}:bright", budget="steps=1")
    trained = train(model, plan, tmp_path / "a.safetensors", out=tmp_path)
    spec = trained.run_dir / "run.json"
    whole = spec.read_text()
    spec.write_text(whole.replace("an owl", "an elk"))
    with pytest.raises(RunError, match=r"run\.json was changed since the run began: its prompts"):
        resume_training(trained.run_dir, model=model, budget="steps=2")
    spec.write_text(whole)
    reward.write_text("def bright(images):\n    return -images.mean(dim=(1, 2, 3))\n")
    with pytest.raises(RunError, match=r"mine\.py has changed since"):
        resume_training(trained.run_dir, model=model, budget="steps=2")
