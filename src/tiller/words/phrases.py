"""A prompt as the lexicon sees it: words and phrases, each with its part of speech.

Phrases are WordNet's own ("ice cream", "fire hydrant", "lie down"); the longest one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiller.words.inflection import BASE, readings
from tiller.words.lexicon import Lexicon, Pos, word_set
from tiller.words.tagging import NUMERALS, PLACES, Piece, Readings, breaks, closed, tag
from tiller.words.tokens import Token, tokenise

_LONGEST = 4  # words of a phrase
_PARTICLES = frozenset({"up", "down", "away"})
# Before a noun these say what one sees of it ("a green snake", "an old man"). A phrase that begins
# with a colour is one only if WordNet's annotators met it ("a black hole"), with a size or an age
# only if it is a name ("Big Ben").
_COLOURS = word_set(
    "black white gray grey red orange yellow green blue purple pink brown golden silver"
)
_SIZES = word_set("old young small large big little light dark tall short new deep full")
_SEVERAL = (NUMERALS - {"one"}) | {"several", "many", "few", "these", "those", "some", "both"}
_SUBJECTS = frozenset({"i", "you", "he", "she", "it", "we", "they", "who", "that"})
_KEYWORDS = frozenset({"BREAK", "AND"})  # of prompt editors, not words


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a word or phrase: a lemma of the lexicon and the tag of the form it has."""

    lemma: str
    tag: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A word or phrase at `prompt[start:end]`.

    `pos` is None for context: closed classes, fixed and unknown words. `readings` are those of that
    part of speech. `attributive` adjectives stand before a noun.
    """

    text: str
    start: int
    end: int
    pos: Pos | None
    readings: tuple[Reading, ...]
    attributive: bool


def units(prompt: str, lexicon: Lexicon) -> tuple[Unit, ...]:
    """The words and phrases of a prompt, left to right.

    Example:
        >>> from tiller.words.lexicon import load_lexicon
        >>> [(unit.text, unit.pos) for unit in units("a cat near ice creams", load_lexicon())]
        [('a', None), ('cat', 'n'), ('near', 'a'), ('ice creams', 'n')]
    """
    groups: list[tuple[Token, ...]] = []
    pieces: list[Piece] = []
    tokens = tokenise(prompt)
    at = 0
    while at < len(tokens):
        size, found = _longest(tokens[at : at + _LONGEST], lexicon)
        group = tokens[at : at + size]
        groups.append(group)
        first, last = group[0], group[-1]
        pieces.append(Piece(_joined(group), first.gap, first.fixed, last.possessive, found))
        at += size
    tags = tag(pieces, lexicon)
    made = []
    for i, (group, piece, pos) in enumerate(zip(groups, pieces, tags, strict=True)):
        start, end = group[0].start, group[-1].end
        pos = PLACES.get(piece.plain, pos)
        before = pieces[i - 1].plain if i and not breaks(piece.gap) else ""
        fitting = _fitting(piece.readings, pos, before) if pos else ()
        attributive = pos == "a" and i + 1 < len(tags) and tags[i + 1] in ("n", "a")
        pos = pos if fitting else None
        made.append(Unit(prompt[start:end], start, end, pos, fitting, attributive))
    return tuple(made)


def _longest(tokens: Sequence[Token], lexicon: Lexicon) -> tuple[int, Readings]:
    """How many tokens the longest phrase at the front has, 1 for a word, and its readings."""
    for size in range(len(tokens), 1, -1):
        group = tokens[:size]
        if _joinable(group):
            found = _phrase(group, lexicon)
            if found:
                return size, found
    first = tokens[0]
    if first.fixed or first.text in _KEYWORDS or closed(first.plain):
        return 1, {}
    return 1, _word(first.plain, lexicon)


def _word(plain: str, lexicon: Lexicon) -> Readings:
    """A word; what is hyphenated also in the spellings with a space and in one."""
    found = readings(plain, lexicon)
    if "-" in plain and not found:
        spellings = (plain.replace("-", " "), plain.replace("-", ""))
        found = {k: tags for text in spellings for k, tags in readings(text, lexicon).items()}
    return found


def _joinable(group: Sequence[Token]) -> bool:
    """Whether one space stands between each two, and neither end is a word of a closed class."""
    if any(token.fixed or token.text in _KEYWORDS for token in group):
        return False
    if any(token.gap != " " for token in group[1:]) or any(t.possessive for t in group[:-1]):
        return False
    first, last = group[0].plain, group[-1].plain
    return not closed(first) and first not in NUMERALS and (not closed(last) or last in _PARTICLES)


def _phrase(group: Sequence[Token], lexicon: Lexicon) -> Readings:
    """The phrase as it stands, with its last word as a noun's form, its first as a verb's.

    A noun of two words may be one in the lexicon, or hyphenated ("cell phone", "cellphone").
    """
    words = [token.plain for token in group]
    if words[-1] in _PARTICLES:
        return _phrasal_verb(words, lexicon)
    whole = " ".join(words)
    found: Readings = {
        (pos, whole): frozenset({BASE[pos]}) for pos in lexicon.sense_ids(whole) if pos != "v"
    }
    for (pos, lemma), tags in readings(words[-1], lexicon).items():
        for link in (" ", "", "-") if len(words) == 2 else (" ",):
            phrase = link.join([*words[:-1], lemma])
            if pos == "n" and "n" in lexicon.sense_ids(phrase):
                found[pos, phrase] = tags
    if words[0] in _COLOURS:
        return found if any(lexicon.familiarity(lemma, pos) for pos, lemma in found) else {}
    if words[0] in _SIZES:
        senses = [sense for pos, lemma in found for sense in lexicon.senses(lemma, pos)]
        return found if any(sense.named for sense in senses) else {}
    return found


def _phrasal_verb(words: list[str], lexicon: Lexicon) -> Readings:
    if len(words) != 2:
        return {}
    return {
        (pos, f"{lemma} {words[1]}"): tags
        for (pos, lemma), tags in readings(words[0], lexicon).items()
        if pos == "v" and "v" in lexicon.sense_ids(f"{lemma} {words[1]}")
    }


def _fitting(found: Readings, pos: Pos, before: str) -> tuple[Reading, ...]:
    fitting = [(lemma, tags) for (p, lemma), tags in found.items() if p == pos]
    return tuple(Reading(lemma, _tag(tags, pos, before)) for lemma, tags in fitting)


def _tag(tags: frozenset[str], pos: Pos, before: str) -> str:
    """One tag where the form has several: "sheep", "painted"."""
    if {"NN", "NNS"} <= tags:
        return "NNS" if before in _SEVERAL else "NN"
    if {"VBD", "VBN"} <= tags:  # captions say what was done to things more than what happened
        return "VBD" if before in _SUBJECTS else "VBN"
    return BASE[pos] if BASE[pos] in tags or not tags else min(tags)


def _joined(group: Sequence[Token]) -> str:
    return " ".join(token.plain for token in group)
