"""Texts as points: every text there and back, what it is encoded to, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.models import FrozenModel, load_model
from tiller.spaces.texts import Texts
from tiller.testing.fake_pipeline import fake_pipeline

LETTERS = st.characters(min_codepoint=1, max_codepoint=0x10FFFF)


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return load_model(fake_pipeline())


@pytest.fixture(scope="module")
def space(model: FrozenModel) -> Texts:
    noise = torch.arange(2.0)[:, None, None, None, None].expand(2, 1, 4, 8, 8)
    return Texts(model, noise, "a cat", "blurry", length=20)


@given(texts=st.lists(st.text(LETTERS, max_size=20), min_size=1, max_size=4))
def test_every_text_comes_back(space: Texts, texts: list[str]) -> None:
    z = space.points(texts)
    assert z.shape == (len(texts), 20)
    assert space.texts(z) == texts
    assert torch.equal(space.canonical(z), z)


def test_nothing_after_the_first_zero_is_read(space: Texts) -> None:
    z = space.points(["a cat", "a dog"])
    z[0, 10] = ord("!")
    assert space.texts(z) == ["a cat", "a dog"]
    assert torch.equal(space.canonical(z), space.points(["a cat", "a dog"]))


def test_samples_are_the_users_prompt(space: Texts) -> None:
    rng = Stream(3)
    assert space.texts(space.sample(2, rng)) == ["a cat", "a cat"]
    assert rng.position == 2


def test_each_text_meets_each_noise(space: Texts, model: FrozenModel) -> None:
    x = space.decode(space.points(["a dog", "an owl", ""]))
    assert x.prompts == ("a dog", "a dog", "an owl", "an owl", "", "")
    assert x.negative_prompts == ("blurry",) * 6
    assert x.noise[:, 0, 0, 0, 0].tolist() == [0.0, 1.0] * 3
    expected = model.encode(x.prompts, x.negative_prompts)
    assert torch.equal(x.conditioning.prompt_embeds, expected.prompt_embeds)
    assert expected.negative_prompt_embeds is not None
    assert x.conditioning.negative_prompt_embeds is not None
    assert torch.equal(x.conditioning.negative_prompt_embeds, expected.negative_prompt_embeds)


def test_a_text_beyond_the_encoder_is_cut_there_without_a_word(space: Texts) -> None:
    long, longer = space.decode(space.points(["b" * 19, "b" * 20])).conditioning.prompt_embeds[::2]
    assert torch.equal(long, longer)


def test_half_a_surrogate_is_drawn_as_a_question_mark(space: Texts) -> None:
    odd, mark = space.decode(space.points(["\ud800", "?"])).conditioning.prompt_embeds[::2]
    assert torch.equal(odd, mark)


def test_the_journal_says_what_was_tried(space: Texts) -> None:
    notes = space.notes(space.points(["a dog", "an owl"]), torch.tensor([0.25, 0.5]))
    assert notes["candidates"][1] == {
        "prompt": "an owl",
        "negative_prompt": "blurry",
        "score": 0.5,
    }
    assert space.describe() == "texts of at most 20 letters, from 'a cat'"


def test_a_long_prompt_of_the_user_has_room(model: FrozenModel) -> None:
    prompt = "cat " * 200
    space = Texts(model, torch.zeros(1, 1, 4, 8, 8), prompt, length=20)
    assert space.texts(space.sample(1, Stream(0))) == [prompt]


@pytest.mark.parametrize("text", ["b" * 21, "a\0b"])
def test_what_does_not_fit_is_refused(space: Texts, text: str) -> None:
    with pytest.raises(InvalidInput, match="at most 20 letters without NUL"):
        space.points(["a cat", text])


def test_bad_arguments(model: FrozenModel) -> None:
    with pytest.raises(InvalidInput, match=r"noise must be \[S, slots, C, h, w\]"):
        Texts(model, torch.zeros(1, 4, 8, 8), "a cat")
    with pytest.raises(InvalidInput, match="length must be at least 1"):
        Texts(model, torch.zeros(1, 1, 4, 8, 8), "a cat", length=0)
