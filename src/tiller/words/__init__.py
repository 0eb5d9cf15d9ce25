"""Words: what may stand for the words of a prompt, offline. No torch is needed.

    space = positive_substitutions("a black cat on a white background")
    print(space.describe())
    space.text([1, 0, 0, 0])

`lexicon` reads WordNet 3.0 (`build` makes its file), `phrases` reads a prompt, `senses` chooses
what its words mean, `ladder` finds candidates, and `substitutions` puts them together with the
user's `choices` and the library of `negatives`.
"""

from __future__ import annotations

from tiller.words.choices import Choices, load_choices
from tiller.words.ladder import Substitute
from tiller.words.lexicon import Lexicon, load_lexicon
from tiller.words.negatives import library_slots, negative_library
from tiller.words.substitutions import (
    Slot,
    Substitutions,
    negative_substitutions,
    positive_substitutions,
)

__all__ = [
    "Choices",
    "Lexicon",
    "Slot",
    "Substitute",
    "Substitutions",
    "library_slots",
    "load_choices",
    "load_lexicon",
    "negative_library",
    "negative_substitutions",
    "positive_substitutions",
]
