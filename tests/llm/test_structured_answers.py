"""Answers of a form: found in prose, checked, asked for again, not kept where none is right."""

from __future__ import annotations

from typing import Any

import pytest

from tiller.core.errors import LLMError
from tiller.llm import Message, ask_json
from tiller.llm.structured import parse_object

QUESTION = [Message("user", 'Count to three, as {"count": [...]}')]


def count(tree: dict[str, Any]) -> list[int]:
    if tree.get("count") != [1, 2, 3]:
        raise ValueError('"count" must hold 1, 2, 3')
    return [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": {"b": [1]}}\n```', {"a": {"b": [1]}}),
        ('Sure! Here: {"a": 1}. Do you want {"b": 2}?', {"a": 1}),
        ('With {braces} first, {"a": "}"}', {"a": "}"}),
        ('<think>perhaps {"a": 0}</think>{"a": 1}', {"a": 1}),
        ("{}", {}),
    ],
)
def test_the_object_in_a_text(text: str, found: dict[str, Any]) -> None:
    assert parse_object(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "[1, 2]",
        '{"a": {"b": 1}, "c": ',
        '<think>{"a": 1}',
        "{" * 50_000,
        '{"a":' * 50_000,
        '{"a": ' + "9" * 5000 + "}",
    ],
    ids=range(8),
)
def test_a_text_without_an_object(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_object(text)


def test_a_wrong_answer_is_said_back_with_its_fault(serve: Any) -> None:
    server, chat = serve(["One, two, three.", '{"count": [1, 2]}', '{"count": [1, 2, 3]}'])
    assert ask_json(chat, QUESTION, count) == [1, 2, 3]
    second, third = (body["messages"] for body in server.requests[1:])
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == "One, two, three."
    assert "there is no JSON object in it" in second[2]["content"]
    assert third[1]["content"] == '{"count": [1, 2]}'
    assert '"count" must hold 1, 2, 3' in third[2]["content"]
    assert len(third) == 3, "the conversation does not grow with each try"


def test_the_same_question_replays_from_the_disk(serve: Any) -> None:
    server, chat = serve(["?", '{"count": [1, 2, 3]}'])
    for _ in range(2):
        assert ask_json(chat, QUESTION, count) == [1, 2, 3]
    assert len(server.requests) == 2


def test_three_wrong_answers_are_one_line_and_none_is_kept(serve: Any) -> None:
    server, chat = serve(["x" * 9999, '{"count": 1}', "{", '{"count": [1, 2, 3]}'])
    with pytest.raises(LLMError, match="no usable answer in 3 tries") as caught:
        ask_json(chat, QUESTION, count)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 3
    assert len(server.requests[1]["messages"][1]["content"]) == 2000
    assert ask_json(chat, QUESTION, count) == [1, 2, 3], "asked anew, not read from the disk"
