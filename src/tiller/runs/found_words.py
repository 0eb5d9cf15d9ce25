"""What a run found out about words, read from its journal: for the terminal and the pages.

Scores are the reward's own everywhere, also where the search lowers it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any

from tiller.runs.journal import Entry
from tiller.runs.record import Record

_TOKEN = re.compile(r"\w(?:[\w'’-]*\w)?|[^\w\s]")  # a word with what holds it together, or a sign


@dataclass(frozen=True)
class Prompt:
    """A prompt that was drawn, and what it was worth.

    `similarity` is to the user's prompt, where the run measured it.
    """

    prompt: str
    negative_prompt: str
    score: float
    similarity: float | None = None


@dataclass(frozen=True)
class Worth:
    """A changed word of the winner and the change it makes (leave-one-out).

    Attributes:
        part: `prompt` or `negative_prompt`.
        word: the user's; in a negative prompt what the new one is an answer to.
        start: where it stands in the user's prompt.
        end: where it ends there.
        option: the new word.
        source: where that comes from.
        change: of the score, by this word alone.
        dropped: the winner is better without it, so the best prompt has it no more.
    """

    part: str
    word: str
    start: int
    end: int
    option: str
    source: str
    change: float
    dropped: bool = False


@dataclass(frozen=True)
class Learned:
    """A learned distribution over the options of one word.

    `start` has the probabilities before the first step, `end` those of the last.
    """

    part: str
    word: str
    options: tuple[str, ...]
    start: tuple[float, ...]
    end: tuple[float, ...]


@dataclass(frozen=True)
class Piece:
    """A stretch of a comparison: `same`, `out` (deleted) or `in` (inserted).

    `space` says whether a blank stands before it, `changes` what its words change the score by.
    """

    kind: str
    text: str
    space: bool = True
    changes: tuple[float, ...] = ()


@dataclass(frozen=True)
class FoundWords:
    """All that the journal says about words.

    Attributes:
        own: the user's words.
        best: the best ones.
        generations: the scores of the prompts drawn together, the user's own first; without the
            rounds that put words back.
        prompts: every prompt that was drawn, once, the best first.
        worths: what the winner's changed words are worth.
        learned: the distributions that a relaxation ended with.
        lowers: the search lowers the score.
    """

    own: Prompt
    best: Prompt
    generations: tuple[tuple[float, ...], ...]
    prompts: tuple[Prompt, ...]
    worths: tuple[Worth, ...]
    learned: tuple[Learned, ...]
    lowers: bool

    @property
    def changed(self) -> bool:
        """Whether the best words are others than the user's."""
        return _texts(self.best) != _texts(self.own)

    @cached_property
    def prompt_pieces(self) -> list[Piece]:
        """The user's prompt against the best one."""
        worths = [w for w in self.worths if w.part == "prompt" and not w.dropped]
        return compared(self.own.prompt, self.best.prompt, worths)

    @cached_property
    def negative_pieces(self) -> list[Piece]:
        """The user's negative prompt against the best one."""
        worths = [w for w in self.worths if w.part == "negative_prompt" and not w.dropped]
        return listed(self.own.negative_prompt, self.best.negative_prompt, worths)


def found_words(record: Record) -> FoundWords | None:
    """What a run found out about words; None where it drew no other words than the user's."""
    sign = -1.0 if record.lowers else 1.0
    rounds = [e for e in record.steps if e.get("candidates") and not e.get("relaxed")]
    drawn = [(entry, [_prompt(c, sign) for c in entry["candidates"]]) for entry in rounds]
    if not drawn:
        return None
    every = [prompt for _, prompts in drawn for prompt in prompts]
    mine = (record.prompt, record.negative_prompt)
    own = next((prompt for prompt in every if _texts(prompt) == mine), None)
    if own is None:
        return None
    when = record.best_entry
    best = _best(next((p for e, p in drawn if e is when), [own]), sign)
    return FoundWords(
        own=own,
        best=best,
        generations=tuple(
            tuple(p.score for p in prompts) for entry, prompts in drawn if "gains" not in entry
        ),
        prompts=tuple(_once(sorted(every, key=lambda p: -sign * p.score))),
        worths=_worths(rounds, sign, dropped="gains" in when),
        learned=_learned(record.steps),
        lowers=record.lowers,
    )


def _prompt(candidate: dict[str, Any], sign: float) -> Prompt:
    similarity = candidate.get("similarity")
    return Prompt(
        prompt=str(candidate["prompt"]),
        negative_prompt=str(candidate["negative_prompt"]),
        score=sign * float(candidate["score"]),
        similarity=None if similarity is None else float(similarity),
    )


def _texts(prompt: Prompt) -> tuple[str, str]:
    return prompt.prompt, prompt.negative_prompt


