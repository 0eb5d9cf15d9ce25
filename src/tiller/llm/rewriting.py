"""Whole prompts from a language model that sees what the earlier ones were worth.

The history is said with the best last, so that the model continues it; without scores that differ
it is a plain request for better prompts.

Source: Mañas et al. 2024, *Improving text-to-image consistency via automatic prompt optimization*
(OPT2I), section 2.2: a task description and the best prompts with their scores, in one request a
round. The words of the request are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiller.core.errors import InvalidInput
from tiller.llm.base import Chat, Message
from tiller.llm.openai_chat import open_chat
from tiller.llm.structured import ask_json

MOST_LETTERS = 400
"""Of a proposal: about 77 tokens, what the text encoders of Stable Diffusion read."""

Scored = tuple[str, float]


def rewrite(
    prompt: str,
    history: Sequence[Scored],
    n: int,
    chat: Chat | None = None,
    *,
    kept: int = 5,
    temperature: float = 1.0,
    seed: int | None = None,
) -> list[str]:
    """One to `n` new prompts for the picture that `prompt` asks for.

    Args:
        prompt: the user's words, whose meaning is to stay.
        history: prompts that were tried, with their scores; higher is better. None of them is
            proposed again.
        n: proposals at most; fewer where the model gave fewer that are new.
        chat: whom to ask; the environment's model by default (`open_chat`).
        kept: how many of the history's best the model is told of.
        temperature, seed: of the model's sampling.

    Raises:
        InvalidInput: n or kept is below 1, or no server is configured.
        LLMError: no answer that can be used.

    Example:
        >>> rewrite("a red cat", [("a red cat", 0.71)], 1)              # doctest: +SKIP
        ['a photo of a bright red cat sitting in the centre']
    """
    if n < 1 or kept < 1:
        raise InvalidInput(
            f"expected n >= 1 prompts and kept >= 1 of the history, got {n=} {kept=}"
        )
    tried = {_plain(text).lower() for text, _ in history} | {_plain(prompt).lower()}

    def read(tree: dict[str, Any]) -> list[str]:
        return _read(tree, tried, n)

    question = Message("user", _question(prompt, history, n, kept))
    return ask_json(chat or open_chat(), [question], read, temperature=temperature, seed=seed)


def _question(prompt: str, history: Sequence[Scored], n: int, kept: int) -> str:
    best = sorted(history, key=lambda pair: pair[1])[-kept:]
    lines = [f"{_shown(score)}  {_plain(text)}" for text, score in best]
    told = (
        "\nPrompts that were tried for it, each after the score of its picture, the best last "
        "(higher is better):\n" + "\n".join(lines) + "\n"
        if lines
        else ""
    )
    return (
        "You help somebody to get a picture from a text-to-image model.\n"
        f"What the picture must show: {_plain(prompt)}\n{told}\n"
        f"Write {n} new prompt{'s' * (n > 1)} for the same picture that should score higher. Keep "
        "every object, number, colour, property and relation that is asked for, and add no other "
        "objects. You may change the wording and the order, say plainly what the model seems to "
        "overlook, and describe details. Each prompt is one line of at most "
        f"{MOST_LETTERS} characters, differs from those above and from the other new ones.\n"
        'Answer with one JSON object and nothing else: {"prompts": ["...", "..."]}'
    )


def _read(tree: dict[str, Any], tried: set[str], n: int) -> list[str]:
    """The new prompts of an answer; ValueError where there is none, or its form is wrong."""
    texts = tree.get("prompts")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError('it must be an object {"prompts": [...]} with a list of texts')
    found: dict[str, str] = {}
    for text in map(_plain, texts):
        if text and text.isprintable() and len(text) <= MOST_LETTERS and text.lower() not in tried:
            found.setdefault(text.lower(), text)
    if not found:
        raise ValueError(
            f"none of its prompts is new, in one line and at most {MOST_LETTERS} characters long"
        )
    return list(found.values())[:n]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _shown(score: float) -> str:
    """Four significant digits: enough to tell candidates apart."""
    return f"{score:.4g}"
