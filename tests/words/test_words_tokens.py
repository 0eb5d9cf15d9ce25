"""Words of a prompt, with nothing lost: spans, what is left alone, odd characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiller.words.tokens import tokenise


def replaceable(prompt: str) -> list[str]:
    return [token.text for token in tokenise(prompt) if not token.fixed]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red cat", ["a", "red", "cat"]),
        ("(cat:1.2), [dog], {owl|bee}", ["cat", "dog", "owl", "bee"]),
        ("a dog's hat, the dogs' bowls", ["a", "dog", "hat", "the", "dogs", "bowls"]),
        ("a dog’s hat", ["a", "dog", "hat"]),
        ("a wide-angle T-shirt", ["a", "wide-angle", "T-shirt"]),
        ("🐈 cat\u200b\x07owl\tbee", ["cat", "owl", "bee"]),
        ("café cafe\u0301 naïve", ["café", "cafe\u0301", "naïve"]),
        ('a sign that says "KEEP OFF the cat"', ["a", "sign", "that", "says"]),
        ("the words 'don't panic' on a cat's wall", ["the", "words", "on", "a", "cat", "wall"]),
        ("“a cat” and «un chat»", ["and"]),
        ("<lora:cat:0.8> <my-cat> a cat", ["a", "cat"]),
        ("it doesn't fit, 8k, cat_2, @artist #tag 35mm", ["it", "fit"]),
        ("see https://example.org/cat and cat.com or cat", ["see", "and", "or", "cat"]),
        ("", []),
        ("?!... --- 123", []),
    ],
)
def test_words_and_what_is_left_alone(prompt: str, words: list[str]) -> None:
    assert replaceable(prompt) == words


def test_a_prompt_all_in_quotes_is_looked_into() -> None:
    assert replaceable('"a red cat"') == ["a", "red", "cat"]


def test_a_possessive_is_not_part_of_the_word() -> None:
    (cat,) = tokenise("cat's")
    assert (cat.text, cat.start, cat.end, cat.possessive) == ("cat", 0, 3, True)


def test_the_plain_spelling_is_the_lexicons() -> None:
    assert [token.plain for token in tokenise("CAFE\u0301 Cat")] == ["café", "cat"]


PIECES = st.sampled_from(
    ["cat", " ", "'", "’", '"', "-", "s", "🐈", "\u0301", "\x00", "<", ">", "(", ":1.2)", "8k", "É"]
)


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join)))
def test_spans_are_in_order_and_hold_the_text(prompt: str) -> None:
    at = 0
    for token in tokenise(prompt):
        assert at <= token.start < token.end <= len(prompt)
        assert prompt[token.start : token.end] == token.text
        assert prompt[: token.start].endswith(token.gap)
        at = token.end
