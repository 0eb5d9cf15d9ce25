"""The captions' language: words, templates, the prompts of a split, and a parser back to labels.

Everything a prompt can name is a row of a table here, so that the scenes, the judge and the
evaluation agree on it. No font and no torch is needed to write or to read a prompt.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tiller.core.errors import TillerError

NATURAL = "natural"

# subject -> (code point of its emoji, rarer words for it). The rarer words are WordNet synonyms,
# hyponyms or children's words; each stands for one subject only.
SUBJECTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "cat": (0x1F408, ("kitty", "feline", "tomcat", "pussycat")),
    "dog": (0x1F415, ("puppy", "hound", "canine", "doggy")),
    "rabbit": (0x1F407, ("bunny", "hare", "cottontail")),
    "duck": (0x1F986, ("mallard", "drake", "duckling")),
    "owl": (0x1F989, ("hooter", "owlet")),
    "horse": (0x1F40E, ("stallion", "pony", "mare")),
    "cow": (0x1F404, ("cattle", "heifer")),
    "pig": (0x1F416, ("hog", "swine", "piglet")),
    "sheep": (0x1F411, ("lamb", "ewe")),
    "elephant": (0x1F418, ("pachyderm",)),
    "snake": (0x1F40D, ("serpent", "viper")),
    "turtle": (0x1F422, ("tortoise", "terrapin")),
    "fish": (0x1F41F, ("trout", "salmon")),
    "whale": (0x1F40B, ("cetacean",)),
    "octopus": (0x1F419, ("devilfish",)),
    "snail": (0x1F40C, ("escargot",)),
    "bee": (0x1F41D, ("honeybee", "bumblebee")),
    "butterfly": (0x1F98B, ("moth", "monarch")),
    "crab": (0x1F980, ("crustacean",)),
    "penguin": (0x1F427, ("seabird",)),
    "rooster": (0x1F413, ("cock", "cockerel")),
    "apple": (0x1F34E, ("pippin",)),
    "banana": (0x1F34C, ("plantain",)),
    "car": (0x1F697, ("automobile", "auto", "motorcar")),
    "sailboat": (0x26F5, ("yacht", "boat", "dinghy")),
    "truck": (0x1F69A, ("lorry", "van")),
    "tree": (0x1F333, ("oak", "elm")),
    "cactus": (0x1F335, ("succulent",)),
    "mushroom": (0x1F344, ("toadstool", "fungus")),
    "hammer": (0x1F528, ("mallet", "gavel")),
    "key": (0x1F511, ("latchkey",)),
    "umbrella": (0x2602, ("parasol", "brolly")),
}

# colour -> rarer words for it.
COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet", "ruby"),
    "orange": ("tangerine",),
    "yellow": ("lemon", "golden"),
    "green": ("emerald", "jade"),
    "blue": ("azure", "sapphire"),
    "purple": ("violet", "mauve"),
    "pink": ("rose", "rosy"),
    "brown": ("chestnut", "umber"),
    "black": ("ebony", "jet"),
    "white": ("ivory", "snowy"),
    "gray": ("grey", "ashen"),
}

BACKGROUNDS: tuple[str, ...] = (
    "white", "gray", "black", "yellow", "green", "blue", "pink", "orange",
)  # fmt: skip

SUBJECT_NAMES: tuple[str, ...] = tuple(SUBJECTS)
COLOUR_NAMES: tuple[str, ...] = (NATURAL, *COLOURS)

# `{s}` is the subject phrase ("a red cat and a blue dog"), `{b}` the background's colour word.
PLAIN: tuple[str, ...] = ("{s}", "a picture of {s}", "a drawing of {s}")
WITH_BACKGROUND: tuple[str, ...] = (
    "{s} on {b} background",
    "{s} on {b} background",
    "a picture of {s} on {b} background",
    "{s} in front of {b} background",
    "{b} background with {s}",
)
JOINS: tuple[str, ...] = (" and ", " and ", " next to ", " beside ")

RARE_WORD = 0.06  # chance that a subject's or a colour's word is one of its rarer words
NO_BACKGROUND = 0.25  # chance that a caption leaves the background out
TWO_SUBJECTS = 0.3  # chance of two subjects in a scene
HELD_OUT_IN = 10  # one combination in so many is never trained on

Kind = Literal["one", "two"]
Split = Literal["train", "test", "train-b", "test-b"]

_SUBJECT_OF = {w: name for name, (_, rare) in SUBJECTS.items() for w in (name, *rare)}
_COLOUR_OF = {w: name for name, rare in COLOURS.items() for w in (name, *rare)}


@dataclass(frozen=True)
class Spec:
    """What a prompt names: subjects with their colours, left to right, and the background.

    A colour of `None` is the subject's natural colour; a background of `None` is not named.
    """

    subjects: tuple[tuple[str, str | None], ...]
    background: str | None = None


def held_out(spec: Spec, salt: int = 0) -> bool:
    """Whether this combination is kept out of training (one in `HELD_OUT_IN`, by hash).

    One subject is held out as (subject, colour, background), two as the ordered pair.
    """
    named = f"{spec.subjects}" + (f"{spec.background}" if len(spec.subjects) == 1 else "")
    digest = hashlib.sha256(f"{salt}:{named}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_IN == 0


def in_split(spec: Spec, split: Split) -> bool:
    """Whether a scene of this spec belongs to the split (`-b` is the second CLIP's division)."""
    return held_out(spec, 1 if split.endswith("-b") else 0) == split.startswith("test")


def random_spec(rng: np.random.Generator, split: Split, kind: Kind) -> Spec:
    """Draw a spec of the split; every subject, colour and background equally likely."""
    count = 1 if kind == "one" else 2
    while True:
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        allowed = [c for c in COLOUR_NAMES if c != background]
        picks = rng.choice(len(SUBJECT_NAMES), count, replace=False)
        colours = [allowed[rng.integers(len(allowed))] for _ in picks]
        subjects = tuple(
            (SUBJECT_NAMES[i], None if c == NATURAL else c)
            for i, c in zip(picks, colours, strict=True)
        )
        spec = Spec(subjects, background)
        if in_split(spec, split):
            return spec


def caption(spec: Spec, rng: np.random.Generator, *, rare: float = RARE_WORD) -> str:
    """Write a prompt for the spec: a random template, with a rarer word now and then."""

    def word(name: str, others: tuple[str, ...]) -> str:
        return others[rng.integers(len(others))] if rng.random() < rare else name

    def article(phrase: str) -> str:
        return ("an " if phrase[0] in "aeiou" else "a ") + phrase

    phrases = []
    for subject, colour in spec.subjects:
        noun = word(subject, SUBJECTS[subject][1])
        phrases.append(
            article(noun if colour is None else f"{word(colour, COLOURS[colour])} {noun}")
        )
    named = JOINS[rng.integers(len(JOINS))].join(phrases)
    if spec.background is None:
        return PLAIN[rng.integers(len(PLAIN))].format(s=named)
    template = WITH_BACKGROUND[rng.integers(len(WITH_BACKGROUND))]
    behind = article(word(spec.background, COLOURS[spec.background]))
    return template.format(s=named, b=behind)


def prompts(split: Split, n: int, seed: int = 0, kind: Kind = "one") -> list[tuple[str, Spec]]:
    """`n` different evaluation prompts of the split with what they name, in common words only.

    Example:
        >>> [(prompt, spec)] = prompts("test", 1)
        >>> parse(prompt) == spec
        True
    """
    rng = np.random.default_rng([seed, 7919])
    found: dict[str, Spec] = {}
    while len(found) < n:
        spec = random_spec(rng, split, kind)
        found.setdefault(caption(spec, rng, rare=0.0), spec)
    return list(found.items())


def parse(prompt: str) -> Spec:
    """Read a prompt of the captions' language back into what it names.

    Words outside the tables are skipped; a colour word belongs to the next subject, or to the
    background if the word "background" follows it.

    Raises:
        TillerError: the prompt names no subject of `SUBJECTS`.

    Example:
        >>> parse("a crimson bunny on a green background")
        Spec(subjects=(('rabbit', 'red'),), background='green')
    """
    subjects: list[tuple[str, str | None]] = []
    colour: str | None = None
    background: str | None = None
    for token in re.findall(r"[a-z]+", prompt.lower()):
        if token in _COLOUR_OF:
            colour = _COLOUR_OF[token]
        elif token == "background":
            background, colour = colour, None
        elif token in _SUBJECT_OF:
            subjects.append((_SUBJECT_OF[token], colour))
            colour = None
    if not subjects:
        raise TillerError(
            f"expected a prompt that names one of {', '.join(SUBJECTS)}, got {prompt=}; "
            "name a subject of that list."
        )
    return Spec(tuple(subjects), background)
