"""A copy that takes weights: the frozen model's own at the start, its tensors shared and unchanged,
gradients of the adapters exact."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget, metered
from tiller.core.errors import InvalidInput, MissingDependency, RewardError
from tiller.core.rng import Draw, Stream
from tiller.core.search import search_phases
from tiller.methods._training import AdaptedPictures, Lessons
from tiller.methods._weights import TARGETS, Adaptable, with_all_weights, with_lora
from tiller.methods.base import Task
from tiller.methods.ddpo import Ddpo
from tiller.methods.draft import Draft
from tiller.models.base import FrozenModel, SamplerSettings
from tiller.models.inputs import Inputs
from tiller.models.loader import load_model
from tiller.models.trajectory import Gradient, Trajectory
from tiller.rewards import make_reward
from tiller.spaces.lora import Lora
from tiller.testing.fake_pipeline import fake_lcm_pipeline, fake_pipeline, fake_sdxl_pipeline

NAMES = TARGETS.split(",")
SETTINGS = SamplerSettings(3, 2.0, height=16, width=16)


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return load_model(fake_pipeline())


@pytest.fixture(scope="module")
def double() -> FrozenModel:
    return load_model(fake_pipeline(dtype=torch.float64))


def weights_of(model: Any) -> dict[str, Tensor]:
    parts = {"unet": model.unet, "vae": model.vae, "text": model.pipeline.text_encoder}
    return {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def space_of(adaptable: Adaptable, trajectory: Trajectory) -> Lora:
    noise = trajectory.sample_noise(torch.Generator().manual_seed(0))[None]
    inputs = Inputs(noise, adaptable.model.encode(["a red cat"]))
    return Lora(adaptable.layout, inputs, start=adaptable.start, dtype=adaptable.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda m: with_lora(m, 3, NAMES), with_all_weights])
def test_the_start_is_the_frozen_model_bit_for_bit(make: Any, dtype: torch.dtype) -> None:
    model = load_model(fake_pipeline(dtype=dtype))
    adaptable, trajectory = make(model), Trajectory(model, SETTINGS)
    x = space_of(adaptable, trajectory).decode(space_of(adaptable, trajectory).sample(2, Stream(0)))
    pictures = AdaptedPictures(adaptable, trajectory, make_reward("brightness"), "a red cat")
    found = pictures.render(x, Draw(0, 0))
    with torch.no_grad():
        own = model.decode(trajectory.run(x.noise[:1], x.conditioning.index([0])))
    assert torch.equal(found, own.expand(2, *own.shape[1:]))


@pytest.mark.parametrize(
    "method",
    [
        Draft(num_inference_steps=3, lr=0.1),
        Ddpo(num_inference_steps=3, batch=2, lr=0.1),
        Ddpo(num_inference_steps=3, batch=2, lr=0.1, weights="all"),
    ],
    ids=["draft", "ddpo", "all weights"],
)
def test_the_loaded_model_is_never_touched(method: Any) -> None:
    """Nor by a run, nor by one that ends in an error; the run itself did change what it draws."""
    model: Any = load_model(fake_pipeline())
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    addresses = {name: tensor.data_ptr() for name, tensor in weights_of(model).items()}
    fingerprint, tree = model.fingerprint(), str(model.unet)
    task = Task(model, "a red cat", "", make_reward("brightness"))
    *_, last = search_phases(method.build(task), Budget(steps=4))
    x = last.problem.space.decode(last.state.solver.z)
    with torch.no_grad():
        drawn = last.problem.objective.render(x, Draw(0, 0))
        plain = model.decode(method.trajectory(model).run(x.noise, x.conditioning))
    assert not torch.allclose(drawn, plain, atol=1e-4)

    calls = 0

    def failing(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise ValueError("enough")
        return images.mean((1, 2, 3))

    broken = Task(model, "a red cat", "", make_reward(failing))
    with pytest.raises(RewardError, match="enough"):
        list(search_phases(method.build(broken), Budget(steps=9)))
    now = weights_of(model)
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert {name: tensor.data_ptr() for name, tensor in now.items()} == addresses
    assert (model.fingerprint(), str(model.unet)) == (fingerprint, tree)
    assert not any(p.requires_grad for p in model.unet.parameters())


@pytest.mark.parametrize(
    ("pipeline", "method"),
    [
        (fake_sdxl_pipeline, Draft(num_inference_steps=2, k=2, lr=0.01)),
        (fake_sdxl_pipeline, Ddpo(num_inference_steps=3, batch=2)),
        (fake_lcm_pipeline, Ddpo(num_inference_steps=3, batch=2)),
    ],
    ids=["draft on sdxl", "ddpo on sdxl", "ddpo on lcm"],
)
def test_other_families_are_trained_likewise(pipeline: Any, method: Any) -> None:
    """Two encoders, pooled states, a guidance input, a sampler that draws its own noise."""
    model: Any = load_model(pipeline())
    before, fingerprint = str(model.unet), model.fingerprint()
    task = Task(model, "a red cat", "", make_reward("brightness"))
    steps = list(search_phases(method.build(task), Budget(steps=3)))
    plain = method.pictures(task).render(method.baseline(task, 0), Draw(0, 0))
    assert torch.equal(steps[0].evaluation.best_y, plain)
    assert float(steps[0].evaluation.grad.norm()) > 0
    if isinstance(method, Draft):
        assert steps[2].evaluation.score > steps[0].evaluation.score
    assert (str(model.unet), model.fingerprint()) == (before, fingerprint)


def test_an_adapter_shares_the_base_tensors(model: Any) -> None:
    adaptable = with_lora(model, 2, NAMES)
    own = {p.data_ptr() for p in model.unet.parameters()}
    copied = {n: p for n, p in adaptable.denoiser.named_parameters() if p.data_ptr() not in own}
    assert copied.keys() == set(adaptable.names)
    assert sum(p.numel() for p in copied.values()) == adaptable.layout.size
    everything = with_all_weights(model)
    assert all(p.data_ptr() in own for p in everything.denoiser.parameters())


def test_the_start_is_drawn_as_peft_draws_it(model: Any) -> None:
    """The same numbers as peft's own initialisation from the same generator state."""
    from peft.tuners.lora import LoraLayer

    adaptable = with_lora(model, 3, NAMES)
    generator = torch.Generator().manual_seed(7)
    space = space_of(adaptable, Trajectory(model, SETTINGS))
    ours = adaptable.layout.cut(space._sampled(generator))
    theirs = copy.deepcopy(adaptable.denoiser)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for module in theirs.modules():
            if isinstance(module, LoraLayer):
                module.reset_lora_parameters("tiller", True)
    parameters = dict(theirs.named_parameters())
    for name, tensor in zip(adaptable.names, ours.values(), strict=True):
        assert torch.equal(tensor, parameters[name]), name
    assert bool((space.sample(2, Stream(0))[0] != space.sample(2, Stream(0))[1]).any())


