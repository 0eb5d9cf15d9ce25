"""Spaces of prompts as data: every choice is a prompt, the rest of the prompt survives."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiller.core.errors import InvalidInput
from tiller.words import (
    Choices,
    Slot,
    Substitute,
    Substitutions,
    negative_substitutions,
    positive_substitutions,
)
from tiller.words.choices import parse_choices

PIECES = st.sampled_from(
    [
        *("an", "a", "cat", "owls", "old", "Red", "HOUSE", "two", "sitting", "ice cream"),
        *('   ,(-🐈’"\x00\u0301\n'),
        *(":1.2)", "'s", "<x>"),
    ]
)
PROMPTS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join))


def only(prompt: str, word: str, *texts: str, negative: bool = False) -> Substitutions:
    """A space with one slot of the user's own."""
    options = tuple(Substitute(text, "user", 1.0) for text in texts)
    start = prompt.index(word)
    return Substitutions(prompt, negative, (Slot(word, start, start + len(word), options),))


@pytest.mark.parametrize(
    ("prompt", "word", "text", "result"),
    [
        ("a cat", "cat", "owl", "an owl"),
        ("an owl", "owl", "cat", "a cat"),
        ("An owl", "owl", "cat", "A cat"),
        ("A cat", "cat", "owl", "An owl"),
        ("A CAT", "CAT", "OWL", "AN OWL"),
        ("AN OWL", "OWL", "CAT", "A CAT"),
        ("AN owl", "owl", "cat", "A cat"),
        ("a minute", "minute", "hour", "an hour"),
        ("an animal", "animal", "unicorn", "a unicorn"),
        ("a (cat:1.2)", "cat", "owl", "an (owl:1.2)"),
        ("a  cat", "cat", "owl", "an  owl"),
        ("vitamin-a cat", "cat", "owl", "vitamin-a owl"),
        ("the cat", "cat", "owl", "the owl"),
        ("a black cat", "cat", "owl", "a black owl"),
        ("pizza cat", "cat", "owl", "pizza owl"),
        ("an a cat", "cat", "owl", "an an owl"),
        ("a big  (cat:1.2), 🐈, “a cat”\x00", "cat", "owl", "a big  (owl:1.2), 🐈, “a cat”\x00"),
    ],
)
def test_a_word_is_replaced_and_its_article_repaired(
    prompt: str, word: str, text: str, result: str
) -> None:
    space = only(prompt, word, text)
    assert space.text([1]) == result
    assert space.text([0]) == prompt


def test_an_article_before_a_word_that_stays_is_left_alone() -> None:
    space = only("an cat and a owl near a dog", "dog", "fox")
    assert space.text([1]) == "an cat and a owl near a fox"


@settings(deadline=None, max_examples=60)
@given(PROMPTS)
def test_the_choice_of_zeros_is_the_prompt(prompt: str) -> None:
    space = positive_substitutions(prompt, n=2)
    assert space.text([0] * len(space.slots)) == prompt


@settings(deadline=None, max_examples=60)
@given(PROMPTS, st.integers(0, 30))
def test_everything_but_the_word_and_its_article_survives(prompt: str, which: int) -> None:
    space = positive_substitutions(prompt, n=2)
    if not space.slots:
        return
    at = which % len(space.slots)
    slot = space.slots[at]
    text = space.text([int(i == at) for i in range(len(space.slots))])
    assert text.endswith(slot.options[0].text + prompt[slot.end :])
    before = text.removesuffix(slot.options[0].text + prompt[slot.end :])
    same = prompt[: slot.start]
    assert before == same or before.split()[-1].strip("([{\"“‘'").lower() in ("a", "an")
    assert [slot.word for slot in space.slots] == [prompt[s.start : s.end] for s in space.slots]


def test_the_size_counts_the_texts() -> None:
    space = positive_substitutions("a black cat", n=3)
    sizes = [range(slot.size) for slot in space.slots]
    texts = {space.text(choice) for choice in product(*sizes)}
    assert space.size == len(texts) == 16


def test_inflection_and_capitals_are_carried() -> None:
    space = positive_substitutions("Cats DESCENDING", n=8)
    texts = {option.text for slot in space.slots for option in slot.options}
    assert {"Felines", "FALLING"} <= texts


def test_a_plural_owner_keeps_its_ending() -> None:
    space = positive_substitutions("the women's hats", n=3)
    assert space.slots[0].word == "women's"
    assert all(option.text.endswith("s'") for option in space.slots[0].options)
    kitties = only("the cats' hats", "cats'", "geese's")
    assert kitties.text([1]) == "the geese's hats"


def test_a_negative_joins_what_is_chosen() -> None:
    space = negative_substitutions("a black cat", n=2, library=2)
    assert [slot.word for slot in space.slots] == ["black", "cat", "library 1", "library 2"]
    assert space.text([0, 0, 0, 0]) == ""
    assert space.text([1, 0, 0, 0]) == "white"
    chosen = space.text([1, 1, 1, 0]).split(", ")
    assert chosen == ["white", "dog", space.slots[2].options[0].text]
    assert {option.source for option in space.slots[2].options} == {"library"}


