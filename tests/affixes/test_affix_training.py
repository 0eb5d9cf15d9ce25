"""Training one affix on many prompts: minibatches, gradients, resume, unseen prompts."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiller
from tiller.affixes.evaluation import Comparison, sheet
from tiller.affixes.objective import BatchPictures, ByParts, PromptSet
from tiller.affixes.plan import Plan, split
from tiller.affixes.training import Training, resume_training, train
from tiller.core.budget import Budget
from tiller.core.errors import (
    Incompatible,
    InvalidInput,
    MissingDependency,
    RunError,
)
from tiller.core.evaluation import Autograd, evaluate
from tiller.core.rng import Draw, Stream
from tiller.core.search import Step
from tiller.methods._affix_files import read_affix
from tiller.models.base import FrozenModel
from tiller.models.trajectory import Gradient, SamplerSettings, Trajectory
from tiller.rewards import make_reward
from tiller.runs.store import RunStore
from tiller.runs.templating import changed
from tiller.solvers.cma import CmaEs
from tiller.spaces.affixes import Affixes
from tiller.testing.conformance import check_resume
from tiller.testing.fake_pipeline import save_fake_pipeline

# Python 3.12 warns that forking is unsafe with threads; these children use none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

PROMPTS = ["a red cat", "a dog", "an owl", "a blue dog", "a pig"]
UNSEEN = ["a fox", "a green hen"]
SETTINGS: dict[str, Any] = {
    "num_inference_steps": 2,
    "prefix": 2,
    "suffix": 1,
    "rank": 3,
    "lr": 0.02,
}
PLAN = Plan(PROMPTS, UNSEEN, reward="brightness", batch=2, epochs=2, seed=7, settings=SETTINGS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    return tiller.load_model(save_fake_pipeline(tmp_path_factory.mktemp("fake")))


@pytest.fixture(scope="module")
def objective(model: FrozenModel) -> BatchPictures:
    return made(model)


def made(model: FrozenModel, **changes: Any) -> BatchPictures:
    path = Trajectory(model, SamplerSettings(2, 2.0, height=16, width=16))
    usual: dict[str, Any] = {"batch": 3, "gamma": 0.1, "gradient": Gradient.last(1)}
    prompts = PromptSet(model, PROMPTS, "dark")
    return BatchPictures(path, make_reward("brightness"), prompts, SPACE, **{**usual, **changes})


SPACE = Affixes(width=16, prefix=2, suffix=1, rank=3)


def test_every_prompt_comes_once_an_epoch_in_another_order(objective: BatchPictures) -> None:
    assert objective.rounds == 2
    epochs = []
    for epoch in range(3):
        rounds = [objective.chosen(Draw(7, 2 * epoch + place)) for place in range(2)]
        assert [len(chosen) for chosen in rounds] == [3, 2]
        epochs.append([*rounds[0], *rounds[1]])
        assert sorted(epochs[-1]) == list(range(5))
    assert epochs[0] != epochs[1] != epochs[2]
    assert objective.chosen(Draw(7, 3)) == objective.chosen(Draw(7, 3)), "a function of the round"


def test_the_score_is_the_mean_over_prompts_each_drawn_as_if_alone(
    objective: BatchPictures,
) -> None:
    """Whatever the other lengths beside it: what fills a shorter one up is not read."""
    draw = Draw(7, 0)
    affix = SPACE.decode(SPACE.sample(2, Stream(0)))
    score = objective.score(objective.render(affix, draw), draw)
    alone = []
    for i in objective.chosen(draw):
        told = objective.prompts.words(i).conditioning(affix)
        noise = objective.noise(i, draw).expand(2, -1, -1, -1, -1)
        picture = objective.trajectory.model.decode(objective.trajectory.run(noise, told))
        alone.append(objective.reward(picture, [PROMPTS[i]] * 2))
    assert torch.allclose(score, torch.stack(alone).mean(dim=0), atol=1e-6)


def test_noises_stay_with_their_prompts_unless_they_are_resampled(model: FrozenModel) -> None:
    kept, fresh = made(model), made(model, resample=True)
    assert torch.equal(kept.noise(1, Draw(7, 0)), kept.noise(1, Draw(7, 4)))
    assert not torch.equal(kept.noise(1, Draw(7, 0)), kept.noise(2, Draw(7, 0)))
    assert not torch.equal(fresh.noise(1, Draw(7, 0)), fresh.noise(1, Draw(7, 4)))


@pytest.mark.parametrize("masks", [True, False])
def test_the_gradient_by_parts_is_the_whole_batchs(
    masks: bool, objective: BatchPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one part behind a mask, or where the model takes none, one length a part."""
    monkeypatch.setattr(objective.trajectory.model, "masks_tokens", masks)
    z, draw = SPACE.sample(2, Stream(1)), Draw(7, 0)
    lengths = [
        {objective.prompts.words(objective.chosen(draw)[k]).length for k in places}
        for places in objective.parts(2, draw)
    ]
    assert [len(one) for one in lengths] == ([3] if masks else [1, 1, 1])
    whole, by_parts = (evaluate(SPACE, objective, z, draw, how) for how in (Autograd(), ByParts()))
    assert whole.grad is not None and by_parts.grad is not None  # noqa: PT018
    assert torch.allclose(whole.score, by_parts.score, atol=1e-6)
    assert torch.allclose(whole.grad, by_parts.grad, atol=1e-6)
    assert float(whole.grad.abs().max()) > 1e-5
    assert torch.allclose(whole.best_y, by_parts.best_y, atol=1e-5)


