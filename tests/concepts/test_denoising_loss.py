"""The loss: what it is, that candidates share its randomness, and that it can be differentiated."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.concepts.objective import DenoisingLoss, Sampling, rows_that_fit
from tiller.core.budget import metered
from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Autograd, evaluate
from tiller.core.rng import Draw, Stream
from tiller.models import FrozenModel, load_model
from tiller.models.schedulers import noise_level
from tiller.spaces.concept import ConceptSpace
from tiller.testing.fake_pipeline import fake_pipeline

SENTENCES = ("a {}", "{} on a", "b {}", "{}")


@pytest.fixture(scope="module")
def latents(model: FrozenModel) -> Tensor:
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return model.encode_images(pictures)


@pytest.fixture(scope="module")
def space(model: FrozenModel) -> ConceptSpace:
    start = [table[5:7].float() for table in model.token_embeddings]
    return ConceptSpace(start)


def loss_of(model: FrozenModel, latents: Tensor, rows: int = 128, **sampling: Any) -> DenoisingLoss:
    return DenoisingLoss(model, latents, SENTENCES, Sampling(**sampling), rows=rows)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_it_is_the_mean_square_error_of_what_the_network_predicts(
    kind: str, latents: Tensor
) -> None:
    """Each number of `render`, made again one row at a time with diffusers' own scheduler."""
    model = load_model(fake_pipeline(prediction_type=kind))
    word = tuple(table[None, 5:6].float() for table in model.token_embeddings)
    objective = loss_of(model, latents, draws=5, templates=2)
    draw = Draw(0, 3)
    trials = objective.trials(draw)
    pick = torch.randperm(3, generator=draw.generator("pictures"))
    again = torch.randperm(3, generator=draw.generator("pictures"))
    assert torch.equal(pick, again)
    eps = torch.randn((5, 4, 8, 8), generator=draw.generator("noise"))
    scheduler = model.scheduler
    for j, loss in enumerate(objective.render(word, draw)[0]):
        t = trials.t[j : j + 1]
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in noise_level(scheduler, t))
        x0 = (trials.noisy[j : j + 1] - sigma * eps[j : j + 1]) / alpha
        assert any(torch.allclose(x0, one[None], atol=1e-3) for one in latents)
        noisy = scheduler.add_noise(x0, eps[j : j + 1], t)
        assert torch.allclose(noisy, trials.noisy[j : j + 1], atol=1e-5)
        wanted = {"epsilon": eps[j : j + 1], "sample": x0}.get(kind)
        if wanted is None:
            wanted = scheduler.get_velocity(x0, eps[j : j + 1], t)
        text = trials.templates[int(trials.sentence[j])]
        states = objective.states(word, [text]).prompt_embeds
        prediction = model.denoise(noisy, t[0], states)
        assert float(loss) == pytest.approx(float((prediction - wanted).square().mean()), rel=1e-4)


def test_the_higher_score_has_the_lower_loss(
    model: FrozenModel, latents: Tensor, space: ConceptSpace
) -> None:
    objective = loss_of(model, latents)
    z = space.sample(6, Stream(0))
    losses = objective.render(space.decode(z), Draw(0, 0)).mean(1)
    found = evaluate(space, objective, z, Draw(0, 0))
    assert torch.allclose(found.score.float(), -losses)
    assert found.best == int(losses.argmin())
    assert found.best_y.shape == (1, 4)


def test_candidates_share_the_rounds_trials_and_rounds_do_not(
    model: FrozenModel, latents: Tensor, space: ConceptSpace
) -> None:
    objective = loss_of(model, latents, draws=6)
    z = space.sample(1, Stream(0))
    twice = objective.render(space.decode(torch.cat([z, z])), Draw(0, 4))
    assert torch.allclose(twice[0], twice[1], rtol=1e-5)
    other = objective.render(space.decode(z), Draw(0, 5))
    assert not torch.allclose(twice[:1], other, rtol=1e-2)
    again = objective.render(space.decode(z), Draw(0, 4))
    assert torch.equal(again, objective.render(space.decode(z), Draw(0, 4)))


@pytest.mark.parametrize("rows", [1, 4, 7, 1000])
def test_a_generation_does_not_depend_on_how_it_is_cut(
    rows: int, model: FrozenModel, latents: Tensor, space: ConceptSpace
) -> None:
    z = space.sample(3, Stream(0))
    whole = loss_of(model, latents, rows=1000).render(space.decode(z), Draw(0, 0))
    cut = loss_of(model, latents, rows=rows).render(space.decode(z), Draw(0, 0))
    assert torch.allclose(whole, cut, rtol=1e-4)
    alone = torch.cat(
        [loss_of(model, latents).render(space.decode(one[None]), Draw(0, 0)) for one in z]
    )
    assert torch.allclose(whole, alone, rtol=1e-4)


def test_timesteps_are_stratified_and_pictures_and_sentences_come_equally_often(
    model: FrozenModel, latents: Tensor
) -> None:
    objective = loss_of(model, latents, draws=12, templates=3, t_low=0.2, t_high=0.8)
    steps = int(model.scheduler.config.num_train_timesteps)
    for round_ in range(5):
        trials = objective.trials(Draw(0, round_))
        low, high = (((trials.t + i) / steps - 0.2) / 0.6 * 12 for i in (0, 1))  # whole steps
        part = torch.arange(12)
        assert bool(((low < part + 1) & (high > part)).all())
        assert len(set(trials.templates)) == 3
        assert trials.sentence.bincount().tolist() == [4, 4, 4]
    few = loss_of(model, latents, draws=2, templates=50).trials(Draw(0, 0))
    assert len(few.templates) == 2  # no sentence that no trial would use


