"""Runs that search words: their folder, their exports, and what other noises say of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiller
from tiller import unseen
from tiller.core.errors import RunError, TillerNotice
from tiller.core.rng import Draw, Stream
from tiller.methods.base import Task
from tiller.methods.dpo_diff import DpoDiff
from tiller.models.base import FrozenModel
from tiller.models.inputs import Inputs
from tiller.rewards import make_reward
from tiller.runs.export import export
from tiller.runs.record import read_run
from tiller.runs.store import RunStore
from tiller.testing.fake_pipeline import save_fake_pipeline
from tiller.testing.fake_server import Answer, FakeServer

FIELDS: dict[str, Any] = {
    "num_inference_steps": 3,
    "noises": 2,
    "solver": "gpo+es",
    "n": 2,
    "library": 0,
    "iterations": 2,
    "population": 3,
    "mutants": 1,
    "crossovers": 1,
    "leave_one_out": 0.3,
    "unseen": 3,
}
COMMON: dict[str, Any] = {"reward": "brightness", "held_out": "darkness", "budget": "images=16"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    return tiller.load_model(save_fake_pipeline(tmp_path_factory.mktemp("fake")))


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pinned = {"red": ["b", "c"], "cat": ["d", "ee"]}
    file = tmp_path_factory.mktemp("words") / "words.json"
    file.write_text(json.dumps({"antonyms": {"pin": pinned}, "synonyms": {"pin": pinned}}))
    return file


def fields(choices: Path, out: Path) -> dict[str, Any]:
    return {
        **COMMON, **FIELDS, "method": "dpo_diff", "choices": str(choices), "out": out,
        "space": "both",
    }  # fmt: skip


@pytest.fixture
def settings(choices: Path, tmp_path: Path) -> dict[str, Any]:
    return fields(choices, tmp_path / "runs")


def steer(model: FrozenModel, settings: dict[str, Any], **changes: Any) -> tiller.Result:
    return tiller.steer(model, "a red cat", **{**settings, **changes})


@pytest.fixture(scope="module")
def whole(
    model: FrozenModel, choices: Path, tmp_path_factory: pytest.TempPathFactory
) -> tiller.Result:
    """A run that nothing interrupted; tests must leave it as it is."""
    return steer(model, fields(choices, tmp_path_factory.mktemp("whole")))


def entries(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The journal's lines of some kinds, without what two equal runs differ in."""
    volatile = {"time", "cost"}
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k not in volatile} for e in lines if e["kind"] in kinds]


def test_the_winning_words_are_told_everywhere(whole: tiller.Result, tmp_path: Path) -> None:
    result = whole
    steps = entries(result.run_dir, "step")
    told = [c for step in steps for c in step.get("candidates", ())]
    best = max(told, key=lambda candidate: candidate["score"])
    words = best["prompt"], best["negative_prompt"]
    assert (result.best_prompt, result.best_negative_prompt) == words
    assert result.best.scores["brightness"] == pytest.approx(best["score"], abs=1e-6)
    assert result.prompt == "a red cat"
    assert words != ("a red cat", "")
    text = export(result.run_dir, "prompt")
    assert text == f"{words[0]}\nNegative prompt: {words[1]}\n" if words[1] else f"{words[0]}\n"
    script = Path(export(result.run_dir, "python", tmp_path)).read_text()
    assert f"PROMPT = {words[0]!r}" in script.replace('"', "'")
    assert "prompt_embeds" not in script
    assert result.best.image.size == (16, 16)
    assert words[0] in str(result.best.image.info["parameters"])


def test_the_picture_is_the_first_noises_and_the_strip_all(
    model: FrozenModel, whole: tiller.Result
) -> None:
    result = whole
    about, _ = read_run(result.run_dir).inputs() or ({}, b"")
    method = DpoDiff(num_inference_steps=3, noises=2)
    task = Task(model, "a red cat", "", make_reward("brightness"))
    noise = method.noise(task).sample(2, Stream(0))
    told = model.encode([about["prompt"]], [about["negative_prompt"]]).expand(2)
    drawn = method.pictures(task).render(Inputs(noise, told), Draw(0, 0))
    expected = (drawn.clamp(0, 1) * 255).round().byte()
    strip = np.asarray(tiller.open_run(result.run_dir).best.image.convert("RGB"))
    assert np.abs(strip.astype(int) - expected[0].permute(1, 2, 0).numpy()).max() <= 1
    names = {path.name for path in (result.run_dir / "images").iterdir()}
    assert {"best-seeds.png", "baseline-seeds.png"} <= names
    scores = make_reward("brightness")(drawn, ["a red cat"] * 2)
    assert result.best.scores["brightness"] == pytest.approx(float(scores.mean()), abs=1e-4)


