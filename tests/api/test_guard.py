"""What a run watches: P(z) in every round, an alarm on it, patience with the held-out reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiller
from tiller.core.errors import InvalidInput
from tiller.guard import Guard
from tiller.models.base import FrozenModel
from tiller.testing.fake_pipeline import fake_pipeline


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiller.load_model(fake_pipeline())


def steer(model: FrozenModel, out: Path, **changes: Any) -> tiller.Result:
    settings = {"lr": 0.3, "num_inference_steps": 4, "budget": "steps=12"} | changes
    return tiller.steer(
        model, "a cat", method="dno", reward="brightness", held_out="darkness", out=out, **settings
    )


def rounds(result: tiller.Result) -> list[dict[str, Any]]:
    lines = (result.run_dir / "journal.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == "step"]


def test_every_round_says_how_probable_its_noise_is(model: FrozenModel, tmp_path: Path) -> None:
    result = steer(model, tmp_path)
    found = [entry["probability"] for entry in rounds(result)]
    assert found[0] > 0.01
    assert found[-1] < 1e-3, "a rate of .3 drives the noise far off"
    best = max(rounds(result), key=lambda entry: entry["best_score"])
    assert result.probability == best["probability"]


def test_the_alarm_ends_the_run_and_keeps_the_picture_from_before(
    model: FrozenModel, tmp_path: Path
) -> None:
    free, alarmed = steer(model, tmp_path), steer(model, tmp_path, stop_below=0.01)
    below = [i for i, entry in enumerate(rounds(free)) if entry["probability"] < 0.01]
    assert len(rounds(alarmed)) == below[0] + 1
    assert "stop_below=0.01" in alarmed.stopped
    assert alarmed.probability >= 0.01
    assert alarmed.best.scores == rounds(free)[below[0] - 1]["scores"]


def test_patience_keeps_the_peak_of_the_held_out_reward(model: FrozenModel, tmp_path: Path) -> None:
    """Brightness up is darkness down: the held-out reward never rises."""
    result = steer(model, tmp_path, patience=3)
    assert len(rounds(result)) == 4
    assert "patience" in result.stopped
    assert result.best.scores["darkness"] == pytest.approx(result.baseline.scores["darkness"])


def test_patience_is_not_tried_while_the_held_out_reward_rises(
    model: FrozenModel, tmp_path: Path
) -> None:
    result = tiller.steer(
        model, "a cat", method="dno", reward="brightness", held_out="colour:white", out=tmp_path,
        lr=0.1, num_inference_steps=4, budget="steps=6", patience=2,
    )  # fmt: skip
    assert result.stopped == "budget: steps=6"
    assert result.best.scores["brightness"] > result.baseline.scores["brightness"]


def test_a_resumed_run_is_as_patient_as_a_whole_one(model: FrozenModel, tmp_path: Path) -> None:
    whole = steer(model, tmp_path / "whole", patience=6)
    part = steer(model, tmp_path / "part", patience=6, budget="steps=3")
    again = tiller.resume(part.run_dir, model=model, budget="steps=12")
    assert len(rounds(again)) == len(rounds(whole)) == 7
    assert again.stopped == whole.stopped
    assert again.best.scores == whole.best.scores


@pytest.mark.parametrize("settings", [{"stop_below": 0.01}, {"patience": 3}])
def test_a_run_that_its_guard_has_ended_stays_ended(
    settings: dict[str, Any], model: FrozenModel, tmp_path: Path
) -> None:
    whole = steer(model, tmp_path, **settings)
    again = tiller.resume(whole.run_dir, model=model)
    assert len(rounds(again)) == len(rounds(whole))
    assert again.stopped == whole.stopped
    assert again.best.scores == whole.best.scores


def test_recalls_where_a_journal_leaves_it() -> None:
    lines = [
        {"kind": "baseline", "scores": {"clip": 0.3}},
        {"kind": "step", "scores": {"clip": 0.5}, "image": "a"},
        {"kind": "step", "scores": {"clip": 0.5}, "image": None},
        {"kind": "step", "scores": {"clip": 0.5}, "image": None},
    ]
    guard = Guard(patience=3)
    guard.recall(lines, "clip")
    assert (guard.peak, guard.since) == (0.5, 2)
    assert guard.after(None) == (
        "no picture was better by its score and by the held-out reward for 3 rounds (patience)"
    )


def test_an_alarm_before_anything_was_moved_says_so() -> None:
    guard = Guard(stop_below=0.1)
    guard.probability = 0.05
    assert "before anything was moved: take another seed" in (guard.after(0.0) or "")
    guard.drawn = True
    assert guard.after(0.0) is None


def test_noises_that_are_drawn_are_passed_over_where_they_are_improbable(
    model: FrozenModel, tmp_path: Path
) -> None:
    common = {"method": "best_of_n", "reward": "brightness", "num_inference_steps": 2, "batch": 1}
    result = tiller.steer(
        model, "a cat", out=tmp_path, budget="images=24", stop_below=0.3, **common
    )
    found = rounds(result)
    assert result.stopped == "budget: images=24"
    kept = [entry["probability"] for entry in found[1:] if entry["image"]]
    assert kept
    assert min(kept) >= 0.3
    assert min(entry["probability"] for entry in found) < 0.3
    again = tiller.resume(result.run_dir, model=model, budget="images=30")
    assert again.stopped == "budget: images=30"


@pytest.mark.parametrize("settings", [{"stop_below": 1.5}, {"stop_below": -1.0}, {"patience": -1}])
def test_refuses_what_cannot_be(
    settings: dict[str, Any], model: FrozenModel, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        steer(model, tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_where_low_scores_are_sought_a_fall_of_the_held_out_reward_is_welcome() -> None:
    guard = Guard(patience=2, lowers=True)
    guard.recall([{"kind": "baseline", "scores": {"clip": 0.8}}], "clip")
    assert guard.keeps(guard.worth(0.7))
    assert not guard.keeps(guard.worth(0.9))
    assert guard.after(guard.worth(0.7)) is None
    assert not guard.keeps(guard.worth(0.75))
