"""`ddpo`: log densities, ratios of one, a reward that rises without a gradient of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.rng import Draw, Stream
from tiller.core.search import search_phases
from tiller.methods._training import Lesson, Lessons
from tiller.methods.base import Task
from tiller.methods.ddpo import Ddpo
from tiller.models.loader import load_model
from tiller.models.trajectory import Gradient, Trajectory
from tiller.rewards import make_reward
from tiller.rewards.base import Reward
from tiller.solvers.policy_gradient import PolicyGradient
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.testing.method_conformance import check_method

SMALL = Ddpo(num_inference_steps=3, batch=3)


@dataclass(frozen=True)
class Hidden(Reward):
    """Brightness as numbers alone, with a bonus for prompts that say "bright"."""

    bonus: float = 0.0

    differentiable = False

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert not images.requires_grad
        bonus = torch.tensor([self.bonus * ("bright" in prompt) for prompt in prompts])
        return images.mean((1, 2, 3)) + bonus


@pytest.fixture(scope="module")
def task() -> Task:
    model = load_model(fake_pipeline(set_alpha_to_one=True))
    return Task(model, "a red cat", "", make_reward("brightness"))


def problem(method: Ddpo, task: Task) -> Any:
    (phase,) = method.build(task)
    return phase.build(None)


@pytest.mark.parametrize(
    "sampler", [{}, {"eta": 0.4}, {"scheduler": "euler_a"}, {"scheduler": "lcm"}], ids=str
)
def test_the_density_is_that_of_the_noise_that_was_added(
    task: Task, sampler: dict[str, Any]
) -> None:
    """log p(x_{t-1} | x_t) = sum log N(noise; 0, 1) - log s, whatever the weights drew."""
    found = problem(replace(SMALL, **sampler), task)
    space, objective = found.space, found.objective
    x = space.decode(space.sample(1, Stream(0)) + 0.02)
    rollout = objective.rollout(x, Draw(0, 5))
    trajectory = objective.pictures.trajectory
    noise = objective.lessons.at(Draw(0, 5), trajectory).noise
    assert objective.decisions == 2  # the last of three steps adds no noise
    for step, index in enumerate(trajectory.noisy_steps):
        states = rollout.states[:, index]
        _, s = trajectory.transition(index, states, task.conditioning())
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise[:, 1 + step])
        expected = (normal - torch.log(torch.tensor(s))).flatten(1).sum(dim=1)
        found_log = objective.log_prob(x, rollout.states, rollout.group, step)
        torch.testing.assert_close(found_log, expected, rtol=1e-3, atol=0.3)


def test_other_weights_make_what_was_drawn_less_likely(task: Task) -> None:
    """On average over the policy's own draws, by Gibbs' inequality."""
    found = problem(replace(SMALL, batch=16), task)
    space, objective = found.space, found.objective
    z = space.sample(1, Stream(0))
    x, other = space.decode(z), space.decode(z + 0.1)
    rollout = objective.rollout(x, Draw(0, 0))
    for step in range(objective.decisions):
        own, theirs = (
            objective.log_prob(one, rollout.states, rollout.group, step) for one in (x, other)
        )
        assert float((own - theirs).mean()) > 0


def test_the_ratios_of_the_first_round_are_exactly_one(task: Task) -> None:
    steps = search_phases(replace(SMALL, updates=3).build(task), Budget(steps=1))
    first = next(steps)
    objective, space = first.problem.objective, first.problem.space
    x = space.decode(first.z)
    memory = objective.memory
    numbers = memory.states[0, 0].numel()
    for step in range(objective.decisions):
        now = objective.log_prob(x, memory.states, memory.group, step) / numbers
        ratio = torch.exp(now - memory.log_prob[step])
        assert ratio.tolist() == [1.0] * 3


def test_chains_drawn_a_few_at_a_time_are_the_same(task: Task) -> None:
    found = []
    for at_once in (1, 2, 8):
        made = problem(replace(SMALL, at_once=at_once), task)
        z = made.space.sample(1, Stream(0)) + 0.02
        rollout = made.objective.rollout(made.space.decode(z), Draw(0, 0))
        estimate = made.solver.estimator(made.space, made.objective, z, Draw(0, 0))
        found.append((rollout.states, rollout.reward, estimate.grad))
    for other in found[1:]:
        for mine, first in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, first, rtol=1e-3, atol=1e-4)


class OneStart:
    """Lessons whose chains all begin at one x_T: the reward then varies by the decisions alone."""

    def __init__(self, lessons: Lessons) -> None:
        self.lessons, self.prompts = lessons, lessons.prompts
        self.conditioning, self.texts = lessons.conditioning, lessons.texts

    def at(self, draw: Draw, trajectory: Trajectory) -> Lesson:
        lesson = self.lessons.at(draw, trajectory)
        noise = lesson.noise.clone()
        noise[:, 0] = trajectory.sample_noise(torch.Generator().manual_seed(0))[0]
        return Lesson(noise, lesson.prompt)


def test_the_policy_gradient_is_the_gradient_through_the_sampler(task: Task) -> None:
    """Both estimate d E[r] / dw: one from the values of a black box, one by back-propagation.

    Compared along the latter, where 512 chains leave the former an error of about a quarter.
    """
    method = replace(
        SMALL, num_inference_steps=4, guidance_scale=1.0, weights="all", batch=512, at_once=128
    )
    hidden = problem(method, replace(task, reward=make_reward(Hidden())))
    space, objective = hidden.space, hidden.objective
    objective.lessons = OneStart(objective.lessons)
    z = space.sample(1, Stream(0))
    uncut = PolicyGradient(buffer=512, clip_advantage=100.0)  # A = (r - mean) / deviation
    estimated = uncut(space, objective, z, Draw(0, 0)).grad[0]
    deviation = float(objective.memory.rewards.std())
    scale = deviation * objective.memory.states[0, 0].numel() * objective.decisions

    pictures, lesson = (
        objective.pictures,
        objective.lessons.at(Draw(1, 0), objective.pictures.trajectory),
    )
    leaf = z[0].clone().requires_grad_()
    rows = slice(0, 64)
    words = objective.lessons.conditioning.index(lesson.prompt[rows])
    latents = pictures.latents(leaf, lesson.noise[rows], words, Gradient.full())
    reward = task.reward(task.model.decode(latents), [""] * 64).mean()
    (exact,) = torch.autograd.grad(reward, leaf)
    along = exact / exact.norm()
    assert float(estimated @ along) * scale == pytest.approx(float(exact.norm()), rel=0.5)


def test_a_round_is_billed_for_what_it_draws_and_learns(task: Task) -> None:
    """Own picture 3 x 2, chains 3 x 3 x 2 every other round, updates 2 x 3 x 2 and as many back."""
    steps = list(search_phases(SMALL.build(task), Budget(steps=4)))
    assert [step.cost.forwards for step in steps] == [36, 54, 90, 108]
    assert [step.cost.backwards for step in steps] == [12, 24, 36, 48]
    assert [step.cost.images for step in steps] == [4, 5, 9, 10]
    assert [step.cost.reward_calls for step in steps] == [4, 5, 9, 10]


def test_prompts_are_compared_within_themselves(task: Task, tmp_path: Path) -> None:
    """Two prompts whose rewards are far apart: the advantage does not say which one is easier."""
    path = tmp_path / "prompts.txt"
    path.write_text("a dark cat\na bright cat\n")
    hidden = replace(task, reward=make_reward(Hidden(bonus=100.0)))
    method = replace(SMALL, prompts=str(path), batch=8, least=4, updates=2)
    first = next(search_phases(method.build(hidden), Budget(steps=1)))
    memory = first.problem.objective.memory
    assert memory.group.bincount().tolist() == [4, 4]
    assert memory.seen.tolist() == [4, 4]
    for group in (0, 1):
        mine = memory.advantage[memory.group == group]
        assert float(mine.mean()) == pytest.approx(0, abs=1e-6)
        assert float(mine.abs().max()) > 0.1


@pytest.mark.parametrize(
    "settings",
    [{"updates": 3}, {"weights": "all", "updates": 1}, {"scheduler": "euler_a", "at_once": 2}],
    ids=["updates", "all weights", "ancestral"],
)
def test_every_variant_keeps_every_promise(settings: dict[str, Any], task: Task) -> None:
    method = replace(SMALL, **settings)
    check_method(method, replace(task, reward=make_reward("jpeg")), budget=Budget(steps=3))


def test_all_weights_say_what_they_weigh() -> None:
    assert len(SMALL.notes()) == 1
    assert "five float32 copies" in replace(SMALL, weights="all").notes()[1]


def test_settings_that_teach_little_are_a_word_worth() -> None:
    assert "until its prompt has had least=16 rewards" in replace(SMALL, batch=1).notes()[1]
    assert "set buffer=32 or more" in replace(SMALL, buffer=2).notes()[1]
    assert "set buffer=64 or more" in replace(SMALL, batch=64).notes()[1]
    assert len(replace(SMALL, batch=1, buffer=1).notes()) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 0.0}, "steps with a density"),
        ({"scheduler": "euler"}, "steps with a density"),
        ({"eta": 2.0}, "eta must lie in"),
        ({"weights": "some"}, "weights must be lora or all"),
        ({"batch": 0}, "batch and at_once"),
        ({"batch": 1_000_000}, r"batch must lie in \[1, 1024\]"),
        ({"at_once": 0}, "batch and at_once"),
        ({"num_inference_steps": 1}, "set num_inference_steps=2"),
        ({"updates": 0}, "updates"),
        ({"clip_range": 0.0}, "clip_range"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_settings_are_refused(task: Task, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        replace(SMALL, **settings).build(task)
