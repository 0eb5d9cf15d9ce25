"""Build the shipped lexicon from WordNet's own files: `python -m tiller.words.build`.

What a prompt cannot use is left out: taxa ("genus Felis"), scientific names ("Felis catus"), and
the glosses. Slurs and obscene senses are left out too; a spelling that has one ("ass") keeps its
other senses and is marked, so that it is known and never suggested, unless the other senses are
common ("queen").

Synsets are numbered breadth-first down the hypernyms, adjectives by cluster: sister terms are
neighbours, in the same block of the file, and the children of a synset are one run of numbers.

Each spelling of a sense carries how well it stands for it,

    worth = sqrt((count + 1) / (tags + senses)) min(1, .05 + log(1 + tags + glosses / 5) / log 200)

the share of this sense among the word's (counts and tags are WordNet's, of this sense and of all)
and how common the word is, for which the glosses are a second corpus.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from tiller.core.errors import TillerError
from tiller.words.archive import write_archive
from tiller.words.lexicon import FORMAT, PER_BLOCK, POS, base36, word_set
from tiller.words.wndb import FILES, FOLDER, TOPICS, Database, Key, RawSynset, read_database

SHIPPED = Path(__file__).with_name("wordnet.zip")
LICENCE = "WORDNET-LICENSE.txt"  # beside the lexicon, and in it

_CRUDE_GLOSS = re.compile(
    r"\b(?:obscene|vulgar|offensive|insulting|derogatory|derogative|disparaging)\b"
    r"(?: and \w+)?(?: British| American)? (?:terms?|names?|slang|words?|expressions?|reference)\b"
    r"|\((?:ethnic slur|disparaging)\)|(?:considered|regarded as) offensive"
)
_CRUDE_USAGE = {"ethnic slur", "disparagement", "obscenity"}
_CRUDE_KINDS = {"sexual activity", "genitalia", "fecal matter", "sexual pleasure"}
_COMMON = 7  # tags of the other senses that make a spelling common
# Said of people, or done to them, in 2006's WordNet without a mark.
_DATED = word_set(
    "negro negress negroid mulatto mulatta octoroon quadroon half-blood squaw eskimo gypsy gipsy "
    "pygmy pigmy cripple retard imbecile moron cretin idiot mongoloid midget freak lunatic "
    "nutcase spastic invalid hunchback whore harlot slut strumpet trollop hussy hooker prostitute "
    "bawd cocotte nymphet floozy floozie slattern bitch tranny transvestite homo lesbo "
    "nympho virgin spinster hag crone queer rape incest brothel pimp molester pedophile"
)
_TAXON = "taxonomic group"
_SCIENTIFIC = re.compile(r"[A-Z][a-z]+(?: [a-z-]+)+")


class Builder:
    """Chooses what ships and writes it; one use."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.synsets = database.synsets
        crude = self._crude()
        self.bawdy = self._below(_CRUDE_KINDS) | self._slang()
        self.marked = self._marked(crude)
        left_out = crude | self._below({_TAXON})
        self.words: dict[Key, list[int]] = {}
        for key, synset in self.synsets.items():
            kept = [i for i, word in enumerate(synset.words) if not _scientific(synset, word.text)]
            if kept and key not in left_out:
                self.words[key] = kept
        self.parents = {key: self._targets(key, "@", "@i") for key in self.words}
        self.runs: dict[Key, list[Key]] = {}
        self.others: dict[Key, list[Key]] = {}
        for key, parents in self.parents.items():
            for i, parent in enumerate(parents):
                (self.others if i else self.runs).setdefault(parent, []).append(key)
        self.glosses = self._gloss_counts()
        self.order = self._order()
        self.number = {key: i for i, key in enumerate(self.order)}

    def tables(self) -> dict[str, list[str]]:
        """The lines of both tables."""
        return {"lemmas": self._lemma_lines(), "synsets": [self._line(key) for key in self.order]}

    def about(self) -> str:
        """Format, the first number after each part of speech but the last, topics."""
        ends = [sum(key[0] in POS[: i + 1] for key in self.order) for i in range(len(POS) - 1)]
        return "\n".join([FORMAT, " ".join(map(str, ends)), " ".join(TOPICS)])

    def _gloss_counts(self) -> Counter[str]:
        """How often each lemma of at most three words stands in the glosses."""
        lemmas = {lemma for _, lemma in self.database.senses}
        found: Counter[str] = Counter()
        for synset in self.synsets.values():
            words = re.findall(r"[a-z]+(?:['-][a-z]+)*", synset.gloss.lower())
            for size in (1, 2, 3):
                runs = zip(*(words[start:] for start in range(size)), strict=False)
                found.update(text for text in map(" ".join, runs) if text in lemmas)
        return found

    def _tags(self, pos: str, lemma: str) -> int:
        senses = self.database.senses[pos, lemma]
        return sum(self.database.counts.get((pos, lemma, i + 1), 0) for i in range(len(senses)))

    def _worth(self, key: Key, lemma: str) -> float:
        tags, senses = self._tags(key[0], lemma), len(self.database.senses[key[0], lemma])
        share = (self.database.count(lemma, key) + 1) / (tags + senses)
        common = math.log1p(tags + self.glosses[lemma] / 5) / math.log(200)
        return math.sqrt(share) * min(1.0, 0.05 + common)

    def _crude(self) -> set[Key]:
        found = set()
        for key, synset in self.synsets.items():
            usages = [p.key for p in synset.pointers if p.symbol == ";u"]
            usage = {self.synsets[other].words[0].text for other in usages}
            if usage & _CRUDE_USAGE or _CRUDE_GLOSS.search(synset.gloss):
                found.add(key)
        return found

    def _slang(self) -> set[Key]:
        """Senses that are slang for a person or thing; the spelling is free in its other senses."""
        return {
            key
            for key, synset in self.synsets.items()
            if any(
                pointer.symbol == ";u" and self.synsets[pointer.key].words[0].text == "slang"
                for pointer in synset.pointers
            )
            or re.search(r"\bslang\b.{0,12} (?:terms?|names?|words?) ", synset.gloss)
            or synset.gloss.startswith("(slang)")
        }

    def _marked(self, crude: set[Key]) -> set[str]:
        """Spellings never to suggest: those of crude senses that have no common other sense."""
        others: dict[str, int] = {}
        for key in self.synsets.keys() - crude - self.bawdy:
            for word in self.synsets[key].words:
                count = self.database.count(word.text.lower(), key)
                others[word.text] = others.get(word.text, 0) + count
        spelled = {word.text for key in crude for word in self.synsets[key].words}
        return {text for text in spelled if others.get(text, 0) < _COMMON}

    def _below(self, lemmas: set[str]) -> set[Key]:
        """The noun synsets of these lemmas' first senses, and every synset under them."""
        below = {("n", self.database.senses["n", lemma][0]) for lemma in lemmas}
        queue = list(below)
        while queue:
            for pointer in self.synsets[queue.pop()].pointers:
                if pointer.symbol in ("~", "~i") and pointer.key not in below:
                    below.add(pointer.key)
                    queue.append(pointer.key)
        return below

    def _targets(self, key: Key, *symbols: str) -> list[Key]:
        pointers = self.synsets[key].pointers
        return [p.key for p in pointers if p.symbol in symbols and p.key in self.words]

    def _order(self) -> list[Key]:
        order: list[Key] = []
        for pos in ("n", "v"):
            queue = [key for key in self.words if key[0] == pos and not self.parents[key]]
            for key in queue:  # grows while it is walked: breadth first
                queue += self.runs.get(key, [])
            order += queue
        heads = [k for k in self.words if k[0] == "a" and not self.synsets[k].satellite]
        cluster = {
            key: None
            for head in heads
            for key in [head, *(k for k in self._targets(head, "&") if self.synsets[k].satellite)]
        }
        order += cluster
        order += [key for key in self.words if key[0] == "a" and key not in cluster]
        return order + [key for key in self.words if key[0] == "r"]

    def _line(self, key: Key) -> str:
        synset = self.synsets[key]
        named = any(pointer.symbol == "@i" for pointer in synset.pointers)
        run = self.runs.get(key, [])
        children = f"{base36(self.number[run[0]])}+{len(run)}" if run else ""
        related = sorted({k for k in self._targets(key, "+") if {k[0], key[0]} == {"a", "n"}})
        return "\t".join(
            [
                str(TOPICS.index(synset.topic)),
                ("=" if named else "") + self._numbers(self.parents[key]),
                ",".join([children, *map(self._base36, self.others.get(key, []))]).rstrip(","),
                "|".join(self._word(key, i) for i in self.words[key]),
                ",".join(self._antonyms(key)),
                self._numbers(self._targets(key, "&")),
                self._numbers(related),
            ]
        )

    def _word(self, key: Key, index: int) -> str:
        word = self.synsets[key].words[index]
        count = self.database.count(word.text.lower(), key)
        worth = math.sqrt(min(1.0, self._worth(key, word.text.lower())))
        dated = {word.text.lower()} | {self.synsets[key].words[0].text.lower()}
        crude = word.text in self.marked or key in self.bawdy or not dated.isdisjoint(_DATED)
        return (
            f"{word.text}*{base36(round(35 * worth))}"
            + (str(count) if count else "")
            + (f"<{word.place}" if word.place else "")
            + ("!" if crude else "")
        )

    def _antonyms(self, key: Key) -> list[str]:
        found = []
        for pointer in self.synsets[key].pointers:
            if pointer.symbol != "!" or pointer.key not in self.words:
                continue
            own, other = self.words[key], self.words[pointer.key]
            if pointer.source - 1 in own and pointer.target - 1 in other:
                i, j = own.index(pointer.source - 1), other.index(pointer.target - 1)
                found.append(f"{i}:{self._base36(pointer.key)}:{j}")
        return found

    def _lemma_lines(self) -> list[str]:
        spelled = {
            (key, self.synsets[key].words[i].text.lower())
            for key, kept in self.words.items()
            for i in kept
        }
        found: dict[str, list[str]] = {}
        for (pos, lemma), offsets in self.database.senses.items():
            keys = [(pos, o) for o in offsets if ((pos, o), lemma) in spelled]
            if keys:
                tags = str(self._tags(pos, lemma) or "")
                found.setdefault(lemma, []).append(f"{pos}{tags}:{self._numbers(keys)}")
        return ["\t".join([lemma, *parts]) for lemma, parts in sorted(found.items())]

    def _base36(self, key: Key) -> str:
        return base36(self.number[key])

    def _numbers(self, keys: list[Key]) -> str:
        return ",".join(map(self._base36, keys))