def test_what_the_journal_says_of_each_phase(whole: tiller.Result) -> None:
    run = whole.run_dir
    (space,) = entries(run, "space")
    assert "red  = | b (user), c (user)" in space["text"]
    steps = entries(run, "step")
    relaxed = [step for step in steps if step["phase"] == "gradient"]
    assert [step.get("relaxed") for step in relaxed] == [True, True]
    for step in relaxed:
        assert step["best_score"] == steps[0]["best_score"]
        first = step["distribution"][0]
        assert (first["part"], first["word"]) == ("prompt", "red")
        assert first["options"] == ["red", "b", "c"]
        assert sum(first["probabilities"]) == pytest.approx(1)
    last = steps[-1]
    assert last["phase"] == "words put back"
    assert {gain["part"] for gain in last["gains"]} <= {"prompt", "negative_prompt"}
    assert len(last["gains"]) == len(last["candidates"]) >= 1
    assert last["stopped"] in ("the words of the best were put back", "budget: images=16")


class Crash(Exception):
    """Raised where a crash would be."""


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6])
def test_a_run_cut_off_anywhere_resumes_to_the_uninterrupted_one(
    stop_at: int,
    model: FrozenModel,
    whole: tiller.Result,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    def crash(progress: tiller.api.Progress) -> None:
        if progress.step.index == stop_at:
            raise Crash

    phases = [step["phase"] for step in entries(whole.run_dir, "step")]
    assert phases[:4] == ["prompt", "gradient", "gradient", "search"]
    assert len(phases) >= 6
    with pytest.raises(Crash):
        steer(model, settings, on_step=crash, out=tmp_path / "cut")
    (cut,) = (tmp_path / "cut").iterdir()
    assert entries(cut, "unseen") == []
    resumed = tiller.resume(cut, model=model)
    kinds = ("baseline", "step", "unseen")
    assert entries(cut, *kinds) == entries(whole.run_dir, *kinds)
    for name in ("images/best.png", "images/best-seeds.png", "best.safetensors"):
        assert (cut / name).read_bytes() == (whole.run_dir / name).read_bytes()
    assert resumed.best_prompt == whole.best_prompt
    assert resumed.unseen == whole.unseen


def test_other_noises_say_what_the_words_are_worth(
    model: FrozenModel, whole: tiller.Result
) -> None:
    result = whole
    (entry,) = entries(result.run_dir, "unseen")
    task = Task(model, "a red cat", "", make_reward("brightness"))
    method = DpoDiff(**FIELDS)
    noise = method.noise(task).sample(5, Stream(0))[2:]
    words = result.best_prompt, result.best_negative_prompt
    for key, (prompt, negative) in (("baseline_scores", ("a red cat", "")), ("scores", words)):
        told = model.encode([prompt], [negative]).expand(3)
        drawn = method.pictures(task).render(Inputs(noise, told), Draw(0, 0))
        expected = make_reward("brightness")(drawn, ["a red cat"] * 3).tolist()
        assert entry[key]["brightness"] == pytest.approx(expected, abs=1e-5)
    change = np.subtract(entry["scores"]["brightness"], entry["baseline_scores"]["brightness"])
    found = result.unseen["brightness"]
    assert found.value == pytest.approx(change.mean(), abs=1e-6)
    assert found.low <= found.value <= found.high
    assert found.runs == 3
    assert result.unseen.keys() == result.best.scores.keys()
    for image in entry["images"].values():
        assert (result.run_dir / image).is_file()
    again = tiller.resume(result.run_dir)  # nothing is measured twice
    assert again.unseen == result.unseen
    assert len(entries(result.run_dir, "unseen")) == 1
    assert again.cost == result.cost


def test_a_crash_while_other_noises_are_drawn_is_made_good(
    model: FrozenModel, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> Any:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(unseen, "drawn", crash)
        with pytest.raises(Crash):
            steer(model, settings, leave_one_out=0.0)
    (run,) = settings["out"].iterdir()
    assert entries(run, "unseen") == []
    assert tiller.open_run(run).unseen == {}
    assert tiller.resume(run).unseen.keys() == {"brightness", "darkness"}
    longer = tiller.resume(run, budget="images=22")  # measured anew for what is found since
    assert len(entries(run, "unseen")) == 2
    assert longer.unseen.keys() == {"brightness", "darkness"}


def test_ctrl_c_measures_nothing_more(model: FrozenModel, settings: dict[str, Any]) -> None:
    def press(progress: tiller.api.Progress) -> None:
        if progress.step.index == 2:
            os.kill(os.getpid(), signal.SIGINT)

    result = steer(model, settings, on_step=press)
    assert result.stopped == "interrupted"
    assert entries(result.run_dir, "unseen") == []
    assert result.best_prompt == "a red cat"
    assert tiller.resume(result.run_dir).unseen


def test_a_space_that_has_changed_is_not_searched_on(
    model: FrozenModel, settings: dict[str, Any], tmp_path: Path
) -> None:
    def crash(progress: tiller.api.Progress) -> None:
        raise Crash

    file = tmp_path / "mine.json"
    file.write_text(Path(settings["choices"]).read_text())
    with pytest.raises(Crash):
        steer(model, settings, choices=str(file), on_step=crash)
    file.write_text("{}")
    (run,) = settings["out"].iterdir()
    with pytest.raises(RunError, match="was begun in the space"):
        tiller.resume(run)


def test_patience_does_not_count_relaxed_rounds(
    model: FrozenModel, settings: dict[str, Any]
) -> None:
    result = steer(model, settings, iterations=4, patience=3, budget="images=24")
    phases = [step["phase"] for step in entries(result.run_dir, "step")]
    assert phases[:6] == ["prompt", *4 * ["gradient"], "search"]


def test_many_runs_side_by_side_find_what_each_finds_alone(
    model: FrozenModel, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = tiller.models.trajectory.Trajectory.run

    def counted(self: Any, noise: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(noise))
        return run(self, noise, *args, **kwargs)

    monkeypatch.setattr(tiller.models.trajectory.Trajectory, "run", counted)
    prompts = ["a red cat", "a cat"]
    together = tiller.steer_many(model, prompts, **{**settings, "unseen": 0})
    assert rows[:4] == [4, 4, 4, 4]  # the baselines, then both prompts in each call
    for result in together:
        alone = tiller.steer(
            model, result.prompt, **{**settings, "unseen": 0, "out": tmp_path / "alone"}
        )
        assert result.best_prompt == alone.best_prompt
        assert result.best_negative_prompt == alone.best_negative_prompt
        assert result.cost.forwards == alone.cost.forwards
        assert result.cost.backwards == alone.cost.backwards
        for name, score in alone.best.scores.items():
            assert result.best.scores[name] == pytest.approx(score, rel=1e-3, abs=1e-5)


def test_an_attack_ends_lower_with_a_prompt_of_the_same_meaning(
    model: FrozenModel, settings: dict[str, Any]
) -> None:
    del settings["space"]
    with pytest.warns(TillerNotice, match="your 'b' for 'red', 'c' for 'red'; set a lower"):
        result = steer(model, settings, method="attack", min_similarity=0.5, budget="images=14")
    assert result.best.scores["brightness"] <= result.baseline.scores["brightness"]
    assert result.best_negative_prompt == ""
    steps = entries(result.run_dir, "step")
    told = [c for step in steps for c in step.get("candidates", ())]
    assert all(candidate["similarity"] >= 0.5 for candidate in told)
    assert read_run(result.run_dir).unseen["scores"].keys() == {"brightness", "darkness"}


def test_methods_that_search_no_words_tell_the_users_own(
    model: FrozenModel, tmp_path: Path
) -> None:
    result = tiller.steer(
        model, "a cat", method="raw", num_inference_steps=3, negative_prompt="blur",
        out=tmp_path, reward="brightness",
    )  # fmt: skip
    assert (result.best_prompt, result.best_negative_prompt) == ("a cat", "blur")
    assert result.unseen == {}


def test_a_run_keeps_the_words_that_it_was_begun_with_whether_the_server_is_there_or_not(
    model: FrozenModel,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TILLER_CACHE", str(tmp_path / "cache"))
    settings |= {"choices": None, "n": 6, "space": "negative", "solver": "random", "llm": True}
    answer = '{"red": ["violet"], "cat": ["whale"]}'
    with FakeServer([Answer("gone", status=418), answer]) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.warns(TillerNotice, match="no antonyms from the LLM"):
            without = steer(model, settings, budget="images=6")
        with_words = steer(model, settings, budget="images=6")
        assert len(server.requests) == 2
    spaces = [
        next(one["text"] for one in RunStore.open(run.run_dir).entries() if one["kind"] == "space")
        for run in (without, with_words)
    ]
    assert ["violet" in text for text in spaces] == [False, True]
    assert [run.cost.tokens for run in (without, with_words)] == [0, 15]
    for run in (without, with_words):  # the server is gone
        assert tiller.resume(run.run_dir, model=model, budget="images=10").cost.images == 10


def test_what_ctrl_c_left_unmeasured_is_measured_when_called_again(
    model: FrozenModel, settings: dict[str, Any]
) -> None:
    """Also where the search was over: the signal may come in its last round."""

    def press(progress: tiller.api.Progress) -> None:
        if progress.step.stopped is not None:
            os.kill(os.getpid(), signal.SIGINT)

    (first,) = tiller.steer_many(model, ["a red cat"], on_step=press, **settings)
    assert first.stopped.startswith("budget")
    assert entries(first.run_dir, "unseen") == []
    (again,) = tiller.steer_many(model, ["a red cat"], **settings)
    assert again.run_dir == first.run_dir
    assert again.unseen


def test_a_file_of_choices_is_found_from_any_folder(
    model: FrozenModel, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choices = Path(settings["choices"])
    monkeypatch.chdir(choices.parent)
    result = steer(model, settings, choices=choices.name, budget="images=4")
    monkeypatch.chdir(tmp_path)
    assert tiller.resume(result.run_dir, budget="images=10").cost.images > 4
