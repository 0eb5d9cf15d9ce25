"""Lemmas and inflected forms, by lemminflect's tables; a/an; capitals.

Tags are the Penn Treebank's: NN NNS, JJ JJR JJS, RB RBR RBS, VB VBP VBZ VBD VBN VBG. Where the
tables do not know a word, lemminflect's regular rules build its forms. Its neural fallback is never
asked: its weights are pickles.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from tiller.words.lexicon import Lexicon, Pos

UPOS: dict[Pos, str] = {"n": "NOUN", "v": "VERB", "a": "ADJ", "r": "ADV"}
BASE: dict[Pos, str] = {"n": "NN", "v": "VB", "a": "JJ", "r": "RB"}
_UNINFLECTED = frozenset(BASE.values()) | {"VBP"}
_LONGEST_ENDING = 4  # letters that a regular form adds or changes: "ies", "ning"


def readings(word: str, lexicon: Lexicon) -> dict[tuple[Pos, str], frozenset[str]]:
    """The lexicon's lemmas that a lower-case word may be a form of, with the tags of that form.

    Example:
        >>> from tiller.words.lexicon import load_lexicon
        >>> found = readings("geese", load_lexicon())
        >>> found[("n", "goose")]
        frozenset({'NNS'})
    """
    found: dict[tuple[Pos, str], frozenset[str]] = {}
    for pos in lexicon.sense_ids(word):
        tags = forms_of(word, pos)
        found[pos, word] = frozenset(tag for tag, forms in tags.items() if word in forms)
    for pos, upos in UPOS.items():
        known = [lemma for lemma in _lemmas(word, upos) if pos in lexicon.sense_ids(lemma)]
        for lemma in known or _regular_lemmas(word, pos, lexicon):
            if lemma != word:
                tags = forms_of(lemma, pos)
                fitting = frozenset(tag for tag, forms in tags.items() if word in forms)
                if fitting:
                    found[pos, lemma] = fitting
    return found


def inflect(lemma: str, pos: Pos, tag: str) -> str | None:
    """The form of a lemma for a tag, or None where it has none ("more beautiful" is no form).

    A phrase is inflected at its head: the last word, of a verb the first, of "X of Y" the X. A
    lemma in capitals keeps them.

    Example:
        >>> inflect("ice cream", "n", "NNS"), inflect("go down", "v", "VBG")
        ('ice creams', 'going down')
    """
    if tag in _UNINFLECTED:
        return lemma
    before, head, after = _head(lemma, pos)
    forms = forms_of(head.lower(), pos).get(tag)
    if not forms:
        return None
    changed = with_case_of(head, forms[0]) if head[:1].isupper() else forms[0]
    return before + changed + after


_LINK = re.compile(r"[ -](?:of|in|de|la|for|by)[ -]")


def _head(lemma: str, pos: Pos) -> tuple[str, str, str]:
    """What stands before the word that is inflected, that word, and what stands after it."""
    if pos == "v":
        head, space, after = lemma.partition(" ")
        return "", head, space + after
    link = _LINK.search(lemma) if pos == "n" else None
    whole, after = (lemma[: link.start()], lemma[link.start() :]) if link else (lemma, "")
    before, space, head = whole.rpartition(" ")
    return before + space, head, after


@lru_cache(maxsize=8192)
def forms_of(lemma: str, pos: Pos) -> dict[str, tuple[str, ...]]:
    """Every form of a lower-case word by tag, the base form included."""
    import lemminflect  # 0.3 s for its tables, once in a process

    forms = dict(lemminflect.getAllInflections(lemma, UPOS[pos]))
    if len(forms) <= 2:  # at most the base form, which verbs have twice
        forms = {**_regular(lemma, pos, known=bool(forms)), **forms}
    for tag, twin in (("VBD", "VBN"), ("VBN", "VBD")):  # where they are one, the tables list one
        if twin in forms:
            forms.setdefault(tag, forms[twin])
    base = {"VB": (lemma,), "VBP": (lemma,)} if pos == "v" else {BASE[pos]: (lemma,)}
    return forms | base


def _regular(lemma: str, pos: Pos, *, known: bool) -> dict[str, tuple[str, ...]]:
    """Forms by lemminflect's rules for what its tables lack; adjectives there take "more"."""
    from lemminflect.core.InflectionRules import InflectionRules

    if pos == "n" and not known:
        return {"NNS": (InflectionRules.buildRegNoun(lemma)[0],)}
    if pos == "v":
        third, past, present = InflectionRules.buildRegVerb(lemma)
        return {"VBZ": (third,), "VBD": (past,), "VBN": (past,), "VBG": (present,)}
    return {}


