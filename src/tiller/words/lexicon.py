"""WordNet 3.0, offline: lemmas, their senses, and what the senses are related to.

The file `wordnet.zip` beside this module is written by `tiller.words.build` from WordNet's own
database. Nothing is parsed before it is asked for: opening takes milliseconds, a prompt too.

Source: Miller, *WordNet: a lexical database for English* (1995); Princeton University, WordNet 3.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from tiller.core.errors import InvalidInput
from tiller.words.archive import Archive, SortedTable

Pos = Literal["n", "v", "a", "r"]
POS: tuple[Pos, ...] = ("n", "v", "a", "r")
PER_BLOCK = 1024  # lines of a block
FORMAT = "tiller words 1"
_BASE = 36


@dataclass(frozen=True, slots=True)
class Word:
    """One spelling of a sense.

    `count` is how often WordNet's annotators met it in this sense. `worth`, in [0, 1], is how well
    it stands for the sense: high for a common word that mostly means this. `place` is where an
    adjective may stand ("a" before its noun, "p" after a verb, "ip" straight after its noun, ""
    anywhere), and `crude` marks a spelling that is a slur or obscene in some sense: known, but
    never suggested.
    """

    text: str
    count: int
    worth: float
    place: str
    crude: bool


@dataclass(frozen=True, slots=True)
class Synset:
    """A sense with its spellings and relations; other synsets are named by number.

    `antonyms` are (own word, other synset, other's word), counted from 0. `related` are the nouns
    that an adjective derives from, and back.
    """

    id: int
    pos: Pos
    topic: str
    named: bool
    words: tuple[Word, ...]
    parents: tuple[int, ...]
    children: tuple[int, ...]
    antonyms: tuple[tuple[int, int, int], ...]
    similar: tuple[int, ...]
    related: tuple[int, ...]

    def word(self, lemma: str) -> Word | None:
        """The spelling of a lower-case lemma in this sense."""
        return next((word for word in self.words if word.text.lower() == lemma), None)


class Lexicon:
    """Queries over one file; `load_lexicon` opens the shipped one.

    Raises:
        InvalidInput: the file is damaged or of another format.

    Example:
        >>> lexicon = load_lexicon()
        >>> [word.text for word in lexicon.senses("rabbit", "n")[0].words]
        ['rabbit', 'coney', 'cony']
        >>> [other.text for other in lexicon.antonyms("ascend", "v")]
        ['descend']
    """

    def __init__(self, data: bytes, name: str = "wordnet.zip") -> None:
        self._archive = Archive(data, name)
        head = self._archive.text("about").split("\n")
        if head[0] != FORMAT:
            raise InvalidInput(
                f"expected a lexicon of format {FORMAT!r}, got {head[0]!r} in {name}; build it "
                "again with `python -m tiller.words.build`."
            )
        self._ends = [int(number) for number in head[1].split()]
        self._topics = head[2].split()
        self._lemmas = SortedTable(self._archive, "lemmas")
        self._synsets: dict[int, Synset] = {}
        self._entries: dict[str, dict[Pos, tuple[int, tuple[int, ...]]]] = {}

    @property
    def licence(self) -> str:
        """Princeton University's licence, which every copy carries."""
        return self._archive.text("LICENSE")

    def lemmas(self) -> Iterator[str]:
        """Every lower-case lemma, sorted; phrases with spaces."""
        return (line.split("\t", 1)[0] for line in self._archive.lines("lemmas"))

    def _entry(self, lemma: str) -> dict[Pos, tuple[int, tuple[int, ...]]]:
        """`pos tags:number,number` for each part of speech, by tabs."""
        found = self._entries.get(lemma)
        if found is None:
            line = self._lemmas.get(lemma)
            found = self._entries[lemma] = {}
            for part in line.split("\t") if line else ():
                tags, _, numbers = part[1:].partition(":")
                pos: Pos = part[0]  # type: ignore[assignment]  # the build writes no other
                found[pos] = (int(tags or 0), _numbers(numbers))
        return found

    def sense_ids(self, lemma: str) -> dict[Pos, tuple[int, ...]]:
        """The synsets of a lower-case lemma by part of speech, most frequent first."""
        return {pos: numbers for pos, (_, numbers) in self._entry(lemma).items()}

    def senses(self, lemma: str, pos: Pos) -> tuple[Synset, ...]:
        """The senses of a lemma in one part of speech, most frequent first."""
        return tuple(self.synset(number) for number in self.sense_ids(lemma.lower()).get(pos, ()))

    def __contains__(self, lemma: str) -> bool:
        return self._lemmas.get(lemma.lower()) is not None

    def synset(self, number: int) -> Synset:
        """The sense of that number."""
        found = self._synsets.get(number)
        if found is None:
            line = self._archive.block("synsets", number // PER_BLOCK)[number % PER_BLOCK]
            found = self._synsets[number] = self._parse(number, line)
        return found

    def antonyms(self, lemma: str, pos: Pos) -> tuple[Word, ...]:
        """The direct antonyms of a lemma over all its senses."""
        found: dict[str, Word] = {}
        for synset in self.senses(lemma, pos):
            for own, other, index in synset.antonyms:
                if synset.words[own].text.lower() == lemma.lower():
                    word = self.synset(other).words[index]
                    found.setdefault(word.text, word)
        return tuple(found.values())

    def familiarity(self, lemma: str, pos: Pos) -> int:
        """How often annotators met the lemma in any of its senses: how common it is."""
        tags, _ = self._entry(lemma.lower()).get(pos, (0, ()))
        return tags

    def _parse(self, number: int, line: str) -> Synset:
        topic, parents, children, words, antonyms, similar, related = line.split("\t")
        pos = POS[sum(number >= end for end in self._ends)]
        return Synset(
            number,
            pos,
            self._topics[int(topic)],
            parents.startswith("="),
            tuple(_word(part) for part in words.split("|")),
            _numbers(parents.removeprefix("=")),
            _children(children),
            tuple(_antonym(part) for part in antonyms.split(",")) if antonyms else (),
            _numbers(similar),
            _numbers(related),
        )


@cache
def load_lexicon() -> Lexicon:
    """The shipped lexicon, opened once in a process."""
    file = resources.files("tiller.words") / "wordnet.zip"
    return Lexicon(file.read_bytes())


def word_set(text: str) -> frozenset[str]:
    """The words of a text: how this package writes its lists."""
    return frozenset(text.split())


def base36(number: int) -> str:
    """A number in the digits that `int(text, 36)` reads."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    high, low = divmod(number, _BASE)
    return (base36(high) if high else "") + digits[low]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part, _BASE) for part in text.split(",")) if text else ()


def _children(text: str) -> tuple[int, ...]:
    """`first+count` for the children whose first parent this is, then the others."""
    if not text:
        return ()
    run, _, others = text.partition(",")
    first, _, count = run.partition("+")
    start = int(first, _BASE) if first else 0
    return (*range(start, start + int(count or 0)), *_numbers(others))


def _antonym(text: str) -> tuple[int, int, int]:
    own, other, index = text.split(":")
    return int(own), int(other, _BASE), int(index)


def _word(text: str) -> Word:
    """`spelling*worth[count][<place][!]`, worth one digit for its root in 35ths."""
    crude = text.endswith("!")
    text, _, place = text.removesuffix("!").partition("<")
    spelling, _, numbers = text.partition("*")
    worth = (int(numbers[0], _BASE) / (_BASE - 1)) ** 2
    return Word(spelling, int(numbers[1:] or 0), worth, place, crude)