def test_little_memory_makes_smaller_parts_and_the_same_gradient(
    objective: BatchPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, draw = SPACE.sample(1, Stream(1)), Draw(7, 0)
    roomy = evaluate(SPACE, objective, z, draw, ByParts())
    monkeypatch.setattr(Trajectory, "room", lambda self, conditioning: 1)
    assert [len(places) for places in objective.parts(1, draw)] == [1, 1, 1]
    tight = evaluate(SPACE, objective, z, draw, ByParts())
    assert torch.allclose(roomy.grad, tight.grad, atol=1e-6)  # type: ignore[arg-type]


def test_conformity_is_over_the_rounds_prompts(objective: BatchPictures) -> None:
    (penalty,) = objective.regularisers
    z = SPACE.sample(1, Stream(0))
    values = [float(penalty.value(z, Draw(7, round_))) for round_ in (0, 1)]
    assert values[0] != values[1]


@pytest.mark.parametrize("reward", ["brightness", "jpeg"])
def test_a_training_resumes_at_every_step(reward: str, model: FrozenModel, tmp_path: Path) -> None:
    plan = replace(PLAN, reward=reward, epochs=1, unseen=(), settings={**SETTINGS, "rank": 2})
    train(model, plan, tmp_path / "a.safetensors", out=tmp_path)
    (folder,) = (path.parent for path in tmp_path.glob("*/run.json"))
    training = Training(RunStore.open(folder).spec, model, make_reward(reward))
    check_resume(training.phases(), Budget(steps=4), seed=7)


def test_a_training_that_crashes_goes_on_bit_by_bit(model: FrozenModel, tmp_path: Path) -> None:
    class Stop(Exception):
        """Where a crash would be."""

    def crash(step: Step) -> None:
        if step.index == 3:
            raise Stop

    straight = train(model, PLAN, tmp_path / "a.safetensors", out=tmp_path / "a")
    with pytest.raises(Stop):
        train(model, PLAN, tmp_path / "b.safetensors", out=tmp_path / "b", on_step=crash)
    assert not (tmp_path / "b.safetensors").exists()
    (folder,) = (path.parent for path in (tmp_path / "b").glob("*/run.json"))
    resumed = resume_training(folder, model=model)
    assert torch.equal(resumed.affix.prefix, straight.affix.prefix)
    assert torch.equal(resumed.affix.suffix, straight.affix.suffix)
    assert resumed.unseen == straight.unseen
    a, b = (read_affix(tmp_path / f"{name}.safetensors") for name in "ab")
    assert a.about.pop("run") != b.about.pop("run")
    assert a.about == b.about
    again = resume_training(folder, model=model)
    assert again.stopped == straight.stopped == "budget: steps=6"
    assert again.unseen == straight.unseen


def test_a_training_that_is_killed_goes_on_bit_by_bit(model: FrozenModel, tmp_path: Path) -> None:
    plan = replace(PLAN, epochs=4, unseen=())
    straight = train(model, plan, tmp_path / "a.safetensors", out=tmp_path / "a")

    def child() -> None:
        train(model, plan, tmp_path / "b.safetensors", out=tmp_path / "b")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    while not list((tmp_path / "b").glob("*/state.safetensors")):
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder,) = (path.parent for path in (tmp_path / "b").glob("*/run.json"))
    assert read_affix(tmp_path / "a.safetensors").about["model"] == model.source
    steps = [line for line in RunStore.open(folder).entries() if line["kind"] == "step"]
    assert 0 < len(steps) < 12, "the kill must hit a run under way"
    resumed = resume_training(folder, model=model)
    assert torch.equal(resumed.affix.prefix, straight.affix.prefix)
    a, b = (read_affix(tmp_path / f"{name}.safetensors") for name in "ab")
    assert a.about["digest"] == b.about["digest"]
    assert a.about | {"run": ""} == b.about | {"run": ""}


