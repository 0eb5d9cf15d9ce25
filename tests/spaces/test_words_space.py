"""Words as a space: what z says, what counts as the same, what is allowed, what is noted."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.search import search
from tiller.core.space import starting_at
from tiller.models.loader import load_model
from tiller.solvers.random import Random
from tiller.spaces.put_back import PutBack, put_back
from tiller.spaces.words import LearnedWords, Wording, Words, probabilities
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.testing.fakes import FakeMatch
from tiller.words import Slot, Substitute, Substitutions, positive_substitutions
from tiller.words.choices import parse_choices
from tiller.words.similarity import Similarity

MODEL = load_model(fake_pipeline())
NOISE = torch.arange(2.0)[:, None, None, None, None].expand(2, 1, 4, 8, 8)


def slot(name: str, *options: str) -> Slot:
    return Slot(name, 0, 0, tuple(Substitute(text, "library", 0.0) for text in options))


def negatives(*slots: tuple[str, ...]) -> Substitutions:
    return Substitutions("cat", True, tuple(slot(f"s{k}", *s) for k, s in enumerate(slots)))


def synonyms(n: int = 2) -> Substitutions:
    own = parse_choices({"synonyms": {"pin": {"red": ["scarlet"], "cat": ["feline"]}}})
    return positive_substitutions("a red cat", n=n, choices=own)


def words(positive: Any = None, negative: Any = None, **fields: Any) -> Words:
    prompt = positive.prompt if positive else "cat"
    return Words(MODEL, Wording(prompt, "", positive, negative, **fields), NOISE)


def everything(space: Words) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*[range(size) for size in space.choices])))


def test_zeros_are_the_users_own_words_and_rows_are_a_candidates_noises() -> None:
    space = words(synonyms(), negatives(("b", "c")))
    z = torch.tensor([[0, 0, 0], [1, 0, 2]])
    x = space.decode(z)
    assert x.prompts == ("a red cat", "a red cat", "a scarlet cat", "a scarlet cat")
    assert x.negative_prompts == ("", "", "c", "c")
    assert x.noise[:, 0, 0, 0, 0].tolist() == [0, 1, 0, 1]
    expected = MODEL.encode(x.prompts, x.negative_prompts)
    assert torch.equal(x.conditioning.prompt_embeds, expected.prompt_embeds)
    negative = x.conditioning.negative_prompt_embeds
    assert negative is not None
    assert expected.negative_prompt_embeds is not None
    assert torch.equal(negative, expected.negative_prompt_embeds)
    assert "together 27 prompts" in space.describe()
    assert "scarlet (user)" in space.describe()


def test_the_users_negative_prompt_comes_first() -> None:
    wording = Wording("cat", "blurry,", negative=negatives(("b",), ("c",)))
    space = Words(MODEL, wording, NOISE)
    said = [negative for _, negative in space.texts(everything(space))]
    assert said == ["blurry,", "blurry, c", "blurry, b", "blurry, b, c"]


OPTIONS = st.lists(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True), min_size=1, max_size=3
)


@settings(deadline=None, max_examples=40)
@given(OPTIONS)
def test_one_candidate_stands_for_each_text(options: list[list[str]]) -> None:
    space = words(negative=negatives(*map(tuple, options)))
    z = everything(space)
    canonical = space.canonical(z)
    assert space.texts(canonical) == space.texts(z)
    assert torch.equal(space.canonical(canonical), canonical)
    by_text: dict[Any, set[tuple[int, ...]]] = {}
    for text, row in zip(space.texts(z), canonical.tolist(), strict=True):
        by_text.setdefault(text, set()).add(tuple(row))
    assert all(len(rows) == 1 for rows in by_text.values())
    assert len(set().union(*by_text.values())) == len(by_text)


class Silent(Words):
    """Decodes to z itself, for objectives that read it."""

    def decode(self, z: torch.Tensor) -> Any:
        return z


def test_no_text_is_tried_twice_and_all_are() -> None:
    wording = Wording("cat", negative=negatives(("a", "b"), ("b", "a", "c"), ("c", "b")))
    space, problem = Silent(MODEL, wording, NOISE), FakeMatch()
    problem.space = space  # type: ignore[assignment]  # whose score needs its choices alone
    steps = list(search(space, problem, Random(batch=4), Budget(images=200)))
    said = [text for step in steps for text in space.texts(step.z)]
    assert len(said) == len(set(said)) == len(set(space.texts(everything(space))))
    assert "candidates tried that are allowed and different" in str(steps[-1].stopped)


def letters(texts: Any) -> torch.Tensor:
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    return torch.tensor([[text.count(letter) for letter in alphabet] for text in texts])


def test_prompts_that_are_not_similar_enough_are_not_allowed() -> None:
    positive = synonyms(3)
    near = Similarity("a red cat", letters)
    space = words(positive, negatives(("b",)), similarity=near, least=0.9)
    z = everything(space)
    cosines = torch.tensor([float(near([prompt])[0]) for prompt, _ in space.texts(z)])
    assert torch.equal(space.allows(z), cosines >= 0.9)
    assert 0 < int(space.allows(z).sum()) < len(z)
    notes = space.notes(z[:2], torch.tensor([0.5, 1.0]))["candidates"]
    assert notes[1] == {
        "prompt": "a red cat",
        "negative_prompt": "b",
        "says": ["red", "cat", "b"],
        "score": 1.0,
        "similarity": 1.0,
    }
    assert "at least 0.9 similar" in space.describe()
    with pytest.raises(InvalidInput, match="needs a similarity"):
        words(positive, least=0.5)
    with pytest.raises(InvalidInput, match=r"\[S, slots, C, h, w\]"):
        Words(MODEL, Wording("cat"), torch.zeros(1, 4, 8, 8))


def test_how_likely_a_word_is_kept_does_not_depend_on_how_many_substitutes_it_has() -> None:
    chances = probabilities(torch.tensor([[1.5, 0, 0, 0, 0], [1.5, 0, 0, 0, 0]]), (5, 2))
    torch.testing.assert_close(chances[:, 0], torch.full((2,), 1 / (1 + math.exp(-1.5))))
    torch.testing.assert_close(chances.sum(1), torch.ones(2))


def test_learned_words_are_drawn_by_their_probabilities() -> None:
    space = words(negative=negatives(("a", "b", "c"), ("d",)))
    logits = torch.tensor([[1.0, 0.0, 3.0, 0.5], [0.0, 2.0, 9.0, 9.0]])
    learned = LearnedWords(space, logits)
    first = torch.tensor([1.0 + math.log(3), 0.0, 3.0, 0.5]).softmax(0)  # as heavy as three others
    expected = torch.stack([first, torch.cat([logits[1, :2].softmax(0), torch.zeros(2)])])
    torch.testing.assert_close(probabilities(logits, space.choices), expected)
    n = 4000
    z = learned.sample(n, Stream(0))
    for j, size in enumerate(space.choices):
        counts = torch.bincount(z[:, j], minlength=size)[:size] / n
        assert float((counts - expected[j, :size]).abs().max()) < 4 * (0.25 / n) ** 0.5
    assert learned.mode.tolist() == [[2, 1]]
    started = starting_at(learned, learned.mode)
    assert started.sample(3, Stream(0))[0].tolist() == [2, 1]


def test_each_changed_word_is_put_back_and_its_gain_is_the_difference() -> None:
    positive = synonyms()
    space = words(positive, negatives(("b",), ("b", "c")))
    winner = torch.tensor([[1, 0, 1, 2]])
    tried = PutBack(space, winner, 5.0)
    assert [space.texts(row[None])[0] for row in tried.start] == [
        ("a red cat", "b, c"),
        ("a scarlet cat", "c"),
        ("a scarlet cat", "b"),
    ]
    z = tried.sample(2, Stream(0))
    gains = tried.notes(z, torch.tensor([3.0, 6.0]))["gains"]
    assert [(gain["part"], gain["option"], gain["gain"]) for gain in gains] == [
        ("prompt", "scarlet", 2.0),
        ("negative_prompt", "b", -1.0),
    ]
    assert gains[0]["word"] == "red"
    assert (gains[0]["start"], gains[0]["end"]) == (2, 5)
    assert put_back(space, torch.zeros(1, 4).long())[0] == []


def test_what_would_not_be_allowed_is_not_put_back() -> None:
    positive = synonyms()
    space = words(positive, similarity=Similarity("a red cat", letters), least=0.5)
    space.allows = lambda z: z[:, 0] == 1  # type: ignore[method-assign]
    changed, start = put_back(space, torch.tensor([[1, 1]]))
    assert (changed, start.tolist()) == ([1], [[1, 0]])


def test_texts_that_are_cut_are_cut_silently() -> None:
    long = Substitutions("cat", True, (slot("s", "a very long thing to say of a picture"),))
    words(negative=long).decode(torch.tensor([[1]]))  # warnings are errors here
