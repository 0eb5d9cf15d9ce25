"""`reno`: Nesterov's ascent of the initial noise, its length held."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.rng import Draw
from tiller.core.search import search_phases
from tiller.methods.base import Task
from tiller.methods.reno import Reno
from tiller.models.loader import load_model
from tiller.models.trajectory import Gradient
from tiller.rewards import make_reward
from tiller.spaces.norm import ChiNorm
from tiller.testing.fake_pipeline import fake_pipeline

SMALL = Reno(num_inference_steps=2)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(load_model(fake_pipeline()), "a red cat", "", make_reward("brightness"))


def test_the_run_is_torchs_nesterov_on_the_papers_loss(task: Task) -> None:
    """Reward less .01 (|x|^2 / 2 - (d - 1) ln|x|), clipped to .1, SGD with lr 5 and momentum .9."""
    steps = list(search_phases(SMALL.build(task), Budget(steps=4)))
    trajectory, words = SMALL.trajectory(task.model), task.conditioning()
    x = steps[0].z.clone().requires_grad_()
    d = x.numel()
    optimizer = torch.optim.SGD([x], lr=5.0, momentum=0.9, nesterov=True)
    for step in steps:
        assert torch.allclose(step.z, x.detach(), atol=1e-5)
        optimizer.zero_grad()
        latents = trajectory.run(x, words, gradient=Gradient.full())
        reward = task.reward(task.model.decode(latents), [task.prompt])
        norm = x.norm()
        loss = -reward.sum() + 0.01 * (0.5 * norm**2 - (d - 1) * norm.log())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([x], 0.1)
        optimizer.step()


def test_only_the_initial_noise_moves(task: Task) -> None:
    assert SMALL.noise(task).shape[0] == 1
    assert SMALL.sampler(task.model).eta == 0


def test_the_reward_rises_and_the_length_is_held(task: Task) -> None:
    def run(**settings: Any) -> Any:
        return list(search_phases(replace(SMALL, **settings).build(task), Budget(steps=8)))

    steps = run()
    assert steps[-1].best.reward > float(steps[0].evaluation.reward[0]) + 1e-4
    free = run(gamma=0.0)
    assert steps[0].problem.objective.regularisers == (ChiNorm(weight=0.01),)
    assert free[0].problem.objective.regularisers == ()
    radius = math.sqrt(steps[0].z.numel() - 1)

    def off(run: Any) -> float:
        return abs(float(run[-1].z.norm()) - radius)

    assert off(steps) < off(free)
    penalty = 0.01 * ChiNorm().value(steps[3].z, Draw(0, 3))
    assert torch.allclose(steps[3].evaluation.penalty, penalty.double())


def test_without_momentum_it_is_plain_ascent(task: Task) -> None:
    first, second = search_phases(replace(SMALL, momentum=0.0).build(task), Budget(steps=2))
    assert float((second.z - first.z).norm()) <= 5 * 0.1 * (1 + 1e-4)


def test_a_black_box_is_refused_before_anything_is_drawn(task: Task) -> None:
    with pytest.raises(
        Incompatible, match="reno needs a differentiable reward, and jpeg is not; choose dno"
    ):
        SMALL.build(replace(task, reward=make_reward("jpeg")))


@pytest.mark.parametrize(
    "settings", [{"gamma": -1.0}, {"gamma": math.inf}, {"lr": 0.0}, {"momentum": 1.0}]
)
def test_bad_settings_are_refused(settings: dict[str, Any], task: Task) -> None:
    with pytest.raises(InvalidInput):
        replace(SMALL, **settings).build(task)