@lru_cache(maxsize=8192)
def _lemmas(word: str, upos: str) -> tuple[str, ...]:
    import lemminflect

    lemmas: dict[str, Any] = lemminflect.getAllLemmas(word, upos)
    return tuple(lemma for group in lemmas.values() for lemma in group)


def is_form(adjective: str) -> bool:
    """Whether an adjective is a form of another one: "larger"."""
    return any(lemma != adjective for lemma in _lemmas(adjective, "ADJ"))


def _regular_lemmas(word: str, pos: Pos, lexicon: Lexicon) -> list[str]:
    """Lemmas whose regular form this word is: beginnings of it that the lexicon has."""
    if len(word) < _LONGEST_ENDING or not re.search(r"(?:s|ed|ing)$", word):
        return []
    stems = {word[:-cut] + end for cut in (1, 2, 3, 4) for end in ("", "e", "y")}
    return sorted(
        stem
        for stem in stems
        if len(stem) > 1
        and pos in lexicon.sense_ids(stem)
        and any(word in forms for forms in forms_of(stem, pos).values())
    )


def with_case_of(original: str, word: str) -> str:
    """`word` with the capitals of what it replaces; its own where it has some.

    Example:
        >>> with_case_of("Cat", "feline"), with_case_of("CATS", "ice creams")
        ('Feline', 'ICE CREAMS')
    """
    letters = [c for c in original if c.isalpha()]
    parts = original.split()
    if len(letters) > 1 and all(c.isupper() for c in letters):
        return word.upper()
    if len(parts) > 1 and all(part[:1].isupper() for part in parts):
        return re.sub(r"(^|\s)(\w)", lambda m: m[1] + m[2].upper(), word)
    if original[:1].isupper():
        return word[:1].upper() + word[1:]
    return word


_SILENT_H = re.compile(r"heir|honou?r|honest|hour|herb(?:s|al)?$|homage|8|11$|18(?:$|\D)")
_CONSONANT_VOWEL = re.compile(
    r"eu|ewe|uni(?!n|m)|u[sk](?:e|u|a(?:ge|ng)|r)|ut[eio]|utah|ubiq|ur(?:anium|in|olog|ethr)"
    r"|uku|ufo|uv|one(?!i)|once|ouija"
)
_VOWELS = tuple("aeiouáàâäéèêëíìîïóòôöúùûü")
_LETTERS_AS_VOWELS = frozenset("AEFHILMNORSX")  # as one says their names
_INITIALS = 3  # so many capitals are spelled out ("an SUV"), more are read ("a NASA")


def article(word: str, *, shouted: bool = False) -> str:
    """ "a" or "an" before a word, by how it begins when spoken.

    Letters for vowels decide, but for silent h ("an hour"), u, eu and one with a consonant ("a
    unicorn", "a European", "a one-eyed cat"), initials ("an LCD", "an X-ray") and digits.
    `shouted` says that the prompt is all capitals, so that a short word is no initials.

    Example:
        >>> [article(word) for word in ("owl", "hour", "unicorn", "X-ray", "UFO")]
        ['an', 'an', 'a', 'an', 'a']
    """
    first = re.split(r"[\s-]", word, maxsplit=1)[0]
    plain = first.lower()
    initials = first.isupper() and first.isalpha() and not shouted
    if initials and (len(first) <= _INITIALS or not re.search(r"[AEIOUY]", first)):
        return "an" if first[0] in _LETTERS_AS_VOWELS else "a"
    if _SILENT_H.match(plain):
        return "an"
    if _CONSONANT_VOWEL.match(plain):
        return "a"
    return "an" if plain.startswith(_VOWELS) else "a"