def test_training_raises_the_reward_of_prompts_that_it_never_saw(
    model: FrozenModel, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "gradient": "full", "lr": 0.1}
    plan = replace(PLAN, epochs=6, settings=settings, held_out="darkness")
    trained = train(model, plan, tmp_path / "a.safetensors", out=tmp_path)
    lines = [line for line in RunStore.open(trained.run_dir).entries() if line["kind"] == "step"]
    assert trained.unseen["brightness"].gain.value > 0
    assert trained.unseen["brightness"].gain.value == pytest.approx(
        -trained.unseen["darkness"].gain.value, abs=1e-5
    )
    assert lines[-1]["scores"]["brightness"] == trained.unseen["brightness"].after.value
    assert (trained.run_dir / "images" / "baseline.png").exists()
    assert (trained.run_dir / "images" / "best.png").exists()
    assert trained.cost.images == 30, "looking at unseen prompts is not charged"
    page = tiller.write_report(trained.run_dir).read_text()
    gain = trained.unseen["brightness"].gain
    assert f"{gain.value:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]" in page
    for text in ("One prefix and suffix for 5 prompts", "2 prompts that it did not", "darkness"):
        assert text in page
    assert page.count("data:image") == 2
    before, after = (
        line["each"]["brightness"]
        for line in RunStore.open(trained.run_dir).entries()
        if "each" in line
    )
    for text, low, high in zip(UNSEEN, before, after, strict=True):
        assert f"<td>{text}</td>" in page, "which picture is of which prompt"
        assert changed(high - low) in page
    assert "tiller steer" not in page, "no command made this one"
    assert 'src="http' not in page


def test_without_gradients_the_affix_is_the_middle_of_what_the_search_believes(
    model: FrozenModel, tmp_path: Path
) -> None:
    """Rounds score different prompts, so that the best of all is that of the easiest round."""
    steps: list[Step] = []
    settings = SETTINGS | {"solver": "cma", "popsize": 4}
    plan = replace(PLAN, reward="jpeg", held_out="clip", settings=settings)
    trained = train(model, plan, tmp_path / "a.safetensors", out=tmp_path, on_step=steps.append)
    solver, space = steps[-1].problem.solver, steps[-1].problem.space
    assert isinstance(solver, CmaEs)
    middle = space.decode(space.project(solver.mean(steps[-1].state.solver)))
    assert torch.equal(trained.affix.suffix, middle.suffix)
    assert not torch.equal(trained.affix.suffix, space.decode(steps[-1].best.z).suffix)


def test_a_sum_is_compared_by_its_parts_and_as_a_whole(model: FrozenModel, tmp_path: Path) -> None:
    plan = replace(PLAN, reward=["brightness", "darkness:0.5"], held_out=["clip", "jpeg"], epochs=1)
    trained = train(model, plan, tmp_path / "a.safetensors", out=tmp_path)
    whole = "brightness + 0.5 darkness"
    assert list(trained.unseen) == ["clip", "jpeg", "brightness", "darkness", whole]
    gain = {name: one.gain.value for name, one in trained.unseen.items()}
    half = 0.5 * gain["darkness"]
    assert gain[whole] == pytest.approx(gain["brightness"] + half, abs=1e-6)
    page = tiller.write_report(trained.run_dir).read_text()
    assert page.count(">held out<") == 2
    assert page.count(">optimized<") == 3


