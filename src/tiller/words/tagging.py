"""Part of speech of each word of a prompt, from how often it is which and what stands around it.

The best path (Viterbi) through a small table of what follows what in captions, with WordNet's
counts as emissions. Words of the closed classes ("a", "of", "her", "is") are listed: they are
context, and not replaced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tiller.words.lexicon import Lexicon, Pos, word_set

Readings = dict[tuple[Pos, str], frozenset[str]]  # (part of speech, lemma) -> tags of the form

_CLOSED: dict[str, str] = {
    word: tag
    for tag, words in {
        "D": "a an the this that these those my your his her its our their some any no every each "
        "either neither another such what which whose all both half many much few several "
        "more most other same own",
        "P": "of in on at by with without within from into onto over under between among against "
        "about across along around before after behind beside besides beneath below above during "
        "through throughout toward towards upon via per near next like as than inside outside off "
        "beyond until till since amid amidst underneath versus vs up down out for atop",
        "C": "and or but nor so yet if because while when where whereas though although plus then",
        "O": "i me you he him she it we us they them who whom ones someone somebody anyone "
        "something anything nothing everything everyone nobody there here himself herself itself "
        "themselves myself yourself each-other",
        "X": "is are was were be been being am do does did has have had having can could will "
        "would shall should may might must not cannot",
        "T": "to",
        "R": "very too also just only even still again ever never quite rather really almost "
        "how why",
    }.items()
    for word in words.split()
}
NUMERALS = word_set(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million"
)
# Listed as prepositions above, but they say as much about a picture as a colour does, and have
# antonyms as adverbs and adjectives.
PLACES: dict[str, Pos] = {
    **dict.fromkeys(("above", "below", "inside", "outside", "up", "down"), "r"),
    "near": "a",
}

_CONTRACTED = ("n't", "'re", "'ve", "'ll", "'d", "'m")

_OPEN = ("n", "v", "a", "r")
# How readily a tag (column) follows a tag (row); S is the start, the end and punctuation, Q a
# numeral. Ours, for captions: noun phrases, few finite verbs.
_FOLLOWS: dict[str, dict[str, float]] = {
    "S": {"D": 3, "n": 3, "a": 2.5, "v": 0.5, "r": 0.5, "P": 1, "Q": 1.5},
    "D": {"n": 6, "a": 4, "v": 0.3, "r": 0.6, "Q": 0.5},
    "Q": {"n": 6, "a": 3, "v": 0.3},
    "a": {"n": 8, "a": 2, "v": 0.1, "C": 0.6, "P": 0.5, "S": 0.8},
    "n": {"P": 3, "S": 3, "C": 1.5, "n": 1.6, "v": 1.5, "X": 0.8, "a": 0.25, "r": 0.4, "O": 0.4},
    "v": {"D": 3, "P": 2.5, "n": 1.2, "a": 1, "r": 0.8, "S": 1, "C": 0.4, "T": 0.3, "Q": 0.6},
    "P": {"D": 4, "n": 2.5, "a": 2, "Q": 0.8, "v": 0.3, "O": 0.4, "P": 0.3},
    "C": {"D": 2.5, "n": 2, "a": 2, "v": 0.8, "r": 0.3, "Q": 0.8, "P": 0.3, "O": 0.3},
    "r": {"a": 3, "v": 1.5, "P": 1.5, "r": 0.5, "S": 1.2, "n": 0.3, "D": 0.7, "Q": 0.5},
    "R": {"a": 5, "r": 2, "v": 1.5, "n": 0.1, "P": 1, "D": 1},
    "O": {"v": 3, "X": 3, "n": 0.2, "a": 0.3, "r": 0.6, "P": 0.8, "S": 0.8},
    "X": {"v": 3, "a": 2, "D": 2, "n": 0.6, "r": 1, "P": 1.5, "S": 0.5},
    "T": {"v": 5, "D": 2, "n": 1, "a": 0.6},
}
_RARELY = 0.05
# How readily a verb's form follows a tag; 1 where not named.
_VERB_FORMS: dict[str, dict[str, float]] = {
    "VB": {"n": 0.05, "D": 0.02, "a": 0.02, "S": 0.3, "P": 0.02, "v": 0.1, "C": 0.3, "r": 0.3},
    "VBZ": {"D": 0.02, "a": 0.02, "S": 0.1, "P": 0.02, "v": 0.05, "T": 0.02, "X": 0.02},
    "VBD": {"D": 0.5, "a": 0.5, "S": 0.5, "T": 0.02, "P": 0.2},
    "VBG": {"D": 0.3, "a": 0.3, "T": 0.1},
}
_PLURAL_SUBJECT = 8.0  # a base form after a plural: "dogs run"
_PUNCTUATION = re.compile(r"[,.;:!?|()\[\]{}\n—–/]")


@dataclass(frozen=True, slots=True)
class Piece:
    """What the tagger sees of a word: its spelling, what precedes it, how it can be read."""

    plain: str
    gap: str
    fixed: bool
    possessive: bool
    readings: Readings


def closed(plain: str) -> bool:
    """Whether the word belongs to a closed class and is context only."""
    return plain in _CLOSED and plain not in PLACES


def breaks(gap: str) -> bool:
    """Whether punctuation stands between two words."""
    return _PUNCTUATION.search(gap) is not None


def tag(pieces: Sequence[Piece], lexicon: Lexicon) -> list[Pos | None]:
    """The part of speech of each piece; None for closed classes and unknown words.

    Numerals are adjectives, as in WordNet.
    """
    paths: dict[str, tuple[float, list[str]]] = {"S": (0.0, [])}
    before: Piece | None = None
    for piece in pieces:
        if before is not None and breaks(piece.gap):
            paths = _step(paths, {"S": 1.0}, before, piece)
            paths = {tag: (score, path[:-1]) for tag, (score, path) in paths.items()}
        elif before is not None and before.possessive:  # "the dog's" stands like "her"
            paths = {"D": max(paths.values(), key=lambda found: found[0])}
        paths = _step(paths, _emissions(piece, lexicon), before, piece)
        before = piece
    if before is not None:
        paths = _step(paths, {"S": 1.0}, before, before)
    path = max(paths.values(), key=lambda found: found[0])[1]
    return [_pos(tag) for tag in path[: len(pieces)]]


def _step(
    paths: dict[str, tuple[float, list[str]]],
    emissions: dict[str, float],
    before: Piece | None,
    piece: Piece,
) -> dict[str, tuple[float, list[str]]]:
    """Extend the best path to each tag by the next word's tags."""
    after = {}
    for tag, weight in emissions.items():
        best = max(
            (
                (score + math.log(weight * _follows(last, tag, before, piece)), path)
                for last, (score, path) in paths.items()
            ),
            key=lambda found: found[0],
        )
        after[tag] = (best[0], [*best[1], tag])
    return after


