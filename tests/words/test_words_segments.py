"""A prompt in stretches says what the whole text says, to a reader and to a tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from tiller.models.bundled import weights_dir
from tiller.testing.fake_pipeline import fake_tokenizer
from tiller.words import negative_substitutions, positive_substitutions
from tiller.words.choices import parse_choices
from tiller.words.segments import listed, segments
from tiller.words.substitutions import Substitutions

PROMPTS = [
    "a red cat and a blue dog",
    "An owl",
    "AN ORANGE CAT NEAR A HOUSE",
    "A (red) cat, an (orange:1.2) dog!",
    "the cats' owner: a dog's hat",
    "two cats'.an owl",
    "red/blue birds, old-fashioned house...",
    "a well-known cat,dog;bird",
    'a sign "a red cat" and a  dog\n in a house',
    "photo of a happy child near the house, 8k, <lora:x:1>",
    "xyzzy",
    "🐱 cat 🐶",
    "an hour in a black hole",
]


@cache
def tokenizers() -> list[Any]:
    return [CLIPTokenizer.from_pretrained(weights_dir() / "tokenizer"), fake_tokenizer()]


def space_of(prompt: str, **choices: Any) -> Substitutions:
    return positive_substitutions(prompt, n=4, choices=parse_choices(choices))


def drawn(space: Substitutions, seed: int, k: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [int(torch.randint(slot.size, (), generator=generator)) for slot in space.slots]
        for _ in range(k)
    ]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_joined_stretches_are_the_text_also_for_a_tokenizer(prompt: str) -> None:
    space = space_of(prompt)
    parts = segments(space)
    for choice in [[0] * len(space.slots), *drawn(space, 3, 12)]:
        chosen = [s.wordings[0 if s.slot is None else choice[s.slot]] for s in parts]
        assert "".join(chosen) == space.text(choice)
        for tokenizer in tokenizers():
            ids = tokenizer([one.strip() for one in chosen], add_special_tokens=False).input_ids
            whole = tokenizer(space.text(choice), add_special_tokens=False, verbose=False).input_ids
            assert [token for one in ids for token in one] == whole


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(
        st.sampled_from(
            ["a", "an", "red", "cat", "dogs'", "owl's", "(old", "house)", "near", ".", ",", "the"]
        ),
        min_size=1,
        max_size=9,
    ),
    gaps=st.lists(st.sampled_from([" ", "  ", ", ", "/", "\n", ""]), min_size=8, max_size=8),
    added=st.sampled_from(["moggy", "an ocelot", "ocelot!", "'tis", "42", "cat-like"]),
    seed=st.integers(0, 99),
)
def test_for_any_text_and_any_substitutes(
    words: list[str], gaps: list[str], added: str, seed: int
) -> None:
    prompt = "".join(word + gap for word, gap in zip(words, [*gaps, ""], strict=False))
    space = space_of(prompt, synonyms={"add": {"cat": [added], "owl": [added]}})
    parts = segments(space)
    assert sorted(s.slot for s in parts if s.slot is not None) == list(range(len(space.slots)))
    for choice in drawn(space, seed, 4):
        chosen = [s.wordings[0 if s.slot is None else choice[s.slot]] for s in parts]
        assert "".join(chosen) == space.text(choice)


def test_the_article_goes_with_its_word() -> None:
    space = space_of("a cat", synonyms={"pin": {"cat": ["ocelot"]}})
    (only,) = segments(space)
    assert only.wordings[:2] == ("a cat", "an ocelot")


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), own=st.sampled_from(["", "blurry", "low quality,", "  "]))
def test_a_list_says_what_the_negative_prompt_says(seed: int, own: str) -> None:
    space = negative_substitutions("a red cat and a blue dog", n=3, library=2)
    (choice,) = drawn(space, seed, 1)
    chosen = [s.options[o - 1].text if o else "" for s, o in zip(space.slots, choice, strict=True)]
    text = listed(chosen)
    assert text == space.text(choice)
    whole = listed(chosen, own)
    assert whole == own if not text else whole.endswith(text)
    assert ",," not in whole
    assert whole.startswith(own.strip().rstrip(","))
