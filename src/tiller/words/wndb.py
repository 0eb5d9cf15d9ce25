"""A reader of WordNet's own database files, as `wndb(5WN)` and `senseidx(5WN)` describe them.

Only the build of the lexicon reads them; what ships is the file that the build writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiller.core.errors import InvalidInput, MissingDependency

FOLDER = Path("/usr/share/wordnet")
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# Files of the `lexnames(5WN)` order; a synset names its file by number.
TOPICS: tuple[str, ...] = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact",
    "noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event",
    "noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object",
    "noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process",
    "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition",
    "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion",
    "verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather",
    "adj.ppl",
)  # fmt: skip
_POS_OF_NUMBER = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}

Key = tuple[str, int]  # part of speech and byte offset: what names a synset in the files


@dataclass(frozen=True)
class RawWord:
    """A word of a synset, spaces for underscores; `place` is where an adjective may stand.

    "a" before its noun, "p" after a verb, "ip" straight after its noun, "" anywhere.
    """

    text: str
    place: str


@dataclass(frozen=True)
class Pointer:
    """A relation: of whole synsets where `source` and `target` are 0, else of words from 1."""

    symbol: str
    key: Key
    source: int
    target: int


@dataclass(frozen=True)
class RawSynset:
    """A line of a `data` file. `satellite` adjectives hang on a head by `&`."""

    key: Key
    topic: str
    satellite: bool
    words: tuple[RawWord, ...]
    pointers: tuple[Pointer, ...]
    gloss: str


@dataclass(frozen=True)
class Database:
    """All of WordNet: synsets, the senses of each lower-case lemma in order, and tag counts."""

    synsets: dict[Key, RawSynset]
    senses: dict[tuple[str, str], tuple[int, ...]]
    counts: dict[tuple[str, str, int], int]

    def count(self, lemma: str, key: Key) -> int:
        """How often this lemma was tagged with this synset in the semantic concordances."""
        pos, offset = key
        number = self.senses[pos, lemma].index(offset) + 1
        return self.counts.get((pos, lemma, number), 0)


def read_database(folder: Path = FOLDER) -> Database:
    """Read WordNet 3.0 from a folder with `data.*`, `index.*` and `cntlist.rev`.

    Raises:
        MissingDependency: a file is not there.
        InvalidInput: a file is there and is not WordNet 3.0's.
    """
    needed = [f"{kind}.{name}" for kind in ("data", "index") for name in FILES.values()]
    missing = [name for name in [*needed, "cntlist.rev"] if not (folder / name).is_file()]
    if missing:
        raise MissingDependency(
            f"expected WordNet's database files in {folder}, {missing=}; on Debian and Ubuntu "
            "install them with `apt-get install wordnet-base`, elsewhere unpack WordNet-3.0 and "
            "name its `dict` folder with --wordnet."
        )
    synsets: dict[Key, RawSynset] = {}
    senses: dict[tuple[str, str], tuple[int, ...]] = {}
    for pos, name in FILES.items():
        lines = _lines(folder / f"data.{name}")
        if not any("WordNet 3.0 Copyright" in line for line in lines[:40]):
            raise InvalidInput(
                f"expected WordNet 3.0, got {str(folder)!r}, whose data.{name} does not say so; "
                "other versions number their senses otherwise."
            )
        for line in lines:
            if not line.startswith(" "):
                synset = _synset(pos, line)
                synsets[synset.key] = synset
        for line in _lines(folder / f"index.{name}"):
            if not line.startswith(" "):
                lemma, offsets = _index(line)
                senses[pos, lemma] = offsets
    return Database(synsets, senses, _counts(_lines(folder / "cntlist.rev")))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _synset(pos: str, line: str) -> RawSynset:
    """`offset file type w_cnt (word lex_id)* p_cnt (symbol offset pos source/target)* ... | gloss`.

    w_cnt and the word numbers are hexadecimal.
    """
    fields, _, gloss = line.partition(" | ")
    part = fields.split(" ")
    words = tuple(_word(part[4 + 2 * i]) for i in range(int(part[3], 16)))
    at = 4 + 2 * len(words)
    pointers = []
    for i in range(int(part[at])):
        symbol, offset, other, numbers = part[at + 1 + 4 * i : at + 5 + 4 * i]
        source, target = int(numbers[:2], 16), int(numbers[2:], 16)
        pointers.append(Pointer(symbol, (other, int(offset)), source, target))
    topic = TOPICS[int(part[1])]
    key = (pos, int(part[0]))
    return RawSynset(key, topic, part[2] == "s", words, tuple(pointers), gloss.strip())


def _word(text: str) -> RawWord:
    bare, _, place = text.replace("_", " ").partition("(")
    return RawWord(bare, place.rstrip(")"))


def _index(line: str) -> tuple[str, tuple[int, ...]]:
    """`lemma pos n_senses p_cnt symbols* n_senses n_tagged offset*`, offsets in sense order."""
    part = line.split()
    return part[0].replace("_", " "), tuple(int(x) for x in part[-int(part[2]) :])


def _counts(lines: list[str]) -> dict[tuple[str, str, int], int]:
    """`lemma%type:file:id:head:head_id sense_number tag_count`."""
    found = {}
    for line in lines:
        key, number, count = line.split()
        lemma, _, rest = key.rpartition("%")
        found[_POS_OF_NUMBER[rest[0]], lemma.replace("_", " "), int(number)] = int(count)
    return found
