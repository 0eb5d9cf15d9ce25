"""`lgd`: the guidance is the gradient that it says, and the pictures it draws are better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput, RewardError
from tiller.core.rng import Draw, Stream, keyed_generator
from tiller.core.search import Search, search_phases, search_together
from tiller.methods.base import Task
from tiller.methods.lgd import GuidedPictures, Lgd, LossGuide
from tiller.models.loader import load_model
from tiller.models.schedulers import closed_form
from tiller.rewards import Reward, make_reward
from tiller.testing.fake_pipeline import fake_pipeline

SMALL = Lgd(num_inference_steps=3, n=3)
DRAW = Draw(0, 0)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(load_model(fake_pipeline()), "a red cat", "", make_reward("brightness"))


def noises(method: Lgd, task: Task, n: int, seed: int = 0) -> Tensor:
    return method.noise(task).sample(n, Stream(seed))


def pictures(method: Lgd, task: Task, z: Tensor, *, guided: bool = True) -> Tensor:
    plain = method.pictures(task)
    objective = GuidedPictures(plain, method) if guided else plain
    with torch.no_grad():
        return objective.render(method.noise(task).decode(z), DRAW)


def test_the_guidance_is_the_gradient_of_the_log_mean_of_exp_reward() -> None:
    """Against central differences in float64, through denoiser, decoder and reward."""
    task = Task(load_model(fake_pipeline(dtype=torch.float64)), "x", "", make_reward("brightness"))
    method = replace(SMALL, n=4, scale=30.0, normalise="none", batch=3)
    path, model = method.trajectory(task.model), task.model
    index, seed = 1, 5
    t = path.timesteps[index]
    sigma = float((1 - model.scheduler.alphas_cumprod[t]) ** 0.5)
    words = task.conditioning().prompt_embeds
    generator = keyed_generator(seed, "lgd", index)
    eps = torch.randn((method.n, *path.noise_shape[1:]), generator=generator).double()

    def x0(x: Tensor) -> Tensor:
        return closed_form(model.scheduler, model.denoise(x, t, words), t, x)

    def log_mean_exp(x: Tensor) -> Tensor:
        reward = task.reward(model.decode(x0(x) + sigma * eps), ["x"] * method.n)
        return torch.logsumexp(30 * reward, dim=0) - math.log(method.n)

    x = noises(method, task, 1)[0].double().requires_grad_()
    found = LossGuide(method.pictures(task), method, (seed,), ("x",))(index, x, x0(x), sigma)
    (exact,) = torch.autograd.grad(log_mean_exp(x), x)
    assert torch.allclose(found, exact, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        for k in (1, 2):
            direction = torch.randn(x.shape, generator=keyed_generator(k), dtype=x.dtype)
            h = 1e-5 / direction.norm()
            up, down = (log_mean_exp(x + sign * h * direction) for sign in (1, -1))
            difference = float((up - down) / (2 * h))
            assert float((found * direction).sum()) == pytest.approx(difference, rel=1e-5)


@dataclass(frozen=True)
class Near(Reward):
    """r = -|x - target|^2 / 2, whatever the range of the picture."""

    target: float = 0.5

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -(images - self.target).square().flatten(1).sum(dim=1) / 2


def test_many_samples_average_over_what_the_estimate_leaves_open(
    monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    """A Gaussian likelihood: log E exp(-|x0 - y|^2 / 2) has slope -(x0_hat - y) / (1 + r^2).

    At the estimate alone (n = 1, r = 0) it is -(x0_hat - y): too much by (1 + r^2).
    """
    monkeypatch.setattr(type(task.model), "decode", lambda self, latents: latents)
    method = Lgd(n=40_000, scale=1.0, normalise="none", batch=10_000)
    guide = LossGuide(method.pictures(replace(task, reward=Near())), method, (0,), ("",))
    estimate = torch.tensor([-0.4, 0.2, 1.1], dtype=torch.float64).view(1, 3, 1, 1)
    for r in (0.3, 1.0):
        expected = -(estimate - 0.5) / (1 + r**2)
        assert torch.allclose(guide.slope(0, estimate, r), expected, atol=0.02)
    single = replace(guide, settings=replace(method, n=1))
    assert torch.allclose(single.slope(0, estimate, 0.0), -(estimate - 0.5))


def test_without_guidance_it_is_plain_sampling(task: Task) -> None:
    method = replace(SMALL, scale=0.0)
    z = noises(method, task, 1)
    phases = method.build(task)
    steps = list(search_phases(phases, Budget(steps=2)))
    assert [step.phase for step in steps] == ["unguided", "guided"]
    assert torch.equal(steps[1].evaluation.best_y, pictures(method, task, z, guided=False))
    # The machinery itself, with a guidance of length zero, changes no bit either.
    assert torch.equal(pictures(method, task, z), pictures(method, task, z, guided=False))


@pytest.mark.parametrize("settings", [{}, {"eta": 1.0}, {"normalise": "none", "scale": 2000.0}])
def test_the_reward_rises(settings: dict[str, Any], task: Task) -> None:
    """Of each noise, and not only of the best."""
    method = replace(SMALL, **settings)
    z = noises(method, task, 3)
    before = task.reward(pictures(method, task, z, guided=False), [""] * 3)
    after = task.reward(pictures(method, task, z), [""] * 3)
    assert bool((after > before + 1e-4).all())


def test_a_normalised_guidance_does_not_know_the_rewards_unit(task: Task) -> None:
    method = replace(SMALL, n=1)  # with more, a reward's size also sharpens the weights
    z = noises(method, task, 1)
    larger = replace(task, reward=make_reward("brightness:1000"))
    assert torch.allclose(pictures(method, task, z), pictures(method, larger, z), atol=1e-5)


def test_a_normalised_guidance_turns_the_predicted_noise_by_a_share_of_its_length(
    task: Task,
) -> None:
    guide = LossGuide(SMALL.pictures(task), SMALL, (0, 0), ("", ""))
    x = noises(SMALL, task, 2)[:, 0].requires_grad_()
    sigma = 0.7
    gradient = guide(0, x, 0.5 * x, sigma)
    typical = math.sqrt(x[0].numel())
    lengths = (sigma * gradient).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.full((2,), SMALL.scale * typical))


def test_pictures_do_not_depend_on_what_they_are_drawn_with(task: Task) -> None:
    z = noises(SMALL, task, 3)
    together = pictures(SMALL, task, z)
    alone = torch.cat([pictures(replace(SMALL, batch=1), task, one[None]) for one in z])
    assert torch.allclose(together, alone, atol=1e-5)


@dataclass(frozen=True)
class LengthOfPrompt(Reward):
    """Bright pictures for long prompts, dark ones for short."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        signs = images.new_tensor([1.0 if len(prompt) > 6 else -1.0 for prompt in prompts])
        return signs * images.flatten(1).mean(dim=1)


