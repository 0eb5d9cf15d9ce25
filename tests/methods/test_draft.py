"""`draft`: parity with a plain training loop over peft, redraws, batches of prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.evaluation import Autograd
from tiller.core.rng import Draw, Stream
from tiller.core.search import search_phases
from tiller.methods.base import Task
from tiller.methods.draft import Draft, Practice
from tiller.models.loader import load_model
from tiller.models.trajectory import Gradient
from tiller.rewards import make_reward
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.testing.method_conformance import check_method

SMALL = Draft(num_inference_steps=3)


@pytest.fixture(scope="module")
def task() -> Task:
    model = load_model(fake_pipeline(set_alpha_to_one=True))
    return Task(model, "a red cat", "", make_reward("brightness"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a cat\na dog\nan owl\n")
    return str(path)


def problem(method: Draft, task: Task) -> Any:
    (phase,) = method.build(task)
    return phase.build(None)


@pytest.mark.parametrize("k", [1, 2])
def test_the_run_is_a_plain_training_loop_over_peft(task: Task, k: int) -> None:
    """peft on a pipeline of the same weights, torch.optim.AdamW, the reward's last K steps."""
    from peft import LoraConfig

    method = replace(SMALL, k=k, weight_decay=0.1, clip_norm=1e-4)
    steps = list(search_phases(method.build(task), Budget(steps=4)))
    pipeline = fake_pipeline(set_alpha_to_one=True)
    model: Any = load_model(pipeline)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipeline.unet.add_adapter(LoraConfig(r=6, lora_alpha=6, target_modules=targets))
    adapters = [p for name, p in model.unet.named_parameters() if "lora" in name]
    with torch.no_grad():
        cut = steps[0].problem.space.layout.cut(steps[0].z[0])
        for parameter, start in zip(adapters, cut.values(), strict=True):
            parameter.copy_(start).requires_grad_()
    optimizer = torch.optim.AdamW(adapters, lr=1e-3, weight_decay=0.1, maximize=True)
    trajectory, noise = method.trajectory(model), method.baseline(task, 0).noise
    for step in steps:
        now = torch.cat([parameter.detach().flatten() for parameter in adapters])
        torch.testing.assert_close(step.z[0], now, rtol=1e-4, atol=1e-6)
        optimizer.zero_grad()
        latents = trajectory.run(
            noise, task.conditioning(), gradient=Gradient.last(k), checkpoint="keep"
        )
        reward = task.reward(model.decode(latents), [task.prompt])
        assert float(step.evaluation.score[0]) == pytest.approx(float(reward.detach()), abs=1e-6)
        reward.sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(adapters, 1e-4)
        optimizer.step()


def test_the_first_picture_is_the_unsteered_one_and_the_reward_rises(task: Task) -> None:
    steps = list(search_phases(replace(SMALL, lr=0.01).build(task), Budget(steps=6)))
    plain = SMALL.pictures(task).render(SMALL.baseline(task, 0), Draw(0, 0))
    assert torch.equal(steps[0].evaluation.best_y, plain)
    rewards = [float(step.evaluation.reward[0]) for step in steps]
    assert rewards == sorted(rewards)
    assert rewards[-1] > rewards[0] + 1e-3
    assert (steps[-1].cost.forwards, steps[-1].cost.backwards) == (6 * 3 * 2, 6 * 2)
    assert steps[-1].cost.images == 6


def test_another_seed_trains_from_another_noise(task: Task) -> None:
    noises = [problem(SMALL, replace(task, seed=seed)).space.inputs.noise for seed in (0, 1)]
    assert not torch.equal(*noises)
    assert torch.equal(noises[1], SMALL.noise(task).sample(1, Stream(1)))


def test_redraws_average_the_gradients_of_noised_copies(task: Task) -> None:
    """DRaFT-LV by hand: x0 noised to the last timestep, one denoising each, the mean of rewards."""
    found = problem(replace(SMALL, redraws=3), task)
    space, objective = found.space, found.objective
    assert found.solver.estimator.__class__ is Practice
    z = space.sample(1, Stream(0)) + 0.05
    draw = Draw(4, 2)
    estimate = Practice()(space, objective, z, draw)
    model: Any = objective.adaptable.drawing_with(leaf := z[0].clone().requires_grad_())
    x, path = space.decode(z), SMALL.trajectory(task.model).over(model)
    with torch.no_grad():
        x0 = path.run(x.noise, x.conditioning)
    t = path.timesteps[-1]
    alpha = task.model.scheduler.alphas_cumprod[t.long()].sqrt()
    sigma = (1 - alpha**2).sqrt()
    generator, rewards = draw.generator("redraws"), []
    for _ in range(3):
        noisy = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator)
        epsilon = guided(model, noisy, t, x.conditioning, path.settings.guidance_scale)
        again = (noisy - sigma * epsilon) / alpha
        rewards.append(task.reward(model.decode(again), [task.prompt]).sum())
    (grad,) = torch.autograd.grad(torch.stack(rewards).mean(), leaf)
    torch.testing.assert_close(estimate.grad[0], grad, rtol=1e-4, atol=1e-9)
    with torch.no_grad():
        own = task.reward(model.decode(x0), [task.prompt])
    torch.testing.assert_close(estimate.reward, own)


