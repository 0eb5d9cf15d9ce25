"""The ladder of substitutes: from WordNet's own synonyms and antonyms down to looser relations.

A candidate's quality is

    q = P(sense) * rung * worth

where P(sense) is how likely the word has that sense here, `rung` how close the relation is, and
`worth` how well the candidate stands for its own sense: low for what nobody says and for what
mostly means something else ("guy" for a cat). Direct antonyms exist for few words (docs/words.md),
hence the lower rungs.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff), section 4.2,
which takes at most five substitutes a word from a dictionary or an LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tiller.words.inflection import BASE, inflect, is_form
from tiller.words.lexicon import Lexicon, Synset, Word
from tiller.words.phrases import Unit
from tiller.words.senses import Sense, senses_of
from tiller.words.tagging import NUMERALS, PLACES

Direction = Literal["synonyms", "antonyms"]
Source = Literal[
    "user",
    "wordnet-synonym",
    "wordnet-similar",
    "wordnet-hypernym",
    "wordnet-hyponym",
    "wordnet-antonym",
    "wordnet-indirect-antonym",
    "wordnet-co-hyponym",
    "llm",
    "library",
]

_RUNGS: dict[Source, float] = {
    "wordnet-synonym": 1.0,
    "wordnet-similar": 0.5,
    "wordnet-hypernym": 0.4,
    "wordnet-hyponym": 0.3,
    "wordnet-antonym": 2.0,
    "wordnet-indirect-antonym": 0.5,
    "wordnet-co-hyponym": 0.3,
}
_COUSIN = 0.4  # of a co-hyponym two levels up, against one level
_FAR = 0.5  # of an antonym's own similar words, against the antonym
_REPEATS = {"synonyms": 0.4, "antonyms": 0.0}  # of a candidate that holds the word itself
_LONGER = 0.6  # of a candidate of more words than the word
_CROWD = 60  # children above which a synset says little about them: "person"
_CLUSTER = 30  # similar senses above which a rare adjective only files them: "chromatic"
_MOST_WORDS = 3
_POOR = 0.001  # candidates of a lower quality are dropped


@dataclass(frozen=True, slots=True)
class Substitute:
    """What may stand for a word: the text in the word's form, where it comes from, how good it is.

    `quality` orders the substitutes of one word; it compares nothing else.
    """

    text: str
    source: Source
    quality: float


@dataclass(frozen=True, slots=True)
class _Found:
    synset: Synset
    word: Word
    source: Source
    factor: float


def climb(
    unit: Unit,
    direction: Direction,
    lexicon: Lexicon,
    *,
    n: int,
    avoid: frozenset[str] = frozenset(),
) -> tuple[Substitute, ...]:
    """The best substitutes of a word or phrase from WordNet, best first.

    Args:
        unit: of `phrases.units`.
        direction: whether to keep its meaning or to turn it.
        lexicon: where to look.
        n: at most so many.
        avoid: lower-case words that are no candidates, such as the prompt's others.

    Example:
        >>> from tiller.words.lexicon import load_lexicon
        >>> from tiller.words.phrases import units
        >>> lexicon = load_lexicon()
        >>> [s.text for s in climb(units("descending", lexicon)[0], "antonyms", lexicon, n=1)]
        ['ascending']
    """
    own = frozenset({unit.text.lower(), *(reading.lemma for reading in unit.readings)})
    best: dict[str, tuple[float, _Found, str]] = {}
    for sense in senses_of(unit, lexicon):
        for found in _RELATED[direction](sense, lexicon):
            lemma = found.word.text.lower()
            quality = sense.share * found.factor * found.word.worth
            quality *= _LONGER if lemma.count(" ") > unit.text.count(" ") else 1.0
            if _holds(lemma, own):
                quality *= _REPEATS[direction]
            known = best.get(lemma)
            if quality < _POOR or (known is not None and quality <= known[0]):
                continue
            if lemma not in own | avoid and _fits(found, unit, sense):
                best[lemma] = (quality, found, sense.tag)
    chosen: dict[str, Substitute] = {}
    for quality, found, tag in sorted(best.values(), key=lambda b: (-b[0], b[1].word.text)):
        if len(chosen) == n:
            break
        text = _inflected(found, tag)
        if text is not None and text.lower() not in own:
            chosen.setdefault(text.lower(), Substitute(text, found.source, quality))
    return tuple(chosen.values())


def _holds(lemma: str, own: frozenset[str]) -> bool:
    """Whether a candidate holds the word itself: "house cat"."""
    spaced = f" {lemma.replace('-', ' ')} "
    return any(f" {word} " in spaced for word in own)


def _inflected(found: _Found, tag: str) -> str | None:
    """The candidate in the word's form; its base form where it is another part of speech.

    Adjectives that are forms of others ("larger") are none.
    """
    pos, text = found.synset.pos, found.word.text
    if pos == "a" and is_form(text.lower()):
        return None
    return inflect(text, pos, tag if tag.startswith(BASE[pos]) else BASE[pos])


def _fits(found: _Found, unit: Unit, sense: Sense) -> bool:
    """Whether the candidate can be said here: no slur, no name for a thing, no people as kinds."""
    word = found.word
    if word.crude or (found.synset.named and not sense.synset.named):
        return False
    if found.synset.topic == "noun.person" and not found.synset.named and word.text[0].isupper():
        return False
    if found.synset.pos == "a" and word.place not in ("", "a" if unit.attributive else "p"):
        return False
    if sense.lemma in NUMERALS and set(word.text.lower()) <= set("ivxlcdm"):  # Roman numerals
        return False
    if word.text.endswith("ness") and not sense.lemma.endswith("ness"):  # "redness" for "red"
        return False
    letters = word.text.replace(" ", "").replace("-", "").replace("'", "")
    return letters.isalpha() and word.text.count(" ") < _MOST_WORDS


def _words(
    synset: Synset, source: Source, factor: float = 1.0, skip: Word | None = None
) -> Iterator[_Found]:
    """All spellings of a sense, worth less the farther from the first that one names it by."""
    for rank, word in enumerate(synset.words):
        if word is not skip:
            yield _Found(synset, word, source, _RUNGS[source] * factor / (1 + 0.1 * rank))


def _synonyms(sense: Sense, lexicon: Lexicon) -> Iterator[_Found]:
    """Synonyms, similar adjectives, then the kind that it is of and kinds of it.

    Prepositions have none: nothing else takes their place before a noun.
    """
    synset = sense.synset
    if sense.lemma in PLACES:
        return
    yield from _words(synset, "wordnet-synonym", skip=sense.word)
    for number in synset.similar:
        similar = lexicon.synset(number)
        if not _files(similar):
            yield from _words(similar, "wordnet-similar")
    for number in synset.parents:
        parent = lexicon.synset(number)
        if parent.topic != "noun.Tops" and len(parent.children) <= _CROWD:
            yield from _words(parent, "wordnet-hypernym")
    shades = [kind for colour in _colours(sense, lexicon) for kind in colour.children]
    for number in (*synset.children, *shades):
        yield from _words(lexicon.synset(number), "wordnet-hyponym")


def _antonyms(sense: Sense, lexicon: Lexicon) -> Iterator[_Found]:
    """Antonyms, antonyms by way of synonyms and similar adjectives, then sister terms."""
    synset = sense.synset
    yield from _opposites(synset, synset.words.index(sense.word), lexicon)
    if not synset.antonyms:  # a satellite: its head has them
        for head in map(lexicon.synset, synset.similar):
            if not _files(head):
                yield from _opposites(head, None, lexicon)
    if synset.pos != "a":
        yield from _sisters(synset, lexicon)
    for noun in (*_colours(sense, lexicon), *_numerals(sense, lexicon)):
        for found in _sisters(noun, lexicon):
            for adjective in lexicon.senses(found.word.text, "a")[:1]:
                word = adjective.word(found.word.text.lower())
                if word is not None:
                    yield _Found(adjective, word, found.source, found.factor)


def _opposites(synset: Synset, own: int | None, lexicon: Lexicon) -> Iterator[_Found]:
    """The antonyms of a sense, direct for its word `own`, their synonyms and similar words."""
    indirect: Source = "wordnet-indirect-antonym"
    for word, number, index in synset.antonyms:
        other = lexicon.synset(number)
        source: Source = "wordnet-antonym" if word == own else indirect
        yield _Found(other, other.words[index], source, _RUNGS[source])
        yield from _words(other, indirect, skip=other.words[index])
        for similar in other.similar:
            yield from _words(lexicon.synset(similar), indirect, _FAR)


def _files(adjective: Synset) -> bool:
    """Whether a head only files its satellites: "chromatic" over colours, "cardinal" over two."""
    crowd = len(adjective.similar) > _CLUSTER
    return crowd and adjective.words[0].count < _CLUSTER


def _colours(sense: Sense, lexicon: Lexicon) -> list[Synset]:
    """The nouns of a colour adjective: "red" is a chromatic color."""
    nouns = [lexicon.synset(number) for number in sense.synset.related]
    return [
        noun
        for noun in nouns
        if noun.word(sense.lemma) is not None
        and any(
            word.text.endswith(" color")
            for parent in noun.parents
            for word in lexicon.synset(parent).words
        )
    ]


def _numerals(sense: Sense, lexicon: Lexicon) -> list[Synset]:
    if sense.synset.pos != "a" or sense.lemma not in NUMERALS:
        return []
    return [noun for noun in lexicon.senses(sense.lemma, "n") if noun.topic == "noun.quantity"][:1]


def _sisters(synset: Synset, lexicon: Lexicon) -> Iterator[_Found]:
    """Children of the same parent, then of its sisters, unless there are crowds of them.

    They are of the same topic: what stands beside an animal is one.
    """
    for number in synset.parents[:1]:
        parent = lexicon.synset(number)
        yield from _kinds(parent, synset, lexicon, 1.0)
        for above in map(lexicon.synset, parent.parents):
            near = above.topic != "noun.Tops" and len(above.children) <= _CROWD
            for aunt in map(lexicon.synset, above.children if near else ()):
                if aunt.id != parent.id and len(aunt.children) <= _CROWD:
                    yield from _kinds(aunt, synset, lexicon, _COUSIN)


def _kinds(parent: Synset, but: Synset, lexicon: Lexicon, factor: float) -> Iterator[_Found]:
    for number in parent.children:
        kind = lexicon.synset(number)
        if kind.topic == but.topic and kind.id != but.id:
            yield from _words(kind, "wordnet-co-hyponym", factor)


_RELATED: dict[Direction, Callable[[Sense, Lexicon], Iterator[_Found]]] = {
    "synonyms": _synonyms,
    "antonyms": _antonyms,
}