def _best(prompts: Sequence[Prompt], sign: float) -> Prompt:
    return max(prompts, key=lambda prompt: sign * prompt.score)


def _once(prompts: Iterable[Prompt]) -> list[Prompt]:
    found: dict[tuple[str, str], Prompt] = {}
    for prompt in prompts:
        found.setdefault(_texts(prompt), prompt)
    return list(found.values())


def _worths(rounds: Sequence[Entry], sign: float, *, dropped: bool) -> tuple[Worth, ...]:
    """The gains of the last round that put words back; `dropped`: that round found the best."""
    gains: list[dict[str, Any]] = next((e["gains"] for e in reversed(rounds) if e.get("gains")), [])
    keys = ("part", "word", "start", "end", "option", "source")
    worths = [Worth(**{k: gain[k] for k in keys}, change=sign * gain["gain"]) for gain in gains]
    if dropped and worths:
        worst = min(range(len(worths)), key=lambda i: sign * worths[i].change)
        worths[worst] = replace(worths[worst], dropped=True)
    return tuple(sorted(worths, key=lambda worth: -sign * worth.change))


def _learned(steps: Sequence[Entry]) -> tuple[Learned, ...]:
    rounds = [entry["distribution"] for entry in steps if entry.get("distribution")]
    if not rounds:
        return ()
    return tuple(
        Learned(
            part=str(last["part"]),
            word=str(last["word"]),
            options=tuple(last["options"]),
            start=tuple(first["probabilities"]),
            end=tuple(last["probabilities"]),
        )
        for first, last in zip(rounds[0], rounds[-1], strict=True)
    )


def compared(before: str, after: str, worths: Sequence[Worth] = ()) -> list[Piece]:
    """Two prompts word by word; `worths` name their words by the place in `before`.

    Example:
        >>> [(piece.kind, piece.text) for piece in compared("a red cat.", "a scarlet cat.")]
        [('same', 'a'), ('out', 'red'), ('in', 'scarlet'), ('same', 'cat.')]
    """
    old, new = list(_TOKEN.finditer(before)), list(_TOKEN.finditer(after))
    matcher = SequenceMatcher(None, [m[0] for m in old], [m[0] for m in new], autojunk=False)
    pieces: list[Piece] = []
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            pieces.append(_piece("same", after, new[k:m]))
        elif j - i == m - k:  # as many words as before: each against its own
            for one, other in zip(old[i:j], new[k:m], strict=True):
                pieces += _changed(before, [one], after, [other], worths)
        elif i == j:  # words came: of an option that is longer than what it replaces
            came = _piece("in", after, new[k:m])
            beside = old[max(0, i - 1) : i + 1]
            ours = [w for w in _of(beside, worths) if came.text in w.option]
            pieces.append(replace(came, changes=tuple(w.change for w in ours)))
        else:
            pieces += _changed(before, old[i:j], after, new[k:m], worths)
    return pieces


def _of(words: Sequence[re.Match[str]], worths: Sequence[Worth]) -> list[Worth]:
    """The worths of a stretch of words."""
    if not words:
        return []
    start, end = words[0].start(), words[-1].end()
    return [w for w in worths if w.start < end and start < w.end]


def _changed(
    before: str,
    old: Sequence[re.Match[str]],
    after: str,
    new: Sequence[re.Match[str]],
    worths: Sequence[Worth],
) -> list[Piece]:
    """What went and what came; what came carries the worth of the words that went."""
    pieces = [_piece("out", before, old)]
    if new:
        came = _piece("in", after, new)
        changes = tuple(w.change for w in _of(old, worths))
        pieces.append(replace(came, space=True, changes=changes))
    return pieces


def _piece(kind: str, text: str, words: Sequence[re.Match[str]]) -> Piece:
    start, end = words[0].start(), words[-1].end()
    return Piece(kind, text[start:end], space=start > 0 and text[start - 1].isspace())


def listed(before: str, after: str, worths: Sequence[Worth] = ()) -> list[Piece]:
    """Two lists with commas, entry by entry; `worths` name their entries.

    Example:
        >>> [(piece.kind, piece.text) for piece in listed("blurry", "blurry, dog")]
        [('same', 'blurry'), ('in', 'dog')]
    """
    old, new = _entries(before), _entries(after)
    pieces = []
    for kind, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces += [Piece("same", text) for text in new[k:m]]
            continue
        pieces += [Piece("out", text) for text in old[i:j]]
        for text in new[k:m]:
            changes = tuple(w.change for w in worths if w.option == text)
            pieces.append(Piece("in", text, changes=changes))
    return pieces


def _entries(text: str) -> list[str]:
    return [entry for entry in (part.strip() for part in text.split(",")) if entry]