def guided(model: Any, x: Tensor, t: Tensor, words: Any, scale: float) -> Tensor:
    conditional = model.denoise(x, t, words.prompt_embeds)
    unconditional = model.denoise(x, t, words.negative_prompt_embeds)
    mixed: Tensor = unconditional + scale * (conditional - unconditional)
    return mixed


def test_a_batch_has_the_mean_gradient_of_its_pictures(task: Task, prompts: str) -> None:
    found = problem(replace(SMALL, prompts=prompts, batch=2), task)
    space, objective = found.space, found.objective
    z, draw = space.sample(1, Stream(0)) + 0.05, Draw(0, 1)
    batch = Practice()(space, objective, z, draw).grad[0]
    lesson, words = (
        objective.lessons.at(draw, objective.trajectory),
        objective.lessons.conditioning,
    )
    alone = []
    for i in range(2):
        leaf = z[0].clone().requires_grad_()
        latents = objective.latents(
            leaf, lesson.noise[i : i + 1], words.index(lesson.prompt[i : i + 1]), Gradient.last(1)
        )
        reward = task.reward(task.model.decode(latents), [""])
        alone.append(torch.autograd.grad(reward.sum(), leaf)[0])
    torch.testing.assert_close(batch, torch.stack(alone).mean(0), rtol=1e-4, atol=1e-9)
    assert objective.lessons.prompts == ("a cat", "a dog", "an owl")
    assert objective.prompt == "a red cat"


def test_only_fresh_noises_need_more_than_the_own_picture(task: Task) -> None:
    assert isinstance(problem(SMALL, task).solver.estimator, Autograd)
    assert isinstance(problem(replace(SMALL, batch=1), task).solver.estimator, Practice)


@pytest.mark.parametrize(
    "settings",
    [{"k": 3, "checkpoint": "recompute"}, {"redraws": 2, "batch": 2, "weight_decay": 0.0}],
    ids=["k", "redraws"],
)
def test_every_variant_keeps_every_promise(settings: dict[str, Any], task: Task) -> None:
    check_method(replace(SMALL, **settings), task, budget=Budget(steps=3))


def test_a_batch_of_prompts_keeps_every_promise(task: Task, prompts: str) -> None:
    method = replace(SMALL, prompts=prompts, batch=2, scheduler="lms")
    check_method(method, task, budget=Budget(steps=3))


@pytest.mark.parametrize("settings", [{}, {"batch": 2}])
def test_a_black_box_is_refused(task: Task, settings: dict[str, Any]) -> None:
    with pytest.raises(Incompatible, match="got jpeg; use --method ddpo"):
        replace(SMALL, **settings).build(replace(task, reward=make_reward("jpeg")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "1 <= K <= 3"),
        ({"k": 4}, "1 <= K <= 3"),
        ({"redraws": -1}, "redraws"),
        ({"redraws": 2, "k": 2}, "of the last step alone"),
        ({"rank": 0}, "rank"),
        ({"targets": "nothing"}, "no adapters"),
        ({"batch": -1}, "batch"),
        ({"batch": 1_000_000}, r"batch must lie in \[1, 1024\]"),
        ({"prompts": "none.txt"}, "set batch=4"),
        ({"prompts": "none.txt", "batch": 2}, "No such file"),
        ({"lr": 0.0}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"affix": "a.safetensors"}, "takes no affix"),
    ],
    ids=[
        "no step", "too many steps", "negative redraws", "redraws of two steps", "rank", "targets",
        "batch", "too many", "prompts without a batch", "no file", "lr", "weight decay", "affix",
    ],
)  # fmt: skip
def test_bad_settings_are_refused(task: Task, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        replace(SMALL, **settings).build(task)


def test_the_prompts_file_is_the_users(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("a green owl\n")
    found = problem(replace(SMALL, prompts=str(path), batch=1), task)
    assert found.objective.lessons.texts(torch.tensor([0])) == ["a green owl"]
