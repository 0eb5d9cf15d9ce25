"""`dno`: the regulariser and the estimators that its fields ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.evaluation import Autograd
from tiller.core.rng import Stream
from tiller.core.search import search_phases
from tiller.methods.base import Task
from tiller.methods.dno import Dno
from tiller.models.loader import load_model
from tiller.rewards import make_reward
from tiller.solvers.estimators import Hybrid1, Hybrid2, ZerothOrder
from tiller.spaces.probability import Prno
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.testing.method_conformance import check_method

SMALL = Dno(num_inference_steps=3, b=4)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(load_model(fake_pipeline()), "a red cat", "", make_reward("brightness"))


@pytest.fixture(scope="module")
def black_box(task: Task) -> Task:
    return replace(task, reward=make_reward("jpeg"))


def problem(method: Dno, task: Task) -> Any:
    (phase,) = method.build(task)
    return phase.build(None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (Autograd, Hybrid2())),
        ({"estimator": "hybrid2"}, (Hybrid2(), Hybrid2())),
        ({"estimator": "hybrid1", "q": 3}, (Hybrid1(q=3), Hybrid1(q=3))),
        ({"estimator": "zeroth_order", "mu": 0.5}, (ZerothOrder(mu=0.5), ZerothOrder(mu=0.5))),
    ],
)
def test_the_estimator_fits_the_reward(
    settings: dict[str, Any], expected: tuple[Any, Any], task: Task, black_box: Task
) -> None:
    for each, wanted in zip((task, black_box), expected, strict=True):
        found = problem(replace(SMALL, **settings), each).solver.estimator
        assert isinstance(found, wanted) if isinstance(wanted, type) else found == wanted


def test_the_regulariser_is_the_papers(task: Task) -> None:
    assert problem(SMALL, task).objective.regularisers == ()
    made = problem(Dno(num_inference_steps=3, gamma=0.1), task).objective.regularisers
    assert made == (Prno(k=2, b=100, weight=0.1, device=task.model.device),)


@pytest.mark.parametrize("estimator", ["zeroth_order", "hybrid1", "hybrid2"])
def test_a_black_box_keeps_every_promise_of_a_method(estimator: str, black_box: Task) -> None:
    method = replace(SMALL, estimator=estimator, q=2, gamma=0.1)
    check_method(method, black_box, budget=Budget(steps=3))


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_decay": 0.01},
        {"trust": 1.0, "gamma": 0.1},
        {"population": 4, "halve_every": 1},
        {"warm_start": 3, "eta": 0.0},
        {"gamma": 1.0, "own_order": True},
        {"gamma": 1.0, "as_stored": True, "k": 4},
        {"gamma": 0.1, "k": 3, "eta": 0.5, "clip_norm": None},
        {"gradient": "last(2)"},
        {"rule": "normalized", "gamma": 0.1, "warm_start": 2},
    ],
    ids=str,
)
def test_every_variant_keeps_every_promise(settings: dict[str, Any], task: Task) -> None:
    check_method(replace(SMALL, **settings), task, budget=Budget(steps=4))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_last_steps_noises_alone_are_optimized(gamma: float, task: Task) -> None:
    method = replace(SMALL, gradient="last(2)", gamma=gamma, own_order=gamma > 0)
    steps = list(search_phases(method.build(task), Budget(steps=3)))
    reached = [index >= 1 for index in problem(SMALL, task).objective.trajectory.noisy_steps]
    moved = (steps[-1].z != steps[0].z).flatten(2).any(dim=2)[0].tolist()
    assert moved == [False, *reached]
    with pytest.raises(Incompatible, match="reaches none of the noise"):
        replace(SMALL, gradient="last(2)", eta=0.0).build(task)


def test_a_warm_start_leaves_half_of_the_budget(task: Task) -> None:
    steps = search_phases(replace(SMALL, warm_start=10**9).build(task), Budget(steps=6))
    assert [step.phase for step in steps] == ["warm start"] * 3 + ["ascent"] * 3


def test_trust_keeps_each_slot_at_the_norm_of_noise(task: Task) -> None:
    def distance(trust: float | None) -> float:
        *_, last = search_phases(replace(SMALL, lr=0.5, trust=trust).build(task), Budget(steps=6))
        norms = last.z.flatten(2).norm(dim=2)
        return float((norms - last.z[0, 0].numel() ** 0.5).abs().max())

    assert distance(0.5) <= 0.5 + 1e-4
    assert distance(None) > 1.0


def test_a_thinned_population_keeps_its_better_half(task: Task) -> None:
    method = replace(SMALL, population=4, halve_every=2, lr=1e-9)
    steps = list(search_phases(method.build(task), Budget(steps=6)))
    assert [len(step.z) for step in steps] == [4, 4, 2, 2, 1, 1]
    best = int(steps[0].evaluation.score.argmax())
    torch.testing.assert_close(steps[-1].z[0], steps[0].z[best], atol=1e-6, rtol=0)


def test_a_reward_as_a_black_box_rises_too(task: Task) -> None:
    """The estimates climb what the gradient climbs."""
    method = replace(SMALL, estimator="hybrid2", lr=0.05)
    steps = list(search_phases(method.build(task), Budget(steps=8)))
    assert steps[-1].best.score > float(steps[0].evaluation.score[0]) + 1e-4


def test_the_regulariser_holds_the_noise_back(task: Task) -> None:
    def penalty(gamma: float) -> float:
        method = replace(SMALL, lr=0.3, gamma=gamma)
        *_, last = search_phases(method.build(task), Budget(steps=15))
        return float(Prno(b=200).value(last.z.double(), draw())[0])

    def draw() -> Any:
        from tiller.core.rng import Draw

        return Draw(9, 9)

    assert penalty(1.0) < 0.5 * penalty(0.0)


def test_perturbed_pictures_stay_pictures(task: Task) -> None:
    objective = problem(SMALL, task).objective
    y = torch.tensor([-0.1, 0.5, 1.1])
    assert objective.nearest(y).tolist() == [0.0, 0.5, 1.0]
    assert objective.render_differentiable
    assert not SMALL.pictures(task).render_differentiable


def test_the_penalty_counts_in_the_choice_of_the_warm_start(task: Task) -> None:
    method = replace(SMALL, warm_start=3, gamma=5.0)
    first, *_ = search_phases(method.build(task), Budget(steps=2))
    z = SMALL.noise(task).sample(3, Stream(0))
    assert torch.equal(first.z, z)
    assert bool((first.evaluation.penalty >= 0).all())
    score = first.evaluation.reward - first.evaluation.penalty
    assert first.evaluation.best == int(score.argmax())


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": -0.1},
        {"gamma": float("inf")},
        {"b": 0},
        {"k": 0},
        {"estimator": "magic"},
        {"mu": 0.1},
        {"estimator": "hybrid1", "mu": -1.0},
        {"trust": -1.0},
        {"population": 0},
        {"halve_every": -1},
        {"weight_decay": -0.1},
        {"rule": "magic"},
        {"rule": "normalized", "weight_decay": 0.1},
        {"warm_start": 2, "population": 2},
        {"warm_start": -1},
        {"population": 100_000},
        {"halve_every": 2},
        {"own_order": True},
        {"as_stored": True},
        {"gamma": 1.0, "k": 1_000_000},
        {"gamma": 1.0, "b": 10**11},
        {"gradient": "shortcut(1, 1)"},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], task: Task) -> None:
    with pytest.raises(InvalidInput):
        replace(SMALL, **settings).build(task)