def test_runs_side_by_side_are_guided_by_their_own_prompt_and_seed(task: Task) -> None:
    tasks = [replace(task, prompt=p, seed=s, reward=REWARD) for p, s in RUNS]
    searches = [Search(SMALL.build(t), Budget(images=3), t.seed) for t in tasks]
    ended = dict(search_together(searches))
    assert len({tuple(last.evaluation.best_y.flatten().tolist()) for last in ended.values()}) == 4
    for i, own in enumerate(tasks):
        *_, alone = search_phases(SMALL.build(own), Budget(images=3), seed=own.seed)
        assert torch.allclose(ended[i].evaluation.best_y, alone.evaluation.best_y, atol=1e-5)
        assert ended[i].cost.reward_calls == alone.cost.reward_calls
        assert ended[i].cost.model_calls == alone.cost.model_calls


REWARD = LengthOfPrompt()
RUNS = [("a cat", 0), ("a cat", 1), ("a red cat", 0), ("a red cat", 1)]


def test_the_best_can_be_drawn_again_from_its_noise(task: Task) -> None:
    *_, last = search_phases(SMALL.build(task), Budget(steps=4), seed=3)
    assert last.best.round > 1, "a guided picture is the best"
    problem = last.problem
    again = problem.objective.render(problem.space.decode(last.best.z), Draw(3, 99))
    assert torch.equal(again, last.best.y)
    other = problem.objective.render(problem.space.decode(last.best.z), Draw(4, 99))
    assert not torch.equal(other, again), "the samples come from the run's seed"


def test_the_runs_own_noise_comes_first_and_everything_is_billed(task: Task) -> None:
    steps = list(search_phases(SMALL.build(task), Budget(images=4)))
    own = noises(SMALL, task, 1)
    assert torch.equal(steps[0].z, own)
    assert torch.equal(steps[1].z, own)
    assert not torch.equal(steps[2].z, own)
    assert steps[-1].stopped == "budget: images=4"
    cost, branches = steps[-1].cost, 2
    assert cost.images == 4
    assert cost.forwards == 4 * 3 * branches
    assert cost.backwards == 3 * 3 * branches
    assert cost.reward_calls == 4 + 3 * 3 * SMALL.n
    assert steps[-1].best.score >= float(steps[0].evaluation.score[0])


def test_eta_is_ddims(task: Task) -> None:
    assert replace(SMALL, eta=1.0).noise(task).shape[0] > 1
    assert replace(SMALL, scheduler="euler").sampler(task.model).scheduler == "euler"
    with pytest.raises(InvalidInput, match="eta > 0 is the ddim scheduler's"):
        replace(SMALL, eta=1.0, scheduler="euler").build(task)


def test_a_black_box_is_refused_before_anything_is_drawn(task: Task) -> None:
    with pytest.raises(Incompatible, match="lgd needs a differentiable reward, and jpeg is not"):
        SMALL.build(replace(task, reward=make_reward("jpeg")))


@dataclass(frozen=True)
class Broken(Reward):
    """Loses its gradient, or has one that is not finite."""

    how: str = "detached"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        mean = images.flatten(1).mean(dim=1)
        return mean.detach() if self.how == "detached" else (mean - mean.detach()).sqrt()


@pytest.mark.parametrize(
    ("how", "message"), [("detached", "without a gradient"), ("infinite", "not finite")]
)
def test_a_reward_that_fails_later_says_so(how: str, message: str, task: Task) -> None:
    broken = replace(task, reward=Broken(how))
    with pytest.raises(RewardError, match=message):
        pictures(SMALL, broken, noises(SMALL, task, 1))


@pytest.mark.parametrize(
    "settings",
    [{"n": 0}, {"batch": 0}, {"scale": -1.0}, {"scale": math.inf}, {"normalise": "magic"}],
)
def test_bad_settings_are_refused(settings: dict[str, Any], task: Task) -> None:
    with pytest.raises(InvalidInput):
        replace(SMALL, **settings).build(task)
