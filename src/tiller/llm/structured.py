"""Answers of a form: one JSON object, checked, and asked for again with what was wrong.

No server has to know about schemas: the form stands in the messages, and what comes is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tiller.core.errors import LLMError
from tiller.llm.base import Chat, Message, Request

T = TypeVar("T")

TRIES = 3
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_BRACES = 100  # places where an object may begin, that are tried
_RETURNED = 2000  # characters of a wrong answer that the model sees again


def ask_json(
    chat: Chat,
    messages: Sequence[Message],
    read: Callable[[dict[str, Any]], T],
    *,
    temperature: float | None = None,
    seed: int | None = None,
    tries: int = TRIES,
) -> T:
    """`read` of the JSON object that the model answers with.

    A wrong answer is said back with its fault. If none of the answers is right, none stays cached,
    so that the same question may be asked again.

    Args:
        chat: whom to ask.
        messages: the question; it must describe the object.
        read: turns the object into the result, or raises ValueError with what is wrong, in words
            that help the model.
        temperature, seed: of the model's sampling.
        tries: answers at most.

    Raises:
        LLMError: no answer, or no right one.
    """
    request = Request(tuple(messages), temperature, seed, json=True)
    asked: list[Request] = []
    for _ in range(tries):
        asked.append(request)
        text = chat.reply(request).text
        try:
            return read(parse_object(text))
        except ValueError as error:
            fault = str(error)
        again = Message(
            "user",
            f"That cannot be used: {fault}. Answer again, with the JSON object alone.",
        )
        wrong = Message("assistant", text[:_RETURNED])
        request = replace(request, messages=(*messages, wrong, again))
    for one in asked:
        chat.forget(one)
    raise LLMError(
        f"the LLM gave no usable answer in {tries} tries (the last: {fault}); take a larger model, "
        "or give the command again"
    )


def parse_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text; prose, code fences and thoughts around it are passed over.

    Raises:
        ValueError: there is none.

    Example:
        >>> parse_object('<think>{"a": 0}?</think> Here it is:\\n```json\\n{"a": 1}\\n```')
        {'a': 1}
    """
    text = _THINKING.sub("", text)
    decoder = json.JSONDecoder()
    start, fault = text.find("{"), "there is no JSON object in it"
    for _ in range(_BRACES):
        if start < 0:
            break
        try:
            found, _ = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:  # what is nested in a broken object is not meant
            fault = f"its JSON breaks off or is wrong: {error.msg} at character {error.pos - start}"
            start = text.find("{", max(start + 1, error.pos))
        except RecursionError:
            raise ValueError("its JSON is nested too deeply") from None
        else:
            assert isinstance(found, dict)
            return found
    raise ValueError(fault)
