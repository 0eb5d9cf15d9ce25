"""The drawn loss: what it draws, what it compares with what, and the start that it chooses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tiller.concepts import initialize
from tiller.concepts.drawn import DrawnLoss
from tiller.concepts.gfti import Gfti
from tiller.concepts.initialize import SKETCHED, lowest, of_words, promising
from tiller.concepts.learn import learn_concept, resume_concept
from tiller.concepts.objective import Sampling
from tiller.concepts.ti import Ti
from tiller.core.budget import metered
from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Autograd, evaluate
from tiller.core.rng import Draw
from tiller.models import FrozenModel, load_model
from tiller.rewards._tower import Tower, tower_for
from tiller.runs.record import read_run
from tiller.spaces.concept import ConceptSpace

SENTENCES = ("a picture of {}", "{}")
PLACES = ("on a blue background", "", "on a red background")


@pytest.fixture(scope="module")
def emoji() -> FrozenModel:
    return load_model("emoji")


@pytest.fixture(scope="module")
def given() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tower(given: Tensor) -> Tower:
    return tower_for("emoji", given)


@pytest.fixture(scope="module")
def space(emoji: FrozenModel) -> ConceptSpace:
    return ConceptSpace([table[320:321].float() for table in emoji.token_embeddings])


def test_with_all_steps_it_draws_what_the_sampler_draws(
    emoji: FrozenModel,
    tower: Tower,
    given: Tensor,
    space: ConceptSpace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And with fewer, it begins at the same noise level."""
    settings = dataclasses.replace(emoji.defaults, num_inference_steps=5)
    monkeypatch.setattr(emoji, "defaults", settings)
    loss = DrawnLoss(emoji, tower, given, SENTENCES, Sampling(draws=1), steps=5)
    few = DrawnLoss(emoji, tower, given, SENTENCES, Sampling(draws=1), steps=2)
    more = DrawnLoss(emoji, tower, given, SENTENCES, Sampling(draws=1), steps=100)
    assert more.steps == list(range(more.path.num_steps))  # no step twice
    assert more.forwards_per_candidate == 2 * more.path.num_steps
    assert loss.steps == [0, 1, 2, 3, 4]
    assert few.steps == [0, 2]
    sketches = loss.sketches(Draw(0, 1))
    word = space.decode(torch.zeros(1, 1, 192))
    with torch.no_grad():
        words = loss.states(word, sketches.templates)
        drawn = loss._drawn(words, sketches.noise)
        negative = emoji.encode_pieces([[""]], [[""]]).negative_prompt_embeds
        told = dataclasses.replace(words, negative_prompt_embeds=negative)
        sampled = emoji.decode(loss.path.run(sketches.noise, told))
        near = tower.embed_images(drawn) @ tower.embed_images(given).T
        found = loss.render(word, Draw(0, 1))
    assert torch.allclose(drawn, sampled, atol=5e-3)
    assert float(found) == pytest.approx(1 - float(near.mean()), abs=1e-5)


def test_a_placed_sentence_is_compared_with_its_picture_and_a_bare_one_with_all(
    emoji: FrozenModel, tower: Tower, given: Tensor
) -> None:
    loss = DrawnLoss(emoji, tower, given, SENTENCES, Sampling(draws=6), steps=1, places=PLACES)
    for round_ in range(3):
        sketches = loss.sketches(Draw(0, round_))
        assert torch.allclose(sketches.weights.sum(1), torch.ones(6))
        for j, row in enumerate(sketches.weights):
            text = sketches.templates[int(sketches.sentence[j])]
            place = next((p for p in PLACES if p and text.endswith(p)), None)
            wanted = torch.full((3,), 1 / 3)
            if place is not None:
                assert (j + round_) % 2 == 0
                wanted = torch.eye(3)[PLACES.index(place)]
            assert torch.allclose(row, wanted)


def test_it_is_billed_and_has_a_gradient(
    emoji: FrozenModel, tower: Tower, given: Tensor, space: ConceptSpace
) -> None:
    z = torch.zeros(2, 1, 192)
    costs, grads = [], []  # of forwards, backwards and images
    for rows in (128, 3):
        sampling = Sampling(draws=2)
        loss = DrawnLoss(emoji, tower, given, SENTENCES, sampling, steps=2, rows=rows)
        with metered() as meter:
            found = evaluate(space, loss, z, Draw(0, 0), Autograd())
        assert found.grad is not None
        grads.append(found.grad)
        costs.append((meter.cost.forwards, meter.cost.backwards, meter.cost.images))
    assert costs == [(16, 16, 4), (16, 16, 4)]  # 2 candidates, 2 drawings, 2 steps, 2 branches
    assert loss.forwards_per_candidate == 8
    assert torch.allclose(grads[0], grads[1], rtol=1e-2, atol=1e-4)
    assert float(grads[0].abs().sum()) > 0
    with pytest.raises(InvalidInput, match="expected 3 places"):
        DrawnLoss(emoji, tower, given, SENTENCES, places=("on a blue background",))


