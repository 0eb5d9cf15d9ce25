"""Recorded calls give what plain ones give: copies in and out, rows rounded up, gradients back.

A CUDA graph needs a GPU; a recorder that runs the function again stands for it, and fills the same
tensors. What it cannot show is that every kernel of a UNet can be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.errors import TillerNotice
from tiller.core.rng import Draw, Stream
from tiller.methods.base import Task
from tiller.methods.ddpo import Ddpo, Denoisings
from tiller.methods.draft import Draft
from tiller.models import Gradient, SamplerSettings, Trajectory, load_model
from tiller.models.base import FrozenModel
from tiller.models.replay import Replays, _rounded
from tiller.rewards import make_reward
from tiller.testing.fake_pipeline import fake_pipeline


def again(
    function: Callable[[], Sequence[Tensor]], pool: Any
) -> tuple[Callable[[], None], list[Tensor]]:
    """A recorder that runs the function again, with gradients as they were when it recorded."""
    graph = torch.is_grad_enabled()
    out = [tensor.detach().clone() for tensor in function()]

    def replay() -> None:
        with torch.set_grad_enabled(graph):
            for own, new in zip(out, function(), strict=True):
                own.copy_(new.detach())

    return replay, out


@pytest.fixture
def model() -> FrozenModel:
    return load_model(fake_pipeline(), dtype=torch.float64)


def drawn(model: FrozenModel, n: int, words: bool = True) -> tuple[Tensor, ...]:
    """A picture's latents for n candidates, and their gradients to the noise and the words."""
    path = Trajectory(model, SamplerSettings(3, 4.0, eta=1.0, height=16, width=16))
    noise = torch.stack(
        [path.sample_noise(torch.Generator().manual_seed(i)).double() for i in range(n)]
    ).requires_grad_()
    told = model.encode(["a red cat", "a dog", "an owl", "a fox", "a hen"][:n])
    leaves = [noise]
    if words:
        told.prompt_embeds.requires_grad_()
        leaves.append(told.prompt_embeds)
    latents = path.run(noise, told, gradient=Gradient.full(), checkpoint="recompute")
    return latents.detach(), *torch.autograd.grad(latents.square().sum(), leaves)


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("words", [True, False])
def test_recorded_calls_give_the_same_pictures_and_gradients(
    model: FrozenModel, n: int, words: bool
) -> None:
    plain = drawn(model, n, words)
    model.replays = Replays(again)
    first, recorded = drawn(model, n, words), drawn(model, n, words)
    assert len(model.replays._kept) == 1, "the second time it is recorded"
    for a, b, c in zip(plain, first, recorded, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0)
        torch.testing.assert_close(c, a, rtol=1e-9, atol=1e-11)


def test_without_a_gradient_the_call_alone_is_recorded(model: FrozenModel) -> None:
    path = Trajectory(model, SamplerSettings(3, 4.0, height=16, width=16))
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None].double()
    told = model.encode(["a red cat"])
    plain = path.run(noise, told)
    model.replays = Replays(again)
    found = [path.run(noise, told) for _ in range(3)]
    for latents in found:
        torch.testing.assert_close(latents, plain, rtol=1e-9, atol=1e-11)


def test_populations_of_similar_sizes_share_a_recording(model: FrozenModel) -> None:
    plain = drawn(model, 5)
    model.replays = Replays(again)
    sizes = {_rounded(n) for n in range(1, 257)}
    assert all(n <= _rounded(n) <= 1.25 * n for n in range(1, 257))
    assert len(sizes) < 30
    drawn(model, 5)
    for a, b in zip(plain, drawn(model, 5), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11)


def test_what_cannot_be_recorded_goes_on_as_before(model: FrozenModel) -> None:
    def refuses(function: Any, pool: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = drawn(model, 2)
    model.replays = Replays(refuses)
    drawn(model, 2)
    with pytest.warns(TillerNotice, match="one kernel at a time.*not permitted"):
        found = drawn(model, 2)
    again_ = drawn(model, 2)
    for a, b, c in zip(plain, found, again_, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_auto_replays_where_that_is_faster(model: FrozenModel) -> None:
    model.replays = Replays(again)
    path = Trajectory(model, SamplerSettings(3, 4.0, height=16, width=16))
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None].double().requires_grad_()
    told = model.encode(["a red cat"])
    for _ in range(2):
        path.run(noise, told, gradient=Gradient.full())
    (recording,) = model.replays._kept.values()
    for faster in (True, False):
        recording.faster = faster
        path.run(noise, told, gradient=Gradient.full())
        assert path.plan is not None
        assert path.plan.replayed is faster
        assert ("replayed" in str(path.plan)) is faster


def trained(model: FrozenModel, method: Draft | Ddpo) -> list[Tensor]:
    """A value that depends on an adapter's weights, and its gradient to them, three times."""
    (phase,) = method.build(Task(model, "a red cat", "", make_reward("brightness")))
    problem = phase.build(None)
    start = problem.space.sample(1, Stream(0)).double()
    start += 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    found, draw, objective = [], Draw(0, 0), problem.objective
    for _ in range(3):
        leaf = start.clone().requires_grad_()
        x: Any = problem.space.decode(leaf)
        if isinstance(objective, Denoisings):
            chains = objective.rollout(x, draw)
            value = objective.log_prob(x, chains.states, chains.group, 1)
        else:
            value = objective.render(x, draw).square()
        found += [value.detach(), *torch.autograd.grad(value.sum(), leaf)]
    return found


@pytest.mark.parametrize(
    "method",
    [Draft(num_inference_steps=3, k=2), Ddpo(num_inference_steps=3, batch=2)],
)
def test_calls_with_other_weights_are_recorded_too(
    model: FrozenModel, method: Draft | Ddpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are an input of the recorded call, and get their gradient back."""
    plain = trained(model, method)
    model.replays, made = Replays(again), []
    monkeypatch.setattr(Replays, "another", lambda self: made.append(Replays(again)) or made[-1])
    recorded = trained(model, method)
    assert made[-1]._kept
    assert not model.replays._kept
    for a, b in zip(plain, recorded, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-9)
    assert all(value.abs().max() > 0 for value in recorded)


def test_a_sampler_with_fractions_of_steps_has_recordings_of_its_own(model: FrozenModel) -> None:
    """DDIM's times are whole numbers, Euler's are not: they would be cut to whole ones."""
    found = []
    for before in ("ddim", "euler"):
        model.replays = Replays(again)
        for scheduler in (before, "euler"):
            path = Trajectory(model, SamplerSettings(3, 4.0, 0.0, 16, 16, scheduler))
            noise = path.sample_noise(torch.Generator().manual_seed(0))[None].double()
            latents = path.run(noise, model.encode(["a red cat"]))
        found.append(latents)
    assert torch.equal(*found)