def test_layouts_cut_what_they_join(model: Any) -> None:
    adaptable = with_all_weights(model)
    assert adaptable.start is not None
    cut = adaptable.layout.cut(adaptable.start)
    assert cut.keys() == dict(model.unet.named_parameters()).keys()
    for name, parameter in model.unet.named_parameters():
        assert torch.equal(cut[name], parameter)
    assert torch.equal(adaptable.layout.flat(cut, torch.float32), adaptable.start)


def moved(adaptable: Adaptable) -> Tensor:
    """Weights [d] away from the start, where B is not zero."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(adaptable.layout.size, generator=generator, dtype=torch.float64)
    start = torch.zeros(1) if adaptable.start is None else adaptable.start
    return start + 0.05 * noise


@pytest.mark.parametrize("make", [lambda m: with_lora(m, 2, NAMES), with_all_weights])
def test_the_gradient_is_that_of_float64_differences(make: Any, double: FrozenModel) -> None:
    adaptable, trajectory = make(double), Trajectory(double, SETTINGS)
    objective = AdaptedPictures(
        adaptable, trajectory, make_reward("brightness"), "", gradient=Gradient.full()
    )
    space = space_of(adaptable, trajectory)
    z = moved(adaptable)[None]
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    direction /= direction.norm()

    def score(z: Tensor) -> Tensor:
        return objective.score(objective.render(space.decode(z), Draw(0, 0)), Draw(0, 0))

    leaf = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(score(leaf).sum(), leaf)
    with torch.no_grad():
        h = 1e-4
        difference = float(score(z + h * direction) - score(z - h * direction)) / (2 * h)
    assert float((grad * direction).sum()) == pytest.approx(difference, rel=1e-5)
    assert float(grad.norm()) > 0


def test_recomputation_gives_the_same_gradient_and_is_billed(model: Any) -> None:
    adaptable, trajectory = with_lora(model, 2, NAMES), Trajectory(model, SETTINGS)
    space, found = space_of(adaptable, trajectory), {}
    z = moved(adaptable)[None].float()
    for checkpoint in ("keep", "recompute", 1, "auto"):
        objective = AdaptedPictures(
            adaptable,
            trajectory,
            make_reward("brightness"),
            "",
            gradient=Gradient.last(2),
            checkpoint=checkpoint,
        )
        leaf = z.clone().requires_grad_()
        with metered() as meter:
            y = objective.render(space.decode(leaf), Draw(0, 0))
            (grad,) = torch.autograd.grad(y.mean(), leaf)
        found[checkpoint] = grad, meter.cost.recomputes
        assert meter.cost.forwards == 2 * 3
        assert meter.cost.backwards == 2 * 2
    assert {c: recomputes for c, (_, recomputes) in found.items()} == {
        "keep": 0, "recompute": 4, 1: 2, "auto": 0
    }  # fmt: skip
    for grad, _ in found.values():
        torch.testing.assert_close(grad, found["keep"][0], rtol=1e-5, atol=1e-8)


def test_the_papers_numbers_of_parameters() -> None:
    """IPGO's table 3 on Stable Diffusion 1.5's UNet: its 597,888 for rank 6 are two of the four
    projections, and its 860,318,148 for DDPO are the UNet with adapters of rank 4."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            attention_head_dim=8,
            block_out_channels=(320, 640, 1280, 1280),
        )
    bare: Any = SimpleNamespace(unet=unet, name="sd 1.5", dtype=torch.float32)
    sizes = {rank: with_lora(bare, rank, NAMES).layout.size for rank in (4, 6)}
    assert sizes == {4: 797_184, 6: 1_195_776}
    assert with_lora(bare, 6, ["to_q", "to_v"]).layout.size == 597_888
    own = sum(p.numel() for p in unet.parameters())
    assert own + sizes[4] == 860_318_148