def test_mirrors_are_drawn_as_often_as_asked(model: FrozenModel) -> None:
    views = torch.stack([torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)])
    draw = Draw(0, 0)
    for flip in (0.0, 0.5, 1.0):
        objective = loss_of(model, views, draws=64, flip=flip)
        eps = torch.randn((64, 4, 8, 8), generator=draw.generator("noise"))
        trials = objective.trials(draw)
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in noise_level(model.scheduler, trials.t))
        mirrored = ((trials.noisy - sigma * eps) / alpha).mean((1, 2, 3))
        assert float(mirrored.mean()) == pytest.approx(flip, abs=0.2 if flip == 0.5 else 1e-3)


def test_the_gradient_agrees_with_finite_differences(latents: Tensor) -> None:
    model = load_model(fake_pipeline(dtype=torch.float64))
    space = ConceptSpace([table[5:6] for table in model.token_embeddings])
    objective = loss_of(model, latents, draws=3)
    z = torch.zeros(1, 1, 16, dtype=torch.float64)
    space.start = space.start.double()
    grad = evaluate(space, objective, z, Draw(0, 0), Autograd()).grad
    assert grad is not None
    h = 1e-4
    for i in (0, 7, 15):
        step = torch.zeros_like(z)
        step[..., i] = h
        pair = torch.cat([z + step, z - step])
        up, down = objective.render(space.decode(pair), Draw(0, 0)).double().mean(1)
        assert float(grad[0, 0, i]) == pytest.approx(
            float((down - up) / (2 * h)), rel=2e-3, abs=1e-7
        )


def test_with_few_rows_the_gradient_is_recomputed_and_the_same(
    model: FrozenModel, latents: Tensor, space: ConceptSpace
) -> None:
    z = space.sample(2, Stream(0))
    costs, grads = [], []
    for rows in (1000, 3):
        with metered() as meter:
            found = evaluate(space, loss_of(model, latents, rows), z, Draw(0, 0), Autograd())
        assert found.grad is not None
        grads.append(found.grad)
        costs.append(meter.cost)
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-7)
    assert [(c.forwards, c.backwards, c.recomputes) for c in costs] == [(8, 8, 0), (8, 8, 8)]


def test_a_generation_is_billed_for_its_denoiser_rows(
    model: FrozenModel, latents: Tensor, space: ConceptSpace
) -> None:
    with metered() as meter:
        evaluate(space, loss_of(model, latents, draws=5), space.sample(6, Stream(0)), Draw(0, 0))
    assert (meter.cost.forwards, meter.cost.backwards, meter.cost.images) == (30, 0, 0)


def test_rows_are_bounded_by_the_memory(
    model: FrozenModel,
    latents: Tensor,
    space: ConceptSpace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, x = loss_of(model, latents), space.decode(space.sample(1, Stream(0)))
    assert rows_that_fit(objective, x) == 128
    free = itertools.count(1)
    monkeypatch.setattr("tiller.concepts.objective.free_bytes", lambda device: next(free))
    assert rows_that_fit(objective, x) == 1


def test_what_cannot_be_is_refused(model: FrozenModel, latents: Tensor) -> None:
    for bad in ({"draws": 0}, {"flip": 2.0}, {"t_low": 0.5, "t_high": 0.5}, {"templates": 0}):
        with pytest.raises(InvalidInput):
            Sampling(**bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"one {} for the concept each, got \['a cat'\]"):
        DenoisingLoss(model, latents, ["a {}", "a cat"])
    with pytest.raises(InvalidInput, match=r"expected latents \[n, 4, h, w\]"):
        DenoisingLoss(model, torch.zeros(2, 3, 8, 8), SENTENCES)
    with pytest.raises(InvalidInput, match="needs the mirrored pictures"):
        loss_of(model, latents, flip=0.5)
    with pytest.raises(InvalidInput, match="at least one row"):
        loss_of(model, latents, rows=0)


def test_each_picture_is_spoken_of_where_it_is(model: FrozenModel, latents: Tensor) -> None:
    """A sentence ends with the place of its trial's picture, whichever that is."""
    places = ("on a", "", "b")
    sampling = Sampling(draws=7, templates=2)
    objective = DenoisingLoss(model, latents, ["a {}", "{}"], sampling, places=places)
    bare = DenoisingLoss(model, latents, ["a {}", "{}"], sampling)
    told, plain = objective.trials(Draw(0, 2)), bare.trials(Draw(0, 2))
    assert torch.equal(told.noisy, plain.noisy)
    assert len(told.templates) == len(set(told.templates)) <= 6
    draw = Draw(0, 2).generator("pictures")
    pictures = torch.cat([torch.randperm(3, generator=draw) for _ in range(3)])[:7].tolist()
    for j, picture in enumerate(pictures):
        sentence = plain.templates[int(plain.sentence[j])]
        assert told.templates[int(told.sentence[j])] == f"{sentence} {places[picture]}".strip()
    with pytest.raises(InvalidInput, match="expected 3 places"):
        DenoisingLoss(model, latents, ["a {}"], places=("on a",))