def test_the_same_word_is_said_once() -> None:
    space = negative_substitutions("a red cat and a red dog", n=1, library=0)
    red = [i for i, slot in enumerate(space.slots) if slot.word == "red"]
    assert len(red) == 2
    assert space.text([int(i in red) for i in range(len(space.slots))]).count(",") == 0


def test_no_negative_is_a_word_that_is_wanted() -> None:
    """ "black" and "dog" are the antonyms of words of this prompt, and are wanted."""
    space = negative_substitutions("a white cat and a black dog", library=0)
    texts = {option.text for slot in space.slots for option in slot.options}
    assert not texts & {"white", "cat", "black", "dog"}


@pytest.mark.parametrize(
    "prompt", ["", "the of a", "qwxzy", "🐈🐈", "   ", "\x00", '"a red cat" 8k']
)
def test_a_space_of_size_one_is_a_space(prompt: str) -> None:
    space = positive_substitutions(prompt) if "cat" not in prompt else only(prompt, "8k")
    assert space.size == 1
    assert space.text([0] * len(space.slots)) == prompt


@pytest.mark.parametrize("choice", [[], [0, 0, 0], [9, 0], [-1, 0]])
def test_a_choice_that_does_not_fit_is_refused(choice: list[int]) -> None:
    space = positive_substitutions("black cats", n=2)
    with pytest.raises(InvalidInput, match="one option of each slot"):
        space.text(choice)


def test_n_below_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="n >= 1"):
        positive_substitutions("a cat", n=0)
    with pytest.raises(InvalidInput, match="n >= 1"):
        negative_substitutions("a cat", n=-1)


def test_it_describes_itself() -> None:
    text = negative_substitutions("a black cat", n=2, library=0).describe()
    assert text.splitlines() == [
        "negative of 'a black cat'",
        "  black  - | white (wordnet-antonym), gray (wordnet-co-hyponym)",
        "  cat    - | dog (wordnet-co-hyponym), fox (wordnet-co-hyponym)",
        "3 x 3 = 9 prompts",
    ]
    assert positive_substitutions("the").describe().splitlines()[-1] == (
        "nothing to choose = 1 prompt"
    )


def test_what_a_language_model_suggests_has_its_rung() -> None:
    said = {"Cat": ["mouser", "purring friend"], "labradoodle": ["poodle mix"], "owl": ["bird"]}
    space = positive_substitutions("a CAT and a labradoodle", llm=said)
    cat, hybrid = space.slots
    assert [o.text for o in cat.options if o.source == "llm"] == ["MOUSER", "PURRING FRIEND"]
    assert [(o.text, o.source) for o in hybrid.options] == [("poodle mix", "llm")]


def choices(**parts: object) -> Choices:
    return parse_choices(parts)


def test_kept_words_have_no_slot() -> None:
    space = positive_substitutions("two Cats near a dog", choices=choices(keep=["cat", "two"]))
    assert [slot.word for slot in space.slots] == ["dog"]


def test_vetoed_candidates_give_way_to_the_next() -> None:
    plain = positive_substitutions("a cat", n=3).slots[0].options
    vetoed = choices(synonyms={"veto": [plain[0].text.upper()]})
    changed = positive_substitutions("a cat", n=3, choices=vetoed).slots[0].options
    assert plain[0].text not in {option.text for option in changed}
    assert changed[:2] == plain[1:]
    assert len(changed) == 3


def test_pinned_and_added_candidates_come_first() -> None:
    mine = choices(
        synonyms={"pin": {"CATS": ["moggies", "mousers"]}, "add": {"cat": ["felines", "kitties"]}}
    )
    (slot,) = positive_substitutions("Cats", n=5, choices=mine).slots
    assert [(o.text, o.source) for o in slot.options[:4]] == [
        ("Moggies", "user"),
        ("Mousers", "user"),
        ("Felines", "user"),
        ("Kitties", "user"),
    ]
    assert len(slot.options) == 5
    (slot,) = positive_substitutions("Cats", n=1, choices=mine).slots
    assert [o.text for o in slot.options] == ["Moggies", "Mousers"]


def test_a_word_that_no_dictionary_knows_can_be_given_options() -> None:
    mine = choices(antonyms={"add": {"labradoodle": ["house cat"]}})
    (slot,) = negative_substitutions("a labradoodle", library=0, choices=mine).slots
    assert slot.options[0].text == "house cat"


def test_the_library_follows_the_users_choices() -> None:
    mine = choices(library={"veto": ["WATERMARK"], "add": ["double exposure"]})
    space = negative_substitutions("", choices=mine)
    texts = [option.text for slot in space.slots for option in slot.options]
    assert "watermark" not in texts
    assert texts[0] == "double exposure"
