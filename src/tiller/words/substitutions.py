"""The words of a prompt and what may stand for them: the contents of a space of prompts.

Positive: each content word or one of its synonyms, in place, with a/an repaired. Negative: for each
content word an antonym or nothing, then slots of the library, joined by commas. Option 0 is the
user's own word, or nothing: the choice of zeros is the user's prompt, or the empty negative prompt.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff), section 4.2:
the synonym, antonym and library (NPLib) spaces, at most five substitutes a word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tiller.core.errors import InvalidInput
from tiller.words.choices import Choices, Edits
from tiller.words.inflection import article, with_case_of
from tiller.words.ladder import Direction, Substitute, climb
from tiller.words.lexicon import Lexicon, load_lexicon
from tiller.words.negatives import library_slots
from tiller.words.phrases import Unit, units

Suggestions = Mapping[str, Sequence[str]]  # a word of the prompt or its lemma -> texts

_LLM = 0.5  # a model that read the prompt: below direct relations, above the looser ones
_LLM_NEXT = 0.9  # of each suggestion against the one before
_LIBRARY = 0.0  # its entries are not about the prompt, and in no order
_USER = 10.0  # above every rung


@dataclass(frozen=True, slots=True)
class Slot:
    """One decision: `word` of the prompt at `start:end`, or a slot of the library at (0, 0).

    Option i > 0 is `options[i - 1]`; option 0 keeps the word (in a negative prompt: says nothing).
    """

    word: str
    start: int
    end: int
    options: tuple[Substitute, ...]

    @property
    def size(self) -> int:
        return 1 + len(self.options)


@dataclass(frozen=True, slots=True)
class Substitutions:
    """All prompts that the slots span; slots without options are not kept.

    Example:
        >>> space = positive_substitutions("an owl", n=2)
        >>> space.size, space.text([0])
        (3, 'an owl')
    """

    prompt: str
    negative: bool
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """How many choices there are, the user's own included."""
        return math.prod(slot.size for slot in self.slots)

    def text(self, choice: Sequence[int]) -> str:
        """The prompt, or the negative prompt, of one option a slot.

        Raises:
            InvalidInput: not one option of each slot.
        """
        fitting = len(choice) == len(self.slots)
        if not fitting or not all(0 <= i < s.size for i, s in zip(choice, self.slots, strict=True)):
            raise InvalidInput(
                f"expected one option of each slot, below {[slot.size for slot in self.slots]}, "
                f"got {list(choice)}"
            )
        chosen = [(s, s.options[i - 1].text) for i, s in zip(choice, self.slots, strict=True) if i]
        if self.negative:
            return ", ".join(dict.fromkeys(text for _, text in chosen))
        text = self.prompt
        for slot, word in reversed(chosen):  # from the right: the spans on the left stay true
            text = _replaced(text, slot, word)
        return text

    def where(self, good: Callable[[Sequence[str]], Sequence[bool]]) -> Substitutions:
        """The space without the options that alone make a prompt that is not good, and empty slots.

        Args:
            good: says it of each of some prompts.
        """
        slots = []
        for k, slot in enumerate(self.slots):
            choices = [
                [option if j == k else 0 for j in range(len(self.slots))]
                for option in range(1, slot.size)
            ]
            found = good([self.text(choice) for choice in choices])
            kept = tuple(o for o, one in zip(slot.options, found, strict=True) if one)
            if kept:
                slots.append(replace(slot, options=kept))
        return replace(self, slots=tuple(slots))

    def describe(self) -> str:
        """The words, their options with where each comes from, and the size, for reading."""
        width = max((len(slot.word) for slot in self.slots), default=0)
        first = "-" if self.negative else "="
        lines = [f"{'negative of ' if self.negative else ''}{self.prompt!r}"]
        for slot in self.slots:
            options = ", ".join(f"{option.text} ({option.source})" for option in slot.options)
            lines.append(f"  {slot.word:<{width}}  {first} | {options}")
        sizes = " x ".join(str(slot.size) for slot in self.slots) or "nothing to choose"
        return "\n".join([*lines, f"{sizes} = {self.size:,} prompt{'s' * (self.size > 1)}"])


def positive_substitutions(
    prompt: str,
    *,
    n: int = 5,
    choices: Choices | None = None,
    llm: Suggestions | None = None,
    lexicon: Lexicon | None = None,
) -> Substitutions:
    """The synonym space of a prompt.

    Args:
        prompt: any text; what is not a known word is left as it stands, to the character.
        n: at most so many substitutes a word (pinned ones are kept beyond it).
        choices: what the user vetoes, pins and adds.
        llm: what a language model suggests, by word.
        lexicon: the shipped one by default.

    Raises:
        InvalidInput: n is below 1.

    Example:
        >>> print(positive_substitutions("a rabbit", n=1).text([1]))
        a cottontail
    """
    choices = choices or Choices()
    slots = _word_slots(prompt, "synonyms", n, choices, llm or {}, lexicon or load_lexicon())
    return Substitutions(prompt, False, slots)


