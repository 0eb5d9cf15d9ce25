"""Policy gradients against closed forms, and the clipped ratio's promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget, count
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.evaluation import evaluate
from tiller.core.rng import Draw
from tiller.core.search import Phase, Problem, search, search_phases
from tiller.core.space import Space
from tiller.solvers.gradient import Gradient
from tiller.solvers.policy_gradient import (
    Memory,
    Past,
    Policy,
    PolicyGradient,
    Rollout,
    clipped,
    standardised,
)
from tiller.testing.conformance import check_resume
from tiller.testing.fakes import FakeBox, FakeQuadratic

SIGMA, TARGET = 0.5, 0.7
RAW = PolicyGradient(standardise=False, clip_range=10.0)


class Walk(Policy[Tensor, Tensor]):
    """x_1 = a x_0 + s e_1, x_2 = b x_1 + s e_2, r = -(x_2 - c x_0)^2, x_0 ~ N(0, 1), z = (a, b).

    E[r] = -((ab - c)^2 + b^2 s^2 + s^2).
    """

    def __init__(self, chains: int = 64, at_once: int | None = None, groups: int = 1) -> None:
        self.chains, self.at_once, self.groups, self.decisions = chains, at_once, groups, 2
        self.space: Space[Tensor] = FakeBox((2,))
        self.drawn = 0

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        count(images=1)
        return x

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        return expected(y)

    def rollout(self, x: Tensor, draw: Draw) -> Rollout:
        self.drawn += 1
        generator = draw.generator("walk")
        noise = torch.randn(3, self.chains, generator=generator, dtype=torch.float64)
        states = chains_of(x[0], noise)
        reward = -((states[:, 2, 0] - TARGET * states[:, 0, 0]) ** 2)
        return Rollout(states, reward, torch.arange(self.chains) % self.groups)

    def log_prob(self, x: Tensor, states: Tensor, group: Tensor, step: int) -> Tensor:
        mean = x[0, step] * states[:, step]
        normal = torch.distributions.Normal(mean, SIGMA)
        return normal.log_prob(states[:, step + 1]).sum(dim=1)


def chains_of(z: Tensor, noise: Tensor) -> Tensor:
    first = noise[0]
    second = z[0] * first + SIGMA * noise[1]
    return torch.stack([first, second, z[1] * second + SIGMA * noise[2]], dim=1)[..., None]


def expected(z: Tensor) -> Tensor:
    a, b = z[:, 0], z[:, 1]
    return -((a * b - TARGET) ** 2 + b**2 * SIGMA**2 + SIGMA**2)


def test_the_expectation_is_the_gradient_of_the_expected_reward() -> None:
    """T D g of 200,000 chains, against the closed form and against differences of the mean reward
    of chains with the same noises."""
    walk, z = Walk(chains=200_000), torch.tensor([[0.9, -0.4]], dtype=torch.float64)
    found = RAW(walk.space, walk, z, Draw(0, 0)).grad[0] * walk.decisions
    leaf = z.clone().requires_grad_()
    (closed,) = torch.autograd.grad(expected(leaf).sum(), leaf)
    noise = torch.randn(3, walk.chains, generator=Draw(0, 0).generator("walk"), dtype=torch.float64)

    def mean_reward(z: Tensor) -> float:
        states = chains_of(z, noise)
        return float(-((states[:, 2, 0] - TARGET * states[:, 0, 0]) ** 2).mean())

    step = 1e-4 * torch.eye(2, dtype=torch.float64)
    differences = [(mean_reward(z[0] + h) - mean_reward(z[0] - h)) / 2e-4 for h in step]
    assert found.tolist() == pytest.approx(closed[0].tolist(), abs=0.03)
    assert found.tolist() == pytest.approx(differences, abs=0.03)


def test_the_ratio_is_exactly_one_in_the_first_update_of_a_drawing() -> None:
    """So the first gradient is REINFORCE's, whatever the clipping."""
    walk, z = Walk(), torch.tensor([[0.9, -0.4]], dtype=torch.float64)
    estimator = PolicyGradient(clip_range=1e-9)
    found = estimator(walk.space, walk, z, Draw(0, 0)).grad
    memory = walk.memory
    leaf = z.clone().requires_grad_()
    logs = [walk.log_prob(leaf, memory.states, memory.group, step) for step in range(2)]
    assert all(torch.equal(memory.log_prob[t], logs[t].detach()) for t in range(2))
    whole = sum((log * memory.advantage).mean() for log in logs) / 2
    (reinforce,) = torch.autograd.grad(whole, leaf)
    torch.testing.assert_close(found, reinforce, rtol=1e-10, atol=0)


