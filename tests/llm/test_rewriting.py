"""Whole prompts from a language model: the history it is told, and what is taken of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tiller.core.errors import InvalidInput, LLMError
from tiller.llm import rewrite
from tiller.llm.rewriting import MOST_LETTERS

PROMPT = "a red cat"


def said(*prompts: object) -> str:
    return json.dumps({"prompts": prompts})


def test_the_history_is_told_best_last_and_only_the_best_of_it(serve: Any) -> None:
    server, chat = serve([said("a crimson cat")])
    history = [("a", 0.5), ("b", 0.91234), ("c", -1.0), ("d", 0.7)]
    rewrite(PROMPT, history, 3, chat, kept=3)
    (message,) = server.requests[0]["messages"]
    text = message["content"]
    assert "must show: a red cat" in text
    assert text[text.index("best last") :].split("\n")[1:4] == ["0.5  a", "0.7  d", "0.9123  b"]
    assert "Write 3 new prompts" in text
    assert server.requests[0]["temperature"] == 1.0


def test_without_a_history_none_is_told(serve: Any) -> None:
    server, chat = serve([said("a crimson cat")])
    assert rewrite(PROMPT, [], 1, chat, seed=4) == ["a crimson cat"]
    text = server.requests[0]["messages"][0]["content"]
    assert "best last" not in text
    assert "Write 1 new prompt for" in text
    assert server.requests[0]["seed"] == 4


def test_only_new_prompts_each_once_and_at_most_n(serve: Any) -> None:
    answer = said(
        *("A  RED cat", "tried  before", "", "a\x00b", "x" * (MOST_LETTERS + 1)),
        *(" a crimson\ncat ", "a Crimson cat", "a scarlet cat", "a ruby cat", "one too many"),
    )
    _, chat = serve([answer])
    found = rewrite(PROMPT, [("Tried before", 0.1)], 3, chat)
    assert found == ["a crimson cat", "a scarlet cat", "a ruby cat"]


@pytest.mark.parametrize(
    "wrong", [said(), said(PROMPT), said(3), '{"prompts": "a cat"}', '{"prompt": ["a cat"]}', "no"]
)
def test_an_answer_without_a_new_prompt_is_asked_for_again(serve: Any, wrong: str) -> None:
    server, chat = serve([wrong, said("a crimson cat")])
    assert rewrite(PROMPT, [], 2, chat) == ["a crimson cat"]
    assert len(server.requests) == 2


def test_three_such_answers_are_an_error(serve: Any) -> None:
    _, chat = serve([said(PROMPT)] * 3)
    with pytest.raises(LLMError, match="none of its prompts is new"):
        rewrite(PROMPT, [], 2, chat)


def test_bad_arguments(serve: Any) -> None:
    for wrong in ({"n": 0}, {"n": 1, "kept": 0}):
        with pytest.raises(InvalidInput, match=r"n >= 1.*kept >= 1"):
            rewrite(PROMPT, [], **wrong)
    with pytest.raises(InvalidInput, match="no LLM server is configured"):
        rewrite(PROMPT, [], 1)
