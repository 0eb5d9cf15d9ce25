"""Substitutes for the words of a prompt from a language model: the LLM rung of the ladder.

    positive_substitutions(prompt, llm=suggestions(prompt, "synonyms", 5))

One request a prompt. What comes back is used only where it can be: for words of the prompt, at most
n a word, plain short texts; the ladder gives them its own quality and the user's choices prevail.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff), section 4.2:
substitutes from a dictionary or from ChatGPT. The words of the request are ours.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable
from typing import Any, Literal

from tiller.core.errors import InvalidInput, LLMError, TillerNotice
from tiller.llm.base import Chat, Message
from tiller.llm.openai_chat import open_chat
from tiller.llm.structured import ask_json

Direction = Literal["synonyms", "antonyms"]

TIMEOUT = 30.0
"""Seconds that one answer may take where TILLER_LLM_TIMEOUT does not say: a search has other words,
and need not wait for these as long as for whole prompts."""

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_MOST_WORDS = 4  # of a substitute
_MOST_LETTERS = 40

_ASKED = {
    "synonyms": (
        "words or short phrases that could stand in its place and leave what the picture shows as "
        "it is: synonyms first, then near synonyms, in the same grammatical form (number, tense)"
    ),
    "antonyms": (
        "words or short phrases for what the picture must not show in its place: opposites first, "
        "then things or qualities of the same kind that would be wrong (for a colour other "
        "colours, for an animal other animals)"
    ),
}


def suggestions(
    prompt: str, direction: Direction, n: int, chat: Chat | None = None
) -> dict[str, list[str]]:
    """At most `n` substitutes for each content word of a prompt, best first.

    Args:
        prompt: of a picture.
        direction: words that keep the meaning, or words that turn it.
        n: at most so many a word.
        chat: whom to ask; by default the environment's model (`open_chat`), each of whose answers
            may take TILLER_LLM_TIMEOUT seconds.

    Returns:
        Words or phrases of the prompt, in lower case, with their substitutes: what the argument
        `llm` of `tiller.words.positive_substitutions` and `negative_substitutions` takes. Empty for
        a prompt without letters, which costs no request.

    Raises:
        InvalidInput: n is below 1, no server is configured, or TILLER_LLM_TIMEOUT is no time.
        LLMError: no answer that can be used; `optional_suggestions` goes on without.

    Example:
        >>> suggestions("a red cat", "synonyms", 2)                     # doctest: +SKIP
        {'red': ['crimson', 'scarlet'], 'cat': ['feline', 'kitty']}
    """
    if n < 1:
        raise InvalidInput(f"expected n >= 1 substitutes a word, got {n=}")
    if direction not in _ASKED:
        raise InvalidInput(f"direction must be synonyms or antonyms, got {direction!r}")
    words = _words(prompt)
    if not words:
        return {}

    def read(tree: dict[str, Any]) -> dict[str, list[str]]:
        return _read(tree, words, n)

    question = Message("user", _question(prompt, direction, n))
    chat = chat or open_chat(timeout=_timeout())
    return ask_json(chat, [question], read, temperature=0.0, seed=0)


def optional_suggestions(
    prompt: str, direction: Direction, n: int, chat: Chat | None = None
) -> dict[str, list[str]] | None:
    """`suggestions`, or None and a notice where the server fails: the ladder has other rungs.

    Raises:
        InvalidInput: n is below 1, no server is configured, or it refuses the key or the model.
    """
    try:
        return suggestions(prompt, direction, n, chat)
    except LLMError as error:
        warnings.warn(
            f"no {direction} from the LLM, the dictionary's alone are used: {error}",
            TillerNotice,
            stacklevel=2,
        )
        return None


def _timeout() -> float:
    """Seconds that one answer may take."""
    said = os.environ.get("TILLER_LLM_TIMEOUT", "").strip()
    try:
        seconds = float(said) if said else TIMEOUT
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InvalidInput(
            f"TILLER_LLM_TIMEOUT must be a positive number of seconds, got {said!r}; set "
            f"it to one, or unset it for {TIMEOUT:g}"
        )
    return seconds


def _question(prompt: str, direction: Direction, n: int) -> str:
    return (
        "Below is a prompt for a text-to-image model. For each word of it that says what is to be "
        "seen (nouns, adjectives, verbs of action; no articles, prepositions, pronouns or "
        f'auxiliaries) give up to {n} {_ASKED[direction]}. Fixed phrases such as "ice cream" '
        "count as one word. Write each substitute so that it fits where the word stands, without "
        f"an article and in at most {_MOST_WORDS} words.\n"
        "Answer with one JSON object and nothing else: its keys are words of the prompt as they "
        "stand there, its values are lists of texts, best first. The form, for a prompt about a "
        'big boat: {"big": ["...", "..."], "boat": ["..."]}\n\n'
        f"The prompt: {prompt}"
    )


def _words(prompt: str) -> list[str]:
    return [found.lower() for found in _WORD.findall(prompt)]


def _read(tree: dict[str, Any], words: list[str], n: int) -> dict[str, list[str]]:
    """The usable part of an answer; ValueError where nothing in it is, or its form is wrong."""
    if len(tree) == 1 and isinstance(only := next(iter(tree.values())), dict):
        tree = only  # {"synonyms": {...}}: an envelope that small models like
    for word, texts in tree.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the value of {word!r} must be a list of texts")
    found: dict[str, list[str]] = {}
    for word, texts in tree.items():
        name = " ".join(word.lower().split())
        if _is_part(_words(name), words) and name not in found:
            found[name] = _usable(texts, name)[:n]
    found = {word: texts for word, texts in found.items() if texts}
    if tree and not found:
        raise ValueError(
            "none of its keys is a word of the prompt with a usable substitute; use the words as "
            "they stand in the prompt as keys, and other words as values"
        )
    return found


def _is_part(phrase: list[str], words: list[str]) -> bool:
    """Whether the words of a phrase stand next to each other in the prompt."""
    k = len(phrase)
    return k > 0 and any(words[i : i + k] == phrase for i in range(len(words) - k + 1))


def _usable(texts: Iterable[str], word: str) -> list[str]:
    """Short printable texts other than the word, each once."""
    kept: dict[str, str] = {}
    for text in texts:
        plain = " ".join(text.split())
        short = len(plain) <= _MOST_LETTERS and len(plain.split()) <= _MOST_WORDS
        if short and plain.isprintable() and _WORD.search(plain) and plain.lower() != word:
            kept.setdefault(plain.lower(), plain)
    return list(kept.values())
