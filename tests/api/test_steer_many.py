"""Many prompts and seeds side by side: each run as if alone, and kept for the next call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiller
from tiller import guard
from tiller.core.errors import InvalidInput, RewardError
from tiller.models.base import FrozenModel
from tiller.models.trajectory import Trajectory
from tiller.rewards import RewardSum
from tiller.runs.files import allow_files
from tiller.runs.record import read_run
from tiller.testing.fake_pipeline import save_fake_pipeline

PROMPTS = ["a red cat", "a blue dog"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    return tiller.load_model(save_fake_pipeline(tmp_path_factory.mktemp("fake")))


def settings(out: Path, **changes: Any) -> dict[str, Any]:
    usual = {"reward": "brightness", "held_out": "darkness", "num_inference_steps": 3}
    return {**usual, "method": "dno", "budget": "steps=3", "out": out, **changes}


@pytest.mark.filterwarnings("ignore:draft trains weights")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gamma": 0.5, "b": 3},
        {"reward": "jpeg", "q": 2},
        {"reward": "jpeg", "q": 3, "estimator": "zeroth_order"},
        {"method": "best_of_n", "budget": "images=5"},
        {"warm_start": 2},
        {"population": 4, "halve_every": 1},
        {"method": "ipgo", "prefix": 2, "suffix": 1, "rank": 3},
        {"method": "draft", "rank": 2},
    ],
    ids=str,
)
def test_each_run_is_as_if_alone(
    changes: dict[str, Any], model: FrozenModel, tmp_path: Path
) -> None:
    together = tiller.steer_many(
        model, PROMPTS, seeds=[0, 3], **settings(tmp_path / "a", **changes)
    )
    wanted = [(prompt, seed) for prompt in PROMPTS for seed in (0, 3)]
    for result, (prompt, seed) in zip(together, wanted, strict=True):
        alone = tiller.steer(model, prompt, seed=seed, **settings(tmp_path / "b", **changes))
        assert result.prompt == prompt
        assert result.stopped == alone.stopped
        for name, score in alone.best.scores.items():
            assert result.best.scores[name] == pytest.approx(score, rel=1e-3, abs=1e-5)
        counted = ("steps", "images", "forwards", "backwards", "reward_calls")
        for name in counted:
            assert getattr(result.cost, name) == getattr(alone.cost, name)
        a, b = (np.asarray(r.best.image, dtype=float) for r in (result, alone))
        assert np.abs(a - b).max() <= 1


def test_the_sampler_runs_once_a_round_for_all(
    model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = Trajectory.run

    def counted(self: Trajectory, noise: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(noise))
        return run(self, noise, *args, **kwargs)

    monkeypatch.setattr(Trajectory, "run", counted)
    tiller.steer_many(model, PROMPTS, seeds=[0, 1], **settings(tmp_path, budget="steps=2"))
    assert rows == [4, 4, 4], "the unsteered pictures, then two rounds"


def test_each_reward_and_p_of_z_are_asked_once_a_round_for_all(
    model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[str, int]] = []
    noises: list[int] = []
    parts_scores, probability = RewardSum.parts_scores, guard.probability

    def counted(self: RewardSum, images: Any, prompts: Any) -> Any:
        scored.append((self.name, len(images)))
        return parts_scores(self, images, prompts)

    def weighed(z: Any) -> Any:
        noises.append(len(z))
        return probability(z)

    monkeypatch.setattr(RewardSum, "parts_scores", counted)
    monkeypatch.setattr(guard, "probability", weighed)
    tiller.steer_many(model, PROMPTS, seeds=[0, 1], **settings(tmp_path, budget="steps=1"))
    unsteered = [("darkness", 4), ("brightness", 4)]
    assert scored == [*unsteered, ("brightness", 4), *unsteered], "after the search's own"
    assert noises == [4]


@pytest.mark.parametrize("bad", ["raises", "nan"])
def test_a_reward_that_fails_for_one_prompt_ends_its_run_alone(
    bad: str, model: FrozenModel, tmp_path: Path
) -> None:
    rounds: dict[Path, int] = {}

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = images.mean(dim=(1, 2, 3))
        if rounds and "a blue dog" in prompts:
            if bad == "raises":
                raise ValueError("no dogs")
            return torch.where(torch.tensor([p == "a blue dog" for p in prompts]), np.nan, scores)
        return scores

    def seen(progress: tiller.api.Progress) -> None:
        rounds[progress.run_dir] = progress.step.index

    prompts = [*PROMPTS, "a green owl"]
    with pytest.raises(RewardError, match=r"(no dogs|finite).*'a blue dog'.*1 of 3") as caught:
        tiller.steer_many(model, prompts, on_step=seen, **settings(tmp_path, reward=reward))
    assert list(rounds.values()) == [3, 1, 3]
    folders = dict(zip(prompts, rounds, strict=True))
    failed = folders.pop("a blue dog")
    assert caught.value.__notes__ == [f"run: {failed}"]
    assert '"kind": "error"' in (failed / "journal.jsonl").read_text()
    assert tiller.open_run(failed).cost.steps == 1
    for folder in folders.values():
        assert '"kind": "error"' not in (folder / "journal.jsonl").read_text()
        assert tiller.open_run(folder).stopped == "budget: steps=3"
    rounds.clear()
    again = tiller.resume(failed, model=model, reward=lambda images: images.mean(dim=(1, 2, 3)))
    assert again.cost.steps == 3


def test_a_reward_that_fails_before_the_first_round_ends_its_run_alone(
    model: FrozenModel, tmp_path: Path
) -> None:
    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if "a green owl" in prompts:
            raise ValueError("no owls")
        return images.mean(dim=(1, 2, 3))

    with pytest.raises(RewardError, match=r"no owls.*'a green owl' and seed 0; 1 of 2 runs failed"):
        tiller.steer_many(model, ["a hen", "a green owl"], **settings(tmp_path, reward=reward))
    ended = [read_run(folder).stopped for folder in tmp_path.iterdir()]
    assert sorted(ended, key=str) == [None, "budget: steps=3"]


def test_prompts_of_several_lengths_are_drawn_together_within_affixes(
    model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = Trajectory.run

    def counted(self: Trajectory, noise: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(noise))
        return run(self, noise, *args, **kwargs)

    monkeypatch.setattr(Trajectory, "run", counted)
    small = {"method": "ipgo", "prefix": 1, "suffix": 1, "rank": 2, "budget": "steps=2"}
    tiller.steer_many(model, ["a fox", "a hen", "a pike"], **settings(tmp_path, **small))
    assert rows == [3, 3, 3], "the unsteered pictures, then twice all three"


def test_called_again_it_continues_and_repeats_nothing(model: FrozenModel, tmp_path: Path) -> None:
    class Stop(Exception):
        """Where a crash would be."""

    def crash(progress: tiller.api.Progress) -> None:
        if progress.step.index == 2:
            raise Stop

    with pytest.raises(Stop):
        tiller.steer_many(model, PROMPTS, on_step=crash, **settings(tmp_path))
    begun = sorted(path.name for path in tmp_path.iterdir())
    assert len(begun) == 2
    results = tiller.steer_many(model, PROMPTS, **settings(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == begun
    assert [result.stopped for result in results] == ["budget: steps=3"] * 2
    rounds: list[int] = []
    again = tiller.steer_many(
        model, PROMPTS, on_step=lambda p: rounds.append(p.step.index), **settings(tmp_path)
    )
    assert rounds == []
    assert [r.run_dir for r in again] == [r.run_dir for r in results]


def test_what_is_asked_for_twice_is_one_run(model: FrozenModel, tmp_path: Path) -> None:
    twice = tiller.steer_many(
        model, ["a red cat", "a blue dog", "a red cat"], seeds=[1, 1], **settings(tmp_path)
    )
    assert [r.prompt for r in twice] == ["a red cat"] * 2 + ["a blue dog"] * 2 + ["a red cat"] * 2
    assert len({result.run_dir for result in twice}) == len(list(tmp_path.iterdir())) == 2
    again = tiller.steer_many(model, ["a red cat"] * 2, seeds=[1], **settings(tmp_path))
    assert [result.run_dir for result in again] == [twice[0].run_dir] * 2


def test_seeds_may_be_numpys_and_prompts_any_iterable(model: FrozenModel, tmp_path: Path) -> None:
    results = tiller.steer_many(
        model, iter(PROMPTS), seeds=np.arange(1), **settings(tmp_path, budget="steps=1")
    )
    assert [result.prompt for result in results] == PROMPTS
    assert json.loads((results[0].run_dir / "run.json").read_text())["spec"]["seed"] == 0


def test_one_bad_prompt_refuses_all_before_anything_is_written(
    model: FrozenModel, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="at least one word"):
        tiller.steer_many(model, ["a cat", " "], **settings(tmp_path))
    with pytest.raises(InvalidInput, match="prompts and seeds"):
        tiller.steer_many(model, [], **settings(tmp_path))
    with pytest.raises(InvalidInput, match=r"write \['a red cat'\]"):
        tiller.steer_many(model, "a red cat", **settings(tmp_path))
    with pytest.raises(InvalidInput, match=r"write range\(3\)"):
        tiller.steer_many(model, PROMPTS, seeds=3, **settings(tmp_path))
    assert not list(tmp_path.iterdir())


def test_every_run_can_be_read_by_itself(model: FrozenModel, tmp_path: Path) -> None:
    for result in tiller.steer_many(model, PROMPTS, **settings(tmp_path)):
        spec = json.loads((result.run_dir / "run.json").read_text())["spec"]
        assert spec["prompt"] == result.prompt
        assert tiller.open_run(result.run_dir).best.scores == result.best.scores


@pytest.mark.parametrize("method", [{"method": "ipgo_dno"}, {"method": "ipgo", "popsize": 3}])
def test_black_boxes_of_prompts_of_several_lengths_are_compared_together(
    method: dict[str, Any], model: FrozenModel, tmp_path: Path
) -> None:
    small = {"prefix": 4, "suffix": 4, "rank": 2, "reward": "jpeg", "budget": "steps=2"}
    prompts = ["a", "a long red cat"]
    results = tiller.steer_many(model, prompts, **settings(tmp_path / "a", **small, **method))
    alone = [
        tiller.steer(model, one, **settings(tmp_path / "b", **small, **method)) for one in prompts
    ]
    for a, b in zip(results, alone, strict=True):
        assert a.best.scores == pytest.approx(b.best.scores, abs=1e-4)


def test_many_runs_get_the_open_files_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, given = (300, 100_000), []
    monkeypatch.setattr("resource.getrlimit", lambda which: limits)
    monkeypatch.setattr("resource.setrlimit", lambda which, both: given.append(both))
    allow_files(4)
    assert given == []
    allow_files(1000)
    assert given == [(1256, 100_000)]
    with pytest.raises(
        InvalidInput, match="need 200,256 open files, and the system allows 100,000"
    ):
        allow_files(200_000)
