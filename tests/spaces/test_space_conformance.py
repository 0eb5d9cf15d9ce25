"""Every space that the folder holds passes the shipped suite; a new file needs one line here."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiller.spaces
from tiller.core.rng import Stream
from tiller.core.space import Space, starting_at
from tiller.models.base import Conditioning
from tiller.models.inputs import Inputs
from tiller.models.loader import load_model
from tiller.spaces.affixes import Affixes
from tiller.spaces.concept import ConceptSpace
from tiller.spaces.insertion import AffixedPrompt, Words
from tiller.spaces.lora import Layout, Lora
from tiller.spaces.noise import Noise
from tiller.spaces.product import product
from tiller.spaces.put_back import PutBack
from tiller.spaces.relaxed_words import RelaxedWords
from tiller.spaces.texts import Texts
from tiller.spaces.words import LearnedWords, Wording
from tiller.spaces.words import Words as WordSpace
from tiller.testing.conformance import check_space
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.testing.fakes import FakeBox, FakeChoices
from tiller.words import negative_substitutions, positive_substitutions

CONDITIONING = Conditioning(torch.zeros(1, 3, 5), torch.ones(1, 3, 5))

WORDS = Words.of(Conditioning(torch.ones(1, 7, 4), torch.ones(1, 7, 4)), 3)
NOISE = torch.ones(1, 2, 2, 2, 2)
LAYOUT = Layout(("a.lora_A.weight", "a.lora_B.weight"), ((2, 3), (2, 2)))


def word_space(repeats: int = 1) -> WordSpace:
    prompt = "a red cat"
    positive = positive_substitutions(prompt, n=2)
    negative = negative_substitutions(prompt, n=2, library=1)
    wording = Wording(prompt, "blur", positive, negative)
    return WordSpace(load_model(fake_pipeline()), wording, torch.ones(repeats, 1, 4, 8, 8))


SPACES: dict[str, Callable[[], list[Space[Any]]]] = {
    "affixes": lambda: [
        Affixes(width=8, prefix=2, suffix=3, rank=3),
        Affixes(width=8, prefix=0, suffix=2, rank=3, rotate=False, moves="coefficients"),
        Affixes(width=8, prefix=2, suffix=2, rank=3, form="plain"),
        Affixes(width=8, prefix=2, suffix=4, rank=3, form="release"),
    ],
    "insertion": lambda: [
        AffixedPrompt(Affixes(width=4, prefix=2, suffix=1, rank=2), WORDS, NOISE),
        AffixedPrompt(
            Affixes(width=4, prefix=1, suffix=1, rank=2),
            WORDS,
            NOISE,
            moving=Noise((2, 2, 2, 2), CONDITIONING, trust=1.0),
        ),
    ],
    "lora": lambda: [
        Lora(LAYOUT, Inputs(NOISE, CONDITIONING)),
        Lora(LAYOUT, Inputs(NOISE, CONDITIONING), start=torch.arange(10.0), dtype=torch.float64),
    ],
    "noise": lambda: [Noise((1, 2, 4, 4), CONDITIONING), Noise((3, 2, 4, 4), CONDITIONING)],
    "concept": lambda: [
        ConceptSpace((torch.ones(1, 5),), torch.randn(5, 3)),
        ConceptSpace((torch.ones(2, 5), torch.zeros(2, 3))),
    ],
    "product": lambda: [
        product(FakeBox((2,), dtype=torch.float32), Noise((2, 2, 2, 2), CONDITIONING)),
        product(FakeChoices((3, 3)), FakeChoices((2,))),
    ],
    "texts": lambda: [
        Texts(load_model(fake_pipeline()), torch.ones(2, 1, 4, 8, 8), "a cat", "blurry", length=9)
    ],
    "words": lambda: [
        word_space(),
        word_space(3),
        LearnedWords(word_space(2), torch.linspace(0, 3, 50).expand(5, 50)),
    ],
    "relaxed_words": lambda: [RelaxedWords(word_space()), RelaxedWords(word_space(2), start=0.5)],
    "put_back": lambda: [PutBack(word_space(2), torch.tensor([[1, 0, 2, 1, 7]]), 0.5)],
}


NO_SPACES = {"probability", "norm", "_rotations"}  # measures over a space's points


def test_no_space_is_forgotten() -> None:
    files = {info.name for info in pkgutil.iter_modules(tiller.spaces.__path__)}
    assert files - NO_SPACES == set(SPACES)


@pytest.mark.parametrize("name", SPACES)
def test_space(name: str) -> None:
    for space in SPACES[name]():
        check_space(space)


def test_a_space_with_a_given_start_conforms_too() -> None:
    space = Noise((2, 2, 2, 2), CONDITIONING)
    given = torch.full((2, *space.shape), 0.5)
    started = starting_at(space, given)
    z = started.sample(3, Stream(0))
    assert torch.equal(z[:2], given)
    assert torch.equal(z[2], space.sample(3, Stream(0))[2])
    check_space(started)


def test_equal_seeds_share_x_t_whatever_the_number_of_slots() -> None:
    one, many = (Noise((slots, 4, 8, 8), CONDITIONING) for slots in (1, 20))
    assert torch.equal(one.sample(2, Stream(5))[:, 0], many.sample(2, Stream(5))[:, 0])
