"""`steer` and `resume` end to end, on a fake pipeline: what a run folder holds and survives."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiller
from tiller.api import Progress
from tiller.core.errors import Incompatible, InvalidInput, RewardError, RunError, TillerNotice
from tiller.methods._catalog import available
from tiller.models.base import FrozenModel
from tiller.testing.fake_pipeline import fake_pipeline, save_fake_pipeline

VOLATILE = ("time", "cost", "stopped")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fake_pipeline(tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def model(folder: Path) -> FrozenModel:
    return tiller.load_model(folder)


def steer(model: Any, out: Path, **changes: Any) -> tiller.Result:
    settings: dict[str, Any] = {
        "method": "dno",
        "reward": "brightness",
        "held_out": ["darkness"],
        "budget": "steps=4",
        "num_inference_steps": 4,
        "out": out,
    }
    return tiller.steer(model, "a red cat", **(settings | changes))


def journal(run: Path) -> list[dict[str, Any]]:
    """The journal without what may differ between two equal runs."""
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    kept = [entry for entry in lines if entry["kind"] in ("baseline", "step")]
    return [{k: v for k, v in entry.items() if k not in VOLATILE} for entry in kept]


class Stop(Exception):
    """Raised by a test to end a run where a crash would."""


@pytest.mark.filterwarnings("ignore:.* trains weights", "ignore:left out of the search")
@pytest.mark.parametrize("method", sorted(available()))
def test_every_method_is_never_worse_than_its_baseline_and_reports_a_held_out_reward(
    method: str,
    model: FrozenModel,
    tmp_path: Path,
    needs: Callable[[str], dict[str, Any]],
) -> None:
    result = steer(model, tmp_path, method=method, **needs(method))
    best, baseline = (one.scores["brightness"] for one in (result.best, result.baseline))
    assert best <= baseline if available()[method].lowers else best >= baseline
    assert result.best.scores.keys() == {"brightness", "darkness"}
    assert result.cost.forwards > 0
    assert result.stopped
    assert (result.run_dir / "images" / "best.png").is_file()
    again = tiller.open_run(result.run_dir)
    assert again.best.scores == result.best.scores
    assert again.cost == result.cost


def test_dno_raises_the_reward_by_its_gradient(model: FrozenModel, tmp_path: Path) -> None:
    result = steer(model, tmp_path, budget="steps=8", lr=0.05)
    assert result.best.scores["brightness"] > result.baseline.scores["brightness"] + 1e-3
    assert result.cost.backwards == result.cost.forwards == 8 * 4 * 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warm_start": 3},
        {"method": "random"},
        {"reward": "jpeg", "estimator": "hybrid2", "q": 2, "gamma": 0.1, "b": 3},
    ],
)
@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_a_run_cut_off_anywhere_resumes_to_the_uninterrupted_one(
    model: FrozenModel, tmp_path: Path, stop_at: int, settings: dict[str, Any]
) -> None:
    def crash(progress: Progress) -> None:
        if progress.step.index == stop_at:
            raise Stop

    whole = steer(model, tmp_path / "whole", budget="steps=6", **settings)
    with pytest.raises(Stop):
        steer(model, tmp_path / "cut", budget="steps=6", on_step=crash, **settings)
    (cut,) = (tmp_path / "cut").iterdir()
    resumed = tiller.resume(cut, model=model)
    assert journal(cut) == journal(whole.run_dir)
    for name in ("images/best.png", "best.safetensors"):
        assert (cut / name).read_bytes() == (whole.run_dir / name).read_bytes()
    assert resumed.cost.forwards == whole.cost.forwards


def test_a_finished_run_goes_on_with_a_larger_budget(model: FrozenModel, tmp_path: Path) -> None:
    short = steer(model, tmp_path / "short", budget="steps=2")
    longer = tiller.resume(short.run_dir, budget="steps=5")
    whole = steer(model, tmp_path / "whole", budget="steps=5")
    assert journal(longer.run_dir) == journal(whole.run_dir)
    assert tiller.resume(short.run_dir, budget="steps=5").cost.steps == 5  # nothing left to do


def test_the_warm_start_ascends_from_the_best_sample(model: FrozenModel, tmp_path: Path) -> None:
    phases: list[str] = []
    scores: list[float] = []

    def watch(progress: Progress) -> None:
        phases.append(progress.step.phase)
        scores.append(float(progress.step.evaluation.score.max()))

    steer(model, tmp_path, budget="steps=4", warm_start=8, on_step=watch)
    assert phases == ["warm start", "ascent", "ascent", "ascent"]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)  # the same picture, drawn alone


def test_auto_ascends_with_or_without_the_rewards_gradient(
    model: FrozenModel, tmp_path: Path
) -> None:
    white_box = steer(model, tmp_path, method="auto", budget="steps=1")
    assert white_box.method == "dno"
    assert white_box.cost.images == 1
    black_box = steer(model, tmp_path, method="auto", reward="jpeg", budget="steps=2")
    assert black_box.method == "dno"
    assert black_box.cost.images == 2 * (4 + 1)  # hybrid 2: four perturbed pictures and the own
    assert black_box.cost.backwards == 2 * 4 * 2  # of which one is differentiated
    assert black_box.best.scores["jpeg"] >= black_box.baseline.scores["jpeg"]


def test_a_python_reward_and_a_pipeline_object_must_be_given_again(
    model: FrozenModel, tmp_path: Path
) -> None:
    def redness(images: torch.Tensor) -> torch.Tensor:
        return images[:, 0].mean((1, 2))

    run = steer(model, tmp_path, reward=redness, budget="steps=1").run_dir
    with pytest.raises(RunError, match="reward="):
        tiller.resume(run)
    assert tiller.resume(run, reward=redness, budget="steps=2").cost.steps == 2

    own = tiller.load_model(fake_pipeline())
    run = steer(own, tmp_path, budget="steps=1").run_dir
    with pytest.raises(RunError, match="model="):
        tiller.resume(run)
    assert tiller.resume(run, model=own, budget="steps=2").cost.steps == 2


def test_a_model_that_would_sample_otherwise_is_refused(
    model: FrozenModel, folder: Path, tmp_path: Path
) -> None:
    run = steer(model, tmp_path, method="best_of_n", budget="images=1").run_dir
    other = tiller.load_model(folder, scheduler="euler")
    with pytest.raises(RunError, match="euler"):
        tiller.resume(run, model=other)


def test_a_reward_that_fails_later_ends_the_run_and_keeps_the_best(
    model: FrozenModel, tmp_path: Path
) -> None:
    calls = 0

    def failing(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        score = images.mean((1, 2, 3))
        return score * float("nan") if calls > 8 else score

    with pytest.raises(RewardError, match="finite"):
        steer(model, tmp_path, reward=failing, budget="steps=20")
    (run,) = tmp_path.iterdir()
    kept = tiller.open_run(run)
    assert kept.best.scores["failing"] >= kept.baseline.scores["failing"]
    assert "error" in (run / "journal.jsonl").read_text()


def test_ctrl_c_ends_after_the_step_under_way(model: FrozenModel, tmp_path: Path) -> None:
    def press(progress: Progress) -> None:
        if progress.step.index == 2:
            os.kill(os.getpid(), signal.SIGINT)

    result = steer(model, tmp_path, budget="steps=9", on_step=press)
    assert result.stopped == "interrupted"
    assert result.cost.steps == 3
    resumed = tiller.resume(result.run_dir)
    assert resumed.cost.steps == 9
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "dnoo"}, InvalidInput, "Did you mean 'dno'"),
        ({"learning_rate": 1.0}, InvalidInput, "unknown field of method dno"),
        ({"lr": "fast"}, InvalidInput, "dno.lr must be a number"),
        ({"lr": -1.0}, InvalidInput, "lr"),
        ({"budget": "steps=0"}, InvalidInput, "positive"),
        ({"scheduler": "euler"}, InvalidInput, "ddim"),
        ({"checkpoint": "some"}, InvalidInput, "checkpoint"),
        ({"reward": "brigthness"}, InvalidInput, "brightness"),
        ({"reward": "jpeg", "estimator": "autograd"}, Incompatible, "differentiable"),
        ({"reward": "jpeg", "estimator": "autograd", "warm_start": 4}, Incompatible, "differen"),
        ({"estimator": "hybrid3"}, InvalidInput, "hybrid2"),
        ({"estimator": "hybrid2", "q": 0}, InvalidInput, "q must be"),
        ({"q": 8}, InvalidInput, "estimator=hybrid2"),
        ({"gamma": -1.0}, InvalidInput, "gamma"),
        ({"gamma": 1.0, "k": 0}, InvalidInput, "k must be"),
        ({"seed": 1.5}, InvalidInput, "seed"),
        ({"seed": True}, InvalidInput, "seed"),
        ({"method": tiller.Budget}, InvalidInput, "method must be a name"),
        ({"method": "best_of_n", "batch": 10**9}, InvalidInput, "batch must lie in"),
        ({"method": "random", "batch": 0}, InvalidInput, "batch must lie in"),
        ({"budget": 30}, InvalidInput, "expected a budget like"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_drawn_or_written(
    model: FrozenModel, tmp_path: Path, changes: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        steer(model, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(model: FrozenModel, tmp_path: Path, prompt: str) -> None:
    with pytest.raises(InvalidInput, match="at least one word"):
        tiller.steer(model, prompt, out=tmp_path)


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize(
    "prompt", ["word " * 500, "\N{CAT}\N{ZERO WIDTH JOINER}\x00\x07\x1b[31m red \ud83d cat"]
)
def test_long_and_strange_prompts_are_drawn(
    model: FrozenModel, tmp_path: Path, prompt: str
) -> None:
    settings: dict[str, Any] = {"budget": "steps=1", "out": tmp_path, "num_inference_steps": 2}
    result = tiller.steer(model, prompt, reward="brightness", held_out=["darkness"], **settings)
    assert tiller.resume(result.run_dir, budget="steps=2").cost.steps == 2


def test_equal_seeds_give_equal_runs_and_other_seeds_other_ones(
    model: FrozenModel, tmp_path: Path
) -> None:
    first, same, other = (steer(model, tmp_path, seed=seed) for seed in (3, 3, 4))
    assert journal(first.run_dir) == journal(same.run_dir)
    assert first.baseline.scores != other.baseline.scores


def test_a_larger_budget_is_kept_for_the_next_resume(model: FrozenModel, tmp_path: Path) -> None:
    def press(progress: Progress) -> None:
        if progress.step.index == 3:
            os.kill(os.getpid(), signal.SIGINT)

    run = steer(model, tmp_path, budget="steps=2").run_dir
    assert tiller.resume(run, budget="steps=6", on_step=press).stopped == "interrupted"
    assert tiller.resume(run).cost.steps == 6


def test_a_damaged_state_is_fallen_back_from_and_that_is_said(
    model: FrozenModel, tmp_path: Path
) -> None:
    whole = steer(model, tmp_path / "whole")
    run = steer(model, tmp_path / "damaged").run_dir
    state = run / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.warns(TillerNotice, match="continuing from the state one round before"):
        tiller.resume(run)
    assert journal(run) == journal(whole.run_dir)
    assert "one round before" in (run / "journal.jsonl").read_text()


def test_a_lost_picture_does_not_stop_a_resume(model: FrozenModel, tmp_path: Path) -> None:
    run = steer(model, tmp_path, budget="steps=2", lr=0.05).run_dir
    (run / "images" / "best.png").write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"best\.png is not a readable picture"):
        tiller.open_run(run)
    assert tiller.resume(run, budget="steps=4").cost.steps == 4  # a better one was drawn


def test_a_reward_file_that_was_edited_is_refused_once_it_has_scored(
    model: FrozenModel, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    mean = "def score(images):\n    return images.mean((1, 2, 3))\n"
    file.write_text(mean)
    settings: dict[str, Any] = {"reward": f"{file}:score", "budget": "steps=2"}
    run = steer(model, tmp_path / "out", **settings).run_dir
    file.write_text(mean.replace("images", "pictures"))
    with pytest.raises(RunError, match=r"mine\.py has changed since .*start a new run"):
        tiller.resume(run, budget="steps=3")
    assert tiller.open_run(run).stopped == "budget: steps=2"
    many = {**settings, "method": "dno", "held_out": ["darkness"], "num_inference_steps": 4}
    with pytest.raises(RunError, match=r"mine\.py has changed"):
        tiller.steer_many(model, ["a red cat"], out=tmp_path / "out", **many)
    for state in run.glob("state*"):
        state.unlink()
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(x for x in lines if '"kind": "step"' not in x))
    assert tiller.resume(run).cost.steps == 2  # of a run without a round nothing is mixed


def test_a_run_json_that_was_edited_is_refused(model: FrozenModel, tmp_path: Path) -> None:
    run = steer(model, tmp_path, budget="steps=1").run_dir
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace("a red cat", "a blue dog"))
    with pytest.raises(RunError, match=r"its prompt was 'a red cat', and is 'a blue dog' now"):
        tiller.resume(run, budget="steps=2")
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(x for x in lines if '"kind": "begun"' not in x))
    assert tiller.resume(run, budget="steps=2").cost.steps == 2  # as runs of before


def test_what_is_missing_from_a_folder_is_made_good_or_named(
    model: FrozenModel, tmp_path: Path
) -> None:
    whole = steer(model, tmp_path / "whole", budget="steps=3", lr=0.05)
    run = steer(model, tmp_path / "damaged", budget="steps=3", lr=0.05).run_dir
    (run / "images" / "best.png").unlink()
    assert tiller.open_run(run).best.scores == whole.best.scores
    lines = (run / "journal.jsonl").read_bytes()
    (run / "journal.jsonl").write_bytes(lines[:-9])  # torn, with a state that is complete
    with pytest.warns(TillerNotice) as said:
        resumed = tiller.resume(run)
    assert len(said) == len({str(one.message) for one in said})
    assert resumed.stopped == "budget: steps=3"
    assert journal(run) == journal(whole.run_dir)
    assert (run / "journal.jsonl").read_text().count("was torn by a crash") == 1
    (run / "journal.jsonl").unlink()
    with pytest.raises(RunError, match=r"no rounds in its journal.*--budget"):
        tiller.resume(run)
    longer = tiller.resume(run, budget="steps=5")
    assert longer.best.scores["brightness"] >= whole.best.scores["brightness"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiller.resume(None), "run_dir must be the path of a folder, got None"),
        (lambda: tiller.open_run(None), "run_dir must be the path of a folder, got None"),
        (lambda: tiller.steer("m", "a cat", out=3), "out must be the path of a folder, got 3"),
        (lambda: tiller.steer("m", "a cat", on_step=3), "on_step must be a function"),
        (lambda: tiller.steer_many("m", None), "prompts must be a list, got None"),
        (lambda: tiller.steer_many("m", ["a"], seeds=None), "seeds must be a list, got None"),
    ],
)
def test_other_kinds_of_arguments_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    first, other = (tiller.load_model(fake_pipeline(seed=seed)) for seed in (0, 1))
    run = steer(first, tmp_path, budget="steps=1").run_dir
    with pytest.raises(RunError, match="other weights"):
        tiller.resume(run, model=other, budget="steps=2")


@pytest.mark.parametrize(
    ("held_out", "message"),
    [(["brightness"], "cannot be held out"), (["bright"], "unknown")],
)
def test_held_out_rewards_are_checked(
    model: FrozenModel, tmp_path: Path, held_out: list[str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        steer(model, tmp_path, held_out=held_out)
    assert not list(tmp_path.iterdir())


def test_a_held_out_reward_may_be_one_name_and_is_reported_under_its_own(
    model: FrozenModel, tmp_path: Path
) -> None:
    result = steer(model, tmp_path, held_out="colour:Red", budget="steps=1")
    assert result.held_out == ("colour:red",)
    assert "colour:red" in result.best.scores


def test_a_held_out_function_is_tried_on_pictures_of_the_models_size(
    model: FrozenModel, tmp_path: Path
) -> None:
    side = model.defaults.height
    file = tmp_path / "own.py"
    lines = f"    assert images.shape[-1] == {side}\n    return images.mean((1, 2, 3))\n"
    file.write_text(f"def own(images):\n{lines}")
    result = steer(model, tmp_path, held_out=f"{file}:own", budget="steps=1")
    assert result.held_out == ("own.py:own",)