def test_without_gradients_as_many_are_drawn_at_once_as_memory_takes(
    model: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    run = Trajectory.run

    def counted(self: Trajectory, noise: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        drawn.append(len(noise))
        return run(self, noise, *args, **options)

    monkeypatch.setattr(Trajectory, "run", counted)
    objective = made(model)
    z, draw = SPACE.sample(7, Stream(0)), Draw(7, 0)
    roomy = evaluate(SPACE, objective, z, draw)
    assert drawn == [14, 7]
    drawn.clear()
    monkeypatch.setattr(Trajectory, "room", lambda self, conditioning: 3)
    tight = evaluate(SPACE, objective, z, draw)
    assert drawn == [3] * 7
    assert torch.allclose(roomy.score, tight.score, atol=1e-6)


def test_the_budget_may_end_it_earlier_and_pictures_are_counted(
    model: FrozenModel, tmp_path: Path
) -> None:
    trained = train(model, replace(PLAN, budget="images=5"), tmp_path / "a", out=tmp_path)
    assert trained.stopped == "budget: images=5"
    assert trained.cost.images in (5, 6)


def test_prompts_are_held_back_by_the_seed() -> None:
    texts = [f"prompt {i}" for i in range(10)]
    seen, unseen = split(texts, 0.3, seed=1)
    assert len(unseen) == 3
    assert sorted(seen + unseen) == sorted(texts)
    assert split(texts, 0.3, seed=1) == (seen, unseen)
    assert split(texts, 0.3, seed=2) != (seen, unseen)
    assert split(texts, 0.0, seed=1) == (texts, [])
    assert split(texts, 0.3, seed=1 + 2**64) == (seen, unseen), "any whole number is a seed"
    twice = [*texts, *texts]
    seen_twice, unseen_once = split(twice, 0.3, seed=1)
    assert seen_twice == [*seen, *seen]
    assert unseen_once == unseen, "what is held back is learned from nowhere"
    for share in (1.0, -0.1):
        with pytest.raises(InvalidInput, match="share of prompts"):
            split(texts, share, seed=0)


def test_comparisons_are_paired() -> None:
    found = Comparison.of([0.0, 1.0, 2.0, 3.0], [0.5, 1.5, 2.5, 3.5])
    assert found.gain.low == found.gain.high == pytest.approx(0.5)
    assert found.before.low < found.before.value < found.before.high
    assert found.wins.value == 1
    assert json.loads(json.dumps(found.plain()))["gain"]["value"] == pytest.approx(0.5)


def test_a_sheet_of_pictures_has_rows_of_four() -> None:
    assert list(sheet(torch.zeros(6, 3, 2, 5)).shape) == [1, 3, 4, 20]
    assert list(sheet(torch.zeros(2, 3, 2, 5)).shape) == [1, 3, 2, 10]
    assert float(sheet(torch.zeros(5, 3, 2, 2))[0, :, 2:, 2:].min()) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": []}, "expected prompts"),
        ({"batch": 0}, "batch >= 1"),
        ({"epochs": 0}, "epochs >= 1"),
        ({"settings": {"learning_rate": 1}}, "unknown field"),
        ({"settings": {"affix": "x.safetensors"}}, "trained on plain prompts"),
        ({"settings": {"solver": "adam"}}, "solver must be one of"),
        ({"budget": "pictures=3"}, "expected a budget"),
        ({"prompts": "cat"}, "a list of texts as prompts"),
        ({"unseen": ["a fox", " a dog "]}, "'a dog' is among both"),
        ({"held_out": ["clip", "brightness"]}, "brightness cannot be held out"),
        ({"settings": {"patience": 3}}, "looked at when the training is over, got patience=3"),
        ({"settings": {"stop_below": 0.1}}, "moves no noise"),
        ({"settings": {"shrink": 1.0}}, "as long as asked"),
        ({"settings": {"popsize": 3}}, "belongs to cma and bayes"),
        ({"reward": "jpeg", "settings": {"form": "plain"}}, "got form='plain'"),
        ({"settings": {"solver": "bayes", "popsize": 0}}, "popsize must lie in"),
        ({"settings": {"solver": "cma", "popsize": 100_000}}, "popsize must lie in"),
    ],
    ids=[
        "prompts", "batch", "epochs", "field", "affix", "solver", "budget", "text", "overlap",
        "held-out", "patience", "P(z)", "shrink", "popsize", "form", "none a round", "too many",
    ],
)  # fmt: skip
def test_a_bad_plan_is_refused_before_there_is_a_folder(
    changes: dict[str, Any],
    says: str,
    model: FrozenModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InvalidInput, match=says):
        train(model, replace(PLAN, **changes), tmp_path / "a", out=tmp_path)
    plan = replace(PLAN, reward="jpeg", settings={**SETTINGS, "solver": "gradient"})
    with pytest.raises(Incompatible, match="got jpeg; leave solver out, or set solver=cma"):
        train(model, plan, tmp_path / "a", out=tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    plan = replace(PLAN, reward="jpeg", settings={**SETTINGS, "solver": "bayes"})
    with pytest.raises(MissingDependency, match=r"--set solver=cma"):
        train(model, plan, tmp_path / "a", out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_runs_and_other_weights_are_refused(model: FrozenModel, tmp_path: Path) -> None:
    with RunStore.create(tmp_path, {"kind": "steer"}, "raw") as store:
        pass
    with pytest.raises(RunError, match="no training of an affix"):
        resume_training(store.path)
    trained = train(model, replace(PLAN, epochs=1), tmp_path / "a", out=tmp_path)
    journal = (trained.run_dir / "journal.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"learned an affix; continue it with .*resume_training"):
        tiller.resume(trained.run_dir, model=model)
    assert (trained.run_dir / "journal.jsonl").read_bytes() == journal, "it is left as it was"
    other = tiller.load_model(save_fake_pipeline(tmp_path / "other", seed=1))
    with pytest.raises(RunError, match="other weights"):
        resume_training(trained.run_dir, model=other)