def _scientific(synset: RawSynset, word: str) -> bool:
    if synset.topic not in ("noun.animal", "noun.plant") or len(synset.words) == 1:
        return False
    return bool(_SCIENTIFIC.fullmatch(word))


def licence_of(folder: Path) -> str:
    """The licence at the head of WordNet's files, without its line numbers."""
    lines = (folder / f"data.{FILES['n']}").read_text(encoding="utf-8").splitlines()[:29]
    return "\n".join(line.strip().partition(" ")[2].strip() for line in lines) + "\n"


def build(folder: Path, out: Path) -> None:
    """Read WordNet from `folder` and write the lexicon to `out`, its licence beside it.

    Raises:
        MissingDependency: WordNet's files are not there.
        InvalidInput: they are not WordNet 3.0's.
    """
    builder = Builder(read_database(folder))
    licence = licence_of(folder)
    write_archive(out, {"LICENSE": licence, "about": builder.about()}, builder.tables(), PER_BLOCK)
    out.with_name(LICENCE).write_text(licence, encoding="utf-8")


def main(
    wordnet: Annotated[Path, typer.Option(help="folder with WordNet 3.0's data.* files")] = FOLDER,
    out: Annotated[Path, typer.Option(help="file to write")] = SHIPPED,
) -> None:
    """Build the lexicon that ships with the package from WordNet's own files."""
    try:
        build(wordnet, out)
    except TillerError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