def test_the_start_is_the_word_of_the_lowest_loss(
    emoji: FrozenModel, tower: Tower, space: ConceptSpace
) -> None:
    """Red squares on white: a colour's word draws nearer to them than a black animal's mix."""
    pixels = torch.ones(2, 3, 64, 64)
    pixels[:, 1:, 16:48, 16:48] = 0.1
    loss = DrawnLoss(emoji, tower, pixels, SENTENCES, Sampling(draws=4, templates=2), steps=2)
    names = ["snake", "elephant", "red", "whale"]
    assert lowest(loss, [of_words(emoji, name, 1) for name in names], 0) == names.index("red")
    phrases = ["a black elephant", "a red apple", "a blue whale"]
    starts = [of_words(emoji, phrase, 3) for phrase in phrases]
    assert lowest(loss, starts, 0) == promising(loss, starts, 0)[0] == 1
    assert len(promising(loss, starts * 4, 0)) == SKETCHED


def boxes() -> list[Image.Image]:
    """A red box on three grounds."""
    photos = [Image.new("RGB", (64, 64), ground) for ground in ("white", "yellow", "blue")]
    for photo in photos:
        photo.paste((220, 40, 40), (20, 16, 48, 44))
    return photos


@pytest.mark.parametrize(("subject", "article"), [("object", True), ("style", False)])
def test_a_search_begins_at_a_phrase_of_as_many_words_as_it_has_vectors(
    emoji: FrozenModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subject: str,
    article: bool,
) -> None:
    few = {"TRIALS": 1, "HALVINGS": (1,), "POOL": 12, "BEAM": 3, "PHRASES": 3, "SKETCHED": 2}
    for name, value in few.items():
        monkeypatch.setattr(initialize, name, value)
    monkeypatch.setattr(initialize, "lowest", lambda *_: 1)  # the first after CLIP's mix
    settings = {"popsize": 3, "draws": 1, "sketch_steps": 1, "held_out_draws": 1}
    found = learn_concept(
        emoji, boxes(), "<box>", subject=subject, budget="steps=1", out=tmp_path, **settings
    )
    (began,) = read_run(found.run_dir).spec["init"]
    assert len(began.split()) == len(found.concept.vectors[0]) == 3
    assert (began.split()[0] in ("a", "an")) == article


def test_fields_left_open_are_settled_by_the_model_and_the_loss(
    emoji: FrozenModel, model: FrozenModel
) -> None:
    own = Gfti().settled(emoji)
    assert (own.loss, own.init, own.d, own.popsize, own.stretch) == ("drawn", "best", 16, 16, 0.5)
    papers = Gfti().settled(model)
    assert (papers.loss, papers.init, papers.d, papers.popsize) == ("denoising", "clip", None, 30)
    assert papers.held_out_draws == 64
    assert Gfti(d=7, loss="denoising").settled(emoji).d == 7
    assert Ti().settled(emoji).loss == "denoising"
    assert own.settled(emoji) == own
    assert (own.tokens, papers.tokens, Ti().settled(emoji).tokens) == (3, 1, 1)
    assert [Gfti(init=i).settled(emoji).tokens for i in ("red", "a red apple", "clip")] == [1, 3, 1]
    assert Gfti(tokens=1).settled(emoji).tokens == 1
    with pytest.raises(InvalidInput, match="loss must be one of auto, drawn, denoising"):
        Gfti(loss="perceptual")


@pytest.mark.parametrize("field", [{"flip": 0.5}, {"t_low": 0.2}, {"t_high": 0.8}])
def test_fields_that_the_drawn_loss_does_not_read_are_refused(
    emoji: FrozenModel, field: dict[str, float]
) -> None:
    with pytest.raises(InvalidInput, match=r"belong to loss=denoising, .* or set loss=denoising"):
        Gfti(**field).settled(emoji)
    assert Gfti(**field, loss="denoising").settled(emoji).loss == "denoising"


def test_a_run_of_the_bundled_model_goes_on_bit_for_bit(emoji: FrozenModel, tmp_path: Path) -> None:
    photos = boxes()
    settings = {"popsize": 3, "draws": 1, "sketch_steps": 1, "held_out_draws": 2, "check_every": 1}
    common = settings | {"preview_every": 0, "init": "red"}

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    whole = learn_concept(
        emoji, photos, "<box>", budget="steps=2", out=tmp_path / "whole", **common
    )
    with pytest.raises(KeyboardInterrupt):
        learn_concept(
            emoji, photos, "<box>", budget="steps=2", out=tmp_path / "cut", on_step=stop, **common
        )
    (run,) = (tmp_path / "cut").iterdir()
    again = resume_concept(run, model=emoji)
    assert again.cost.forwards == whole.cost.forwards == 2 * 3 * 1 * 1 * 2
    assert again.cost.images == whole.cost.images == 2 * 3 * 1
    assert (
        again.aside == whole.aside == (1 + 2 + 2 + 2) * 2 * 20 * 2
    )  # e0, two looks, the report: whole drawings
    assert again.loss == whole.loss
    assert torch.equal(again.concept.vectors[0], whole.concept.vectors[0])
