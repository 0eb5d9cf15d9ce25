"""A prompt in stretches: fixed text, and the wordings that a slot may give it.

What `Substitutions.text` does with whole texts, in parts: where each part's wording is mixed and
not chosen (a relaxation), or shown word by word. A stretch holds the article that goes with its
word, so that "a cat" becomes "an elephant" as one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tiller.words.substitutions import ARTICLE, Slot, Substitutions

_RUNS = re.compile(r"[^\W\d_]+|\d|\s+|[^\w\s]+|_+")  # as CLIP's tokenizer splits before its merges


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a text.

    `slot` is the index of the slot that decides which of `wordings` it has, option by option; None
    for fixed text, which has one wording.
    """

    wordings: tuple[str, ...]
    slot: int | None = None


def segments(space: Substitutions) -> tuple[Segment, ...]:
    """The stretches of a positive space's prompts: joined, one wording each, they are `space.text`.

    They end at word boundaries: where a wording would run into the text beside it ("cats'" before
    "."), the stretch takes that text in.

    Example:
        >>> from tiller.words import positive_substitutions
        >>> space = positive_substitutions("near a rabbit!", n=1)
        >>> [segment.wordings for segment in segments(space)]
        [('near ',), ('a rabbit', 'a cottontail'), ('!',)]
    """
    assert not space.negative, "a negative prompt is a list, see `listed`"
    prompt = space.prompt
    found: list[Segment] = []
    done = 0
    for k, slot in enumerate(space.slots):
        start = max(done, _begin(prompt, slot))
        limit = _begin(prompt, space.slots[k + 1]) if k + 1 < len(space.slots) else len(prompt)
        wordings = _wordings(space, k, start, slot.end)
        before, end = _apart(prompt, done, start, wordings, slot.end, limit)
        if (before, end) != (start, slot.end):
            wordings = _wordings(space, k, before, end)
        if before > done:
            found.append(Segment((prompt[done:before],)))
        found.append(Segment(wordings, k))
        done = end
    if done < len(prompt) or not found:
        found.append(Segment((prompt[done:],)))
    return tuple(found)


def listed(chosen: Sequence[str], first: str = "") -> str:
    """A negative prompt: what is chosen after the user's own, repetitions and empties left out.

    Example:
        >>> listed(["white", "", "dog", "white"], "blurry,")
        'blurry, white, dog'
    """
    texts = ", ".join(dict.fromkeys(filter(None, chosen)))
    if not texts or not first.strip():
        return texts or first
    return f"{first.rstrip().rstrip(',')}, {texts}"


def _begin(prompt: str, slot: Slot) -> int:
    """Where a slot begins, its article counted in."""
    article = ARTICLE.search(prompt[: slot.start])
    return article.start() if article else slot.start


def _wordings(space: Substitutions, k: int, start: int, end: int) -> tuple[str, ...]:
    """What stands at `start:end` of the prompt under each option of slot `k`."""
    rest = len(space.prompt) - end
    found = []
    for option in range(space.slots[k].size):
        text = space.text([option if j == k else 0 for j in range(len(space.slots))])
        found.append(text[start : len(text) - rest])
    return tuple(found)


def _apart(
    prompt: str, done: int, start: int, wordings: Sequence[str], end: int, limit: int
) -> tuple[int, int]:
    """The stretch, widened to the blanks around it where a wording would run into its neighbour."""
    if not all(_splits(prompt[done:start], wording) for wording in wordings):
        start = done + len(re.sub(r"\S+$", "", prompt[done:start]))
    if not all(_splits(wording, prompt[end:limit]) for wording in wordings):
        end += len(re.match(r"\S*", prompt[end:limit])[0])  # type: ignore[index]  # matches nothing
    return start, end


def _splits(left: str, right: str) -> bool:
    """Whether the place between two texts is one where a tokenizer splits."""
    return not left or not right or len(left) in {m.start() for m in _RUNS.finditer(left + right)}