def _follows(last: str, tag: str, before: Piece | None, piece: Piece) -> float:
    weight = _FOLLOWS[last].get(tag, _RARELY)
    if tag != "v":
        return weight
    tags = {form for (pos, _), forms in piece.readings.items() if pos == "v" for form in forms}
    if "VB" in tags and last != "X":  # "run" is a participle after "has", else a base form
        tags = {"VB"}
    factor = max((_VERB_FORMS.get(form, {}).get(last, 1.0) for form in tags), default=1.0)
    if last == "n" and "VB" in tags and before is not None:
        plural = any("NNS" in f and "NN" not in f for f in before.readings.values())
        factor = min(1.0, factor * _PLURAL_SUBJECT) if plural else factor
    return weight * factor


def _emissions(piece: Piece, lexicon: Lexicon) -> dict[str, float]:
    """Each tag that the word can have, with its share."""
    if piece.plain in NUMERALS:
        return {"Q": 1.0}
    if piece.plain in _CLOSED:
        return {_CLOSED[piece.plain]: 1.0}
    if piece.plain.endswith(_CONTRACTED):
        return {"X": 1.0}
    found: dict[str, float] = {}
    if not piece.fixed:
        for pos, lemma in piece.readings:
            count = lexicon.familiarity(lemma, pos) + 0.5 * len(lexicon.sense_ids(lemma)[pos])
            found[pos] = found.get(pos, 0.0) + count
    if not found:
        return {"n": 0.7, "a": 0.3} if piece.fixed or not piece.readings else {"n": 1.0}
    total = sum(found.values())
    return {tag: count / total for tag, count in found.items()}


def _pos(tag: str) -> Pos | None:
    if tag == "Q":
        return "a"
    return tag if tag in _OPEN else None  # type: ignore[return-value]  # _OPEN is every Pos