def negative_substitutions(
    prompt: str,
    *,
    n: int = 5,
    antonyms: bool = True,
    library: int = 4,
    choices: Choices | None = None,
    llm: Suggestions | None = None,
    lexicon: Lexicon | None = None,
) -> Substitutions:
    """The antonym space of a prompt, slots of the library, or their union.

    Args:
        prompt: any text.
        n: at most so many antonyms a word (pinned ones are kept beyond it).
        antonyms: whether the words have slots.
        library: slots filled from the library of negative prompts; the authors' release has four.
        choices: what the user vetoes, pins and adds.
        llm: what a language model suggests as antonyms, by word.
        lexicon: the shipped one by default.

    Raises:
        InvalidInput: n is below 1, or `library` is negative or has more slots than groups.

    Example:
        >>> space = negative_substitutions("a black cat", n=1, library=0)
        >>> space.text([1, 1])
        'white, dog'
    """
    choices = choices or Choices()
    words: tuple[Slot, ...] = ()
    if antonyms:
        words = _word_slots(prompt, "antonyms", n, choices, llm or {}, lexicon or load_lexicon())
    generic = library_slots(library, veto=choices.library.veto, add=choices.library.add)
    slots = tuple(
        Slot(
            f"library {i + 1}",
            0,
            0,
            tuple(Substitute(text, "library", _LIBRARY) for text in texts),
        )
        for i, texts in enumerate(generic)
    )
    return Substitutions(prompt, True, (*words, *slots))


def _word_slots(
    prompt: str,
    direction: Direction,
    n: int,
    choices: Choices,
    llm: Suggestions,
    lexicon: Lexicon,
) -> tuple[Slot, ...]:
    if n < 1:
        raise InvalidInput(f"expected n >= 1 substitutes a word, got {n=}")
    found = units(prompt, lexicon)
    said = frozenset(name for unit in found for name in _names(unit))
    suggested = {word.lower(): texts for word, texts in llm.items()}
    edits: Edits = getattr(choices, direction)
    slots = []
    for unit in found:
        if not choices.keep.isdisjoint(_names(unit)):
            continue
        ladder = climb(
            unit, direction, lexicon, n=n + len(edits.veto), avoid=said | edits.veto
        )  # fmt: skip
        options = _edited(unit, [*ladder, *_from_llm(unit, suggested)], edits, n)
        if options and direction == "synonyms":
            slots.append(_in_place(unit, prompt, options))
        elif options:
            slots.append(Slot(unit.text, unit.start, unit.end, tuple(options)))
    return tuple(slots)


def _names(unit: Unit) -> list[str]:
    """How a user may name a unit: as it stands, or by its lemma."""
    return [unit.text.lower(), *(reading.lemma for reading in unit.readings)]


def _from_llm(unit: Unit, suggested: Suggestions) -> list[Substitute]:
    texts = next((suggested[name] for name in _names(unit) if name in suggested), ())
    return [Substitute(text, "llm", _LLM * _LLM_NEXT**i) for i, text in enumerate(texts)]


def _edited(unit: Unit, ladder: list[Substitute], edits: Edits, n: int) -> list[Substitute]:
    """Pinned, added, then the ladder by quality: without vetoed and repeated ones, at most n."""
    pinned = [Substitute(text, "user", _USER) for text in _named(unit, edits.pin)]
    added = [Substitute(text, "user", _USER) for text in _named(unit, edits.add)]
    ladder = sorted(ladder, key=lambda option: (-option.quality, option.text))
    best: dict[str, Substitute] = {}
    for option in [*pinned, *added, *ladder]:
        known = option.text.lower()
        if known != unit.text.lower() and (option.source == "user" or known not in edits.veto):
            best.setdefault(known, option)
    return list(best.values())[: max(n, len(pinned))]


def _named(unit: Unit, words: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return next((words[name] for name in _names(unit) if name in words), ())


def _in_place(unit: Unit, prompt: str, options: list[Substitute]) -> Slot:
    """The options with the word's capitals and, of a plural, the possessive ending."""
    plural = any(reading.tag == "NNS" for reading in unit.readings)
    owner = re.match(r"['’](?:[sS](?!\w)|(?!\w))", prompt[unit.end :]) if plural else None
    end = unit.end + (len(owner[0]) if owner else 0)
    texts = [with_case_of(unit.text, option.text) for option in options]
    if owner:
        mark = owner[0][0]
        texts = [text + (mark if text[-1] in "sS" else f"{mark}s") for text in texts]
    return Slot(
        prompt[unit.start : end],
        unit.start,
        end,
        tuple(replace(o, text=text) for o, text in zip(options, texts, strict=True)),
    )


ARTICLE = re.compile(r"(?<![\w'’-])(an?)(\s[\s(\[{\"“‘']*)$", re.IGNORECASE)


def _replaced(prompt: str, slot: Slot, word: str) -> str:
    """The prompt with the slot's word replaced, and the article before it if there is one."""
    before = prompt[: slot.start]
    found = ARTICLE.search(before)
    if found is not None:
        shouted = prompt.isupper()
        said = article(word, shouted=shouted)
        if shouted or found[1] == "AN":
            said = said.upper()
        elif found[1][0].isupper():
            said = said.capitalize()
        before = before[: found.start()] + said + found[2]
    return before + word + prompt[slot.end :]
