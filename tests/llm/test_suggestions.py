"""Substitutes from a language model: what is asked, what is kept, and how words use them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiller.core.errors import InvalidInput, LLMError, TillerNotice
from tiller.llm import OpenAIChat, optional_suggestions, suggestions
from tiller.llm.suggest import TIMEOUT, _read, _timeout, _words
from tiller.testing.fake_server import Answer
from tiller.words import negative_substitutions, positive_substitutions

PROMPT = "Two red cats near an ice cream van"


def test_one_request_and_at_most_n_a_word(serve: Any) -> None:
    answer = {"red": ["crimson", "scarlet", "ruby"], "cats": ["kitties"], "ice cream": ["gelato"]}
    server, chat = serve([json.dumps(answer)])
    found = suggestions(PROMPT, "synonyms", 2, chat)
    assert found == {"red": ["crimson", "scarlet"], "cats": ["kitties"], "ice cream": ["gelato"]}
    (body,) = server.requests
    (message,) = body["messages"]
    assert message["role"] == "user", "templates without a system role are common"
    assert message["content"].endswith(f"The prompt: {PROMPT}")
    assert "up to 2 words" in message["content"]


def test_the_directions_are_asked_apart(serve: Any) -> None:
    server, chat = serve(['{"red": ["crimson"]}', '{"red": ["blue"]}'])
    assert suggestions(PROMPT, "synonyms", 5, chat) == {"red": ["crimson"]}
    assert suggestions(PROMPT, "antonyms", 5, chat) == {"red": ["blue"]}
    first, second = (body["messages"][0]["content"] for body in server.requests)
    assert "synonyms" in first
    assert "must not show" in second


def test_what_cannot_be_used_is_left_out(serve: Any) -> None:
    answer = {
        "RED": [
            "red",
            "Red",
            " crimson ",
            "crimson",
            "a\nb",
            "\x1b[31m",
            "",
            "!",
            "x" * 41,
            "a b c d e",
        ],
        "dog": ["puppy"],
        "an": [],
        "near van": ["by"],
        "": ["empty"],
    }
    _, chat = serve([json.dumps(answer)])
    assert suggestions(PROMPT, "synonyms", 5, chat) == {"red": ["crimson", "a b"]}


def test_an_envelope_is_opened(serve: Any) -> None:
    _, chat = serve(['{"synonyms": {"red": ["crimson"]}}'])
    assert suggestions(PROMPT, "synonyms", 5, chat) == {"red": ["crimson"]}


@pytest.mark.parametrize(
    "wrong",
    [
        '{"red": "crimson"}',
        '{"red": [1]}',
        '{"red": null}',
        '{"word": "red", "substitutes": ["crimson"]}',
        '{"dog": ["puppy"]}',
        '{"red": ["red"]}',
        '[{"red": ["crimson"]}]x'.replace("{", "").replace("}", ""),
    ],
)
def test_a_wrong_form_is_asked_for_again(serve: Any, wrong: str) -> None:
    server, chat = serve([wrong, '{"red": ["crimson"]}'])
    assert suggestions(PROMPT, "synonyms", 5, chat) == {"red": ["crimson"]}
    assert "That cannot be used: " in server.requests[1]["messages"][2]["content"]


def test_an_empty_object_is_an_answer(serve: Any) -> None:
    _, chat = serve(["{}"])
    assert suggestions("the", "synonyms", 5, chat) == {}


@pytest.mark.parametrize("prompt", ["", "  ", "3 + 4", "🐱", "_"])
def test_a_prompt_without_letters_costs_no_request(serve: Any, prompt: str) -> None:
    server, chat = serve([])
    assert suggestions(prompt, "synonyms", 5, chat) == {}
    assert server.requests == []


def test_bad_arguments(serve: Any) -> None:
    _, chat = serve([])
    with pytest.raises(InvalidInput, match="n >= 1"):
        suggestions(PROMPT, "synonyms", 0, chat)
    with pytest.raises(InvalidInput, match="synonyms or antonyms"):
        suggestions(PROMPT, "homonyms", 5, chat)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no LLM server is configured"):
        suggestions(PROMPT, "synonyms", 5)


def test_the_configured_model_is_asked_by_default(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = serve(['{"red": ["crimson"]}'])
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    assert suggestions(PROMPT, "synonyms", 5) == {"red": ["crimson"]}


def test_a_failing_server_costs_the_rung_and_a_notice(serve: Any) -> None:
    _, chat = serve([Answer("down", status=500)], max_retries=0)
    with pytest.warns(TillerNotice, match=r"no synonyms from the LLM.*status 500 \(down\)"):
        assert optional_suggestions(PROMPT, "synonyms", 5, chat) is None
    with pytest.raises(LLMError, match="status 500"):
        suggestions(PROMPT, "synonyms", 5, chat)


def test_a_hanging_server_costs_no_more_than_the_time_that_is_set(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = serve([Answer('{"red": ["crimson"]}', delay=1.5)] * 3)
    for name, value in {**server.environment, "TILLER_LLM_TIMEOUT": "0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(TillerNotice, match=r"no answer in 0\.1 s, in 3 tries; allow more time"):
        assert optional_suggestions(PROMPT, "synonyms", 5) is None
    monkeypatch.setenv("TILLER_LLM_TIMEOUT", "20")
    server.script = ['{"red": ["crimson"]}'] * 4
    assert suggestions(PROMPT, "synonyms", 5) == {"red": ["crimson"]}


@pytest.mark.parametrize("said", ["soon", "0", "-1", "inf", "nan"])
def test_a_time_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("TILLER_LLM_TIMEOUT", said)
    with pytest.raises(
        InvalidInput, match=f"TILLER_LLM_TIMEOUT must be .* got '{said}'; .* for 30"
    ):
        suggestions(PROMPT, "synonyms", 5)


def test_its_own_time_is_shorter_than_that_for_whole_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TILLER_LLM_TIMEOUT", raising=False)
    assert _timeout() == TIMEOUT < OpenAIChat("m").timeout


def test_what_the_user_can_mend_is_an_error_all_the_same(serve: Any) -> None:
    _, chat = serve([Answer("who?", status=401)])
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY"):
        optional_suggestions(PROMPT, "synonyms", 5, chat)


def test_words_take_them_as_a_rung_of_the_ladder(serve: Any) -> None:
    answer = {"labradoodle": ["poodle mix"], "green": ["emerald green"]}
    _, chat = serve([json.dumps(answer), '{"labradoodle": ["kitten"]}'])
    prompt = "a green labradoodle"
    space = positive_substitutions(prompt, n=5, llm=suggestions(prompt, "synonyms", 5, chat))
    options = {slot.word: [(o.text, o.source) for o in slot.options] for slot in space.slots}
    assert options["labradoodle"] == [("poodle mix", "llm")], "no dictionary has it"
    assert ("emerald green", "llm") in options["green"]
    llm = suggestions(prompt, "antonyms", 5, chat)
    negative = negative_substitutions(prompt, n=5, library=0, llm=llm)
    slot = next(slot for slot in negative.slots if slot.word == "labradoodle")
    assert [option.text for option in slot.options] == ["kitten"]


@given(
    st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=12), max_size=5), max_size=5),
    st.integers(1, 3),
)
def test_whatever_comes_only_words_of_the_prompt_get_short_new_texts(
    tree: dict[str, Any], n: int
) -> None:
    try:
        found = _read(tree | {"Red": ["crimson", "ruby"]}, _words(PROMPT), n)
    except ValueError:
        return
    assert found["red"][0] == "crimson"
    for word, texts in found.items():
        assert word in PROMPT.lower()
        assert 1 <= len(texts) <= n
        assert len({text.lower() for text in texts} | {word}) == len(texts) + 1
        assert all(text.isprintable() and text == text.strip() for text in texts)