def test_later_updates_weigh_the_same_chains_by_clipped_ratios() -> None:
    walk = Walk()
    estimator = PolicyGradient(clip_range=0.2, updates=3)
    old = torch.tensor([[0.9, -0.4]], dtype=torch.float64)
    new = old + 0.2
    estimator(walk.space, walk, old, Draw(0, 0))
    memory = walk.memory
    found = estimator(walk.space, walk, new, Draw(0, 1)).grad
    assert walk.drawn == 1
    leaf = new.clone().requires_grad_()
    whole = torch.zeros((), dtype=torch.float64)
    cut = 0
    for step in range(2):
        log = walk.log_prob(leaf, memory.states, memory.group, step)
        ratio = (log - memory.log_prob[step]).exp()
        for one, advantage in zip(ratio, memory.advantage, strict=True):
            beyond = one > 1.2 if advantage > 0 else one < 0.8
            cut += bool(beyond)
            whole = whole + (0.0 if beyond else one * advantage) / (2 * walk.chains)
    (by_hand,) = torch.autograd.grad(whole, leaf)
    assert 0 < cut < 2 * walk.chains
    torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=0)


def test_chains_serve_their_updates_and_are_forgotten() -> None:
    walk, z = Walk(), torch.tensor([[0.9, -0.4]], dtype=torch.float64)
    estimator = PolicyGradient(updates=2)
    held = []
    for number in range(4):
        estimator(walk.space, walk, z, Draw(0, number))
        held.append(set(walk.state()))
    assert walk.drawn == 2
    assert held[1] == held[3] == {"rewards", "seen"}
    assert held[0] == held[2] >= {"states", "log_prob", "advantage", "used"}
    assert walk.memory.seen.tolist() == [2 * walk.chains]


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_the_gradient_does_not_depend_on_how_chains_are_batched(at_once: int) -> None:
    z = torch.tensor([[0.9, -0.4]], dtype=torch.float64)
    grads = []
    for size in (None, at_once):
        walk = Walk(chains=7, at_once=size)
        estimator = PolicyGradient(clip_range=0.1)
        estimator(walk.space, walk, z, Draw(0, 0))
        grads.append(estimator(walk.space, walk, z + 0.1, Draw(0, 1)).grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


def test_the_expected_reward_rises_to_its_optimum() -> None:
    walk = Walk(chains=256)
    solver = Gradient(lr=0.03, estimator=PolicyGradient(clip_range=0.2, updates=4))
    steps = list(search(walk.space, walk, solver, Budget(steps=240)))
    a = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    best = max(float(expected(torch.stack([a, torch.full_like(a, b)], 1)).max())
               for b in torch.linspace(-2, 2, 401).tolist())  # fmt: skip
    assert float(steps[0].evaluation.score[0]) < best - 0.1
    assert steps[-1].best.score > best - 0.05


def test_a_run_resumes_in_the_middle_of_a_drawing() -> None:
    def phase() -> Phase:
        return Phase("walk", lambda _: problem())

    def problem() -> Problem:
        walk = Walk(chains=8, groups=2)
        solver = Gradient(lr=0.1, estimator=PolicyGradient(updates=3, least=2, buffer=5))
        return Problem(walk.space, walk, solver)

    assert len(check_resume([phase()], Budget(steps=7))) == 7
    first, *_ = search_phases([phase()], Budget(steps=1))
    assert set(first.state.objective) == {
        "states", "group", "advantage", "log_prob", "used", "rewards", "seen"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("now", "advantage", "gain", "slope"),
    [
        (0.0, 2.0, 2.0, 2.0),  # at the old density
        (0.05, 2.0, 2 * 1.0512711, 2 * 1.0512711),  # inside
        (0.5, 2.0, 2 * 1.1, 0.0),  # likelier than is fair, and good: no more
        (0.5, -2.0, -2 * 1.6487213, -2 * 1.6487213),  # likelier, and bad: all the way back
        (-0.5, 2.0, 2 * 0.6065307, 2 * 0.6065307),  # less likely, and good: likewise
        (-0.5, -2.0, -2 * 0.9, 0.0),  # less likely than is fair, and bad: no less
    ],
)
def test_the_clipped_gain_and_its_slope(
    now: float, advantage: float, gain: float, slope: float
) -> None:
    leaf = torch.tensor([now], dtype=torch.float64, requires_grad=True)
    old, worth = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage]).double()
    found = clipped(leaf, old, worth, 0.1)
    (grad,) = torch.autograd.grad(found.sum(), leaf)
    assert found.item() == pytest.approx(gain)
    assert grad.item() == pytest.approx(slope)