@pytest.mark.parametrize(
    ("rank", "targets", "message"),
    [
        (0, NAMES, "rank must be at least 1"),
        (2, ["to_x"], r"no adapters can be put on \['to_x'\]"),
        (2, [], "no adapters can be put on"),
    ],
)
def test_bad_adapters_are_refused(
    model: FrozenModel, rank: int, targets: list[str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        with_lora(model, rank, targets)


def test_a_model_that_has_adapters_or_no_unet_is_refused(model: FrozenModel) -> None:
    adapted: Any = copy.copy(model)
    adapted.unet = with_lora(model, 2, NAMES).denoiser
    with pytest.raises(InvalidInput, match="fuse_lora"):
        with_lora(adapted, 2, NAMES)
    bare: Any = SimpleNamespace(name="bare")
    with pytest.raises(InvalidInput, match="need a model with a UNet, got 'bare'"):
        with_all_weights(bare)


def test_a_missing_peft_is_named_with_its_command(
    model: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency, match="pip install peft"):
        with_lora(model, 2, NAMES)


def test_lessons_go_through_every_prompt_once_an_epoch(model: FrozenModel) -> None:
    texts = ("a cat", "a dog", "a cow", "an owl", "a fox")
    lessons = Lessons(texts, model.encode(texts), batch=2)
    trajectory = Trajectory(model, SETTINGS)
    drawn = [lessons.at(Draw(3, number), trajectory) for number in range(5)]
    order = torch.cat([lesson.prompt for lesson in drawn]).tolist()
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))
    assert order[:5] != order[5:]
    again = lessons.at(Draw(3, 4), trajectory)
    assert torch.equal(again.noise, drawn[4].noise)
    assert torch.equal(again.prompt, drawn[4].prompt)
    flat = torch.cat([lesson.noise for lesson in drawn]).flatten(1)
    assert len(flat.unique(dim=0)) == 10  # no noise twice
    assert lessons.texts(drawn[0].prompt) == [texts[i] for i in order[:2]]
