"""Forms carried over, articles by sound, capitals kept; and no pickled model is ever loaded."""

from __future__ import annotations

import pytest
from lemminflect import Inflections, Lemmatizer

from tiller.words.inflection import article, inflect, is_form, readings, with_case_of
from tiller.words.lexicon import Pos, load_lexicon


@pytest.mark.parametrize(
    ("lemma", "pos", "tag", "form"),
    [
        ("feline", "n", "NNS", "felines"),
        ("goose", "n", "NNS", "geese"),
        ("ice cream", "n", "NNS", "ice creams"),
        ("cup of tea", "n", "NNS", "cups of tea"),
        ("daughter-in-law", "n", "NNS", "daughters-in-law"),
        ("German shepherd", "n", "NNS", "German shepherds"),
        ("velociraptor", "n", "NNS", "velociraptors"),
        ("ascend", "v", "VBG", "ascending"),
        ("draw", "v", "VBN", "drawn"),
        ("draw", "v", "VBD", "drew"),
        ("go down", "v", "VBZ", "goes down"),
        ("defenestrate", "v", "VBG", "defenestrating"),
        ("tiny", "a", "JJS", "tiniest"),
        ("beautiful", "a", "JJR", None),
        ("cat", "n", "NN", "cat"),
    ],
)
def test_forms(lemma: str, pos: Pos, tag: str, form: str | None) -> None:
    assert inflect(lemma, pos, tag) == form


@pytest.mark.parametrize(
    ("word", "lemma", "tag"),
    [
        ("cats", ("n", "cat"), "NNS"),
        ("mice", ("n", "mouse"), "NNS"),
        ("descending", ("v", "descend"), "VBG"),
        ("painted", ("v", "paint"), "VBN"),
        ("darker", ("a", "dark"), "JJR"),
        ("jeans", ("n", "jean"), "NNS"),
        ("glasses", ("n", "glasses"), "NN"),
        ("macaws", ("n", "macaw"), "NNS"),
    ],
)
def test_lemmas_of_a_word(word: str, lemma: tuple[Pos, str], tag: str) -> None:
    assert tag in readings(word, load_lexicon())[lemma]


def test_unknown_words_have_no_lemma() -> None:
    assert readings("qwxzyings", load_lexicon()) == {}


def test_comparatives_are_forms() -> None:
    assert is_form("larger")
    assert not is_form("clever")


def test_the_neural_fallback_is_never_loaded() -> None:
    """Its weights are pickles; a word outside the tables takes the regular rules."""
    inflect("qwxzy", "n", "NNS")
    readings("qwxzyed", load_lexicon())
    assert not hasattr(Inflections(), "morph_style_model")
    assert not hasattr(Lemmatizer(), "oov_lemmatizer")


AN = "owl apple hour heirloom honest umbrella uncle unimportant urn eight 8k FBI LCD X-ray éclair"
A = "cat unicorn uniform European ewe one one-eyed once user utensil UFO US Utah ukulele house yak"


@pytest.mark.parametrize(
    ("word", "said"),
    [*((w, "an") for w in AN.split()), *((w, "a") for w in A.split())],
)
def test_articles(word: str, said: str) -> None:
    assert article(word) == said


def test_a_shouted_word_is_no_initials() -> None:
    assert article("FOX") == "an"  # as one spells it out
    assert article("FOX", shouted=True) == "a"


@pytest.mark.parametrize(
    ("original", "word", "cased"),
    [
        ("cat", "feline", "feline"),
        ("Cat", "feline", "Feline"),
        ("CATS", "ice creams", "ICE CREAMS"),
        ("Ice Cream", "frozen dessert", "Frozen Dessert"),
        ("Ice cream", "frozen dessert", "Frozen dessert"),
        ("dog", "German shepherd", "German shepherd"),
        ("X", "cross", "Cross"),
    ],
)
def test_capitals(original: str, word: str, cased: str) -> None:
    assert with_case_of(original, word) == cased