def test_advantages_are_within_a_prompt_once_it_is_known() -> None:
    """A round's statistics first; then each prompt's own latest rewards, the oldest forgotten."""
    reward = torch.tensor([1.0, 2.0, 30.0, 50.0]).double()
    group = torch.tensor([0, 0, 1, 1])
    advantage, past = standardised(reward, group, Past.empty(2, 3), least=4)
    expected = (reward - reward.mean()) / reward.std(correction=0)
    assert advantage.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    advantage, past = standardised(reward + 1, group, past, least=4)
    latest = torch.tensor([2.0, 2.0, 3.0]).double()
    assert past.of(0).tolist() == latest.tolist()
    wanted = (reward[:2] + 1 - latest.mean()) / latest.std(correction=0)
    assert advantage[:2].tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert past.seen.tolist() == [4, 4]


def test_equal_rewards_teach_nothing() -> None:
    reward, group = torch.full((4,), 3.0).double(), torch.zeros(4).long()
    advantage, _ = standardised(reward, group, Past.empty(1, 8), least=2)
    assert advantage.tolist() == [0.0] * 4


def test_a_far_off_reward_is_cut() -> None:
    walk = Walk(chains=64)
    estimator = PolicyGradient(clip_advantage=0.5)
    estimator(walk.space, walk, torch.tensor([[0.9, -0.4]]).double(), Draw(0, 0))
    assert float(walk.memory.advantage.abs().max()) == 0.5


def test_only_one_candidate_of_a_policy_is_trained() -> None:
    walk, quadratic = Walk(), FakeQuadratic(dimension=2)
    two = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(Incompatible, match="2 of Walk"):
        evaluate(walk.space, walk, two, Draw(0, 0), PolicyGradient())
    with pytest.raises(Incompatible, match="1 of FakeQuadratic"):
        evaluate(quadratic.space, quadratic, two[:1], Draw(0, 0), PolicyGradient())


def test_a_fresh_policy_has_no_memory() -> None:
    assert Walk().memory == Memory()
    walk = Walk()
    RAW(walk.space, walk, torch.zeros(1, 2, dtype=torch.float64), Draw(0, 0))
    walk.load_state({})
    assert walk.memory == Memory()


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_range": 0.0},
        {"clip_range": float("inf")},
        {"clip_advantage": -1.0},
        {"updates": 0},
        {"buffer": 0},
        {"least": 0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        replace(PolicyGradient(), **settings)
