"""Runs that are told different numbers of tokens, or have weights of their own, from one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.rng import Draw, Stream
from tiller.core.search import Problem
from tiller.methods._training import AdaptedPictures
from tiller.methods._weights import with_all_weights, with_lora
from tiller.methods.base import Method, Task
from tiller.methods.draft import Draft
from tiller.methods.ipgo import Ipgo
from tiller.models.base import FrozenModel
from tiller.models.loader import load_model
from tiller.models.trajectory import Gradient
from tiller.rewards import make_reward
from tiller.testing.fake_pipeline import fake_pipeline, fake_sdxl_pipeline

PROMPTS = ["a cat", "a red cat", "owl"]
SMALL = Ipgo(num_inference_steps=3, prefix=2, suffix=3, rank=4)
MAKERS = {"sd": fake_pipeline, "sdxl": fake_sdxl_pipeline}


def problems(model: FrozenModel, method: Method) -> list[Problem]:
    """What each prompt's run searches, from a noise of its own."""
    found = []
    for seed, prompt in enumerate(PROMPTS):
        task = Task(model, prompt, "", make_reward("brightness"), seed)
        if isinstance(method, Ipgo):
            space: Any = method.space(task)
            space.noise = method.noise(task).sample(1, Stream(seed))
            objective = method.pictures(task, Gradient.last(1))
            found.append(Problem(space, objective, method._solver(task)))
        else:
            (phase,) = method.build(task)
            found.append(phase.build(None))
    return found


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("method", [SMALL, Draft(num_inference_steps=3)])
def test_runs_together_are_the_runs_alone(kind: str, method: Method) -> None:
    """Pictures and gradients, with affixes of several lengths or with adapters of their own."""
    model = load_model(MAKERS[kind](dtype=torch.float64))
    given = problems(model, method)
    starts: list[Tensor] = []
    for k, one in enumerate(given):
        z = one.space.sample(1, Stream(k)).double()
        moved = z + 0.1 * torch.randn(z.shape, generator=torch.Generator().manual_seed(k))
        starts.append(moved.requires_grad_())
    draw = Draw(0, 0)
    first: Any = given[0].objective
    assert len({one.objective.joint_key() for one in given}) == 1
    alone = [
        one.objective.render(one.space.decode(z), draw)
        for one, z in zip(given, starts, strict=True)
    ]
    xs: list[Any] = [one.space.decode(z) for one, z in zip(given, starts, strict=True)]
    together = first.render_jointly(xs, [draw] * len(xs))
    for a, b, z in zip(alone, together, starts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
        (one,) = torch.autograd.grad(a.square().sum(), z, retain_graph=True)
        (other,) = torch.autograd.grad(b.square().sum(), z, retain_graph=True)
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_filled_row_says_what_it_said() -> None:
    """What stands behind the mask is not read."""
    model = load_model(fake_pipeline(dtype=torch.float64))
    told = model.encode(["a red cat"])
    longer = told.filled(told.prompt_embeds.shape[1] + 5)
    assert longer.token_mask is not None
    assert longer.token_mask.sum() == told.prompt_embeds.shape[1]
    path = Draft().trajectory(model)
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None]
    noisy = longer.prompt_embeds + 9 * (1 - longer.token_mask[..., None])
    masked = type(told)(noisy, longer.negative_prompt_embeds, token_mask=longer.token_mask)
    torch.testing.assert_close(path.run(noise, told), path.run(noise, masked), rtol=0, atol=1e-9)


def test_adapters_of_other_maps_and_whole_networks_draw_alone() -> None:
    model = load_model(fake_pipeline())
    assert with_lora(model, 2, ["to_q"]).by_row
    assert not with_lora(model, 2, ["to_q", "conv1"]).by_row
    assert not with_all_weights(model).by_row
    task = Task(model, "a cat", "", make_reward("brightness"))
    path = Draft().trajectory(model)
    apart = AdaptedPictures(with_lora(model, 2, ["to_q", "conv1"]), path, task.reward, "a cat")
    assert apart.joint_key() is None
