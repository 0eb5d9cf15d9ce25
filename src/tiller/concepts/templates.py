"""The sentences that a concept is learned and tried in; `{}` is where its token stands.

A picture of a thing says the same thing in many ways, so that what is learned is the thing and not
the sentence. The sentences are ours; that there are some of each kind is Gal et al.'s (section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiller.core.errors import InvalidInput

OBJECT = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a photo of one {}",
    "a photo of the {}",
    "a photo of my {}",
    "a picture of the {}",
    "a picture of one {}",
    "an image of the {}",
    "a close photo of {}",
    "a close picture of the {}",
    "a cropped photo of {}",
    "a cropped picture of the {}",
    "a clear photo of {}",
    "a clear picture of the {}",
    "a bright photo of {}",
    "a dark photo of the {}",
    "a small photo of {}",
    "a large photo of the {}",
    "a good photo of {}",
    "a good picture of the {}",
    "a nice photo of {}",
    "a nice image of the {}",
    "a plain photo of {}",
    "a simple picture of {}",
    "a detailed image of the {}",
    "a drawing of {}",
)

STYLE = (
    "a picture in the style of {}",
    "a painting in the style of {}",
    "a drawing in the style of {}",
    "an image in the style of {}",
    "a picture drawn in the style of {}",
    "a painting made in the style of {}",
    "a small painting in the style of {}",
    "a large painting in the style of {}",
    "a bright painting in the style of {}",
    "a dark painting in the style of {}",
    "a simple drawing in the style of {}",
    "a detailed drawing in the style of {}",
    "a nice picture in the style of {}",
    "a good picture in the style of {}",
    "a clear image in the style of {}",
    "a plain picture in the style of {}",
    "a close picture in the style of {}",
    "a cropped painting in the style of {}",
    "a print in the style of {}",
)

# The bundled model's own captions begin so, with an article: of a bare word it draws the subject
# in a fifth of its pictures. Its styles stand where its colours do.
EMOJI_OBJECT = (
    "a picture of {}",
    "a drawing of {}",
    "a {}",
    "a picture of a {}",
    "a drawing of a {}",
)
EMOJI_STYLE = (
    "a {} picture",
    "a {} drawing",
    "a picture of {}",
    "a drawing of {}",
)

# How editability asks for something else: (the prompt, what it says beside the token).
EDITS_OBJECT = (
    ("a photo of {} on the moon", "a photo on the moon"),
    ("a photo of {} on a beach", "a photo on a beach"),
    ("a photo of {} in the snow", "a photo in the snow"),
    ("a photo of {} in a forest", "a photo in a forest"),
    ("an oil painting of {}", "an oil painting"),
    ("a pencil sketch of {}", "a pencil sketch"),
    ("a watercolour of {}", "a watercolour"),
    ("{} made of glass", "made of glass"),
)
EDITS_STYLE = (
    ("a cat in the style of {}", "a cat"),
    ("a house in the style of {}", "a house"),
    ("a mountain lake in the style of {}", "a mountain lake"),
    ("a portrait of a woman in the style of {}", "a portrait of a woman"),
    ("a city street in the style of {}", "a city street"),
    ("a bowl of fruit in the style of {}", "a bowl of fruit"),
)
EDITS_EMOJI_OBJECT = (
    ("a {} on a blue background", "on a blue background"),
    ("a {} on a green background", "on a green background"),
    ("a {} on a yellow background", "on a yellow background"),
    ("a {} on a pink background", "on a pink background"),
    ("a {} on a black background", "on a black background"),
    ("a {} and a red car", "a red car"),
    ("a {} and a black cat", "a black cat"),
)
EDITS_EMOJI_STYLE = (
    ("a {} cat", "a cat"),
    ("a {} owl", "an owl"),
    ("a {} car", "a car"),
    ("a {} tree", "a tree"),
    ("a {} fish", "a fish"),
)

SUBJECTS = ("object", "style")


def training(subject: str, *, emoji: bool = False) -> tuple[str, ...]:
    """The sentences that a thing or a style is learned in; the first is the plainest.

    Args:
        subject: `object` or `style`.
        emoji: for the bundled model, which knows few words.
    """
    _check(subject)
    if emoji:
        return EMOJI_OBJECT if subject == "object" else EMOJI_STYLE
    return OBJECT if subject == "object" else STYLE


def edits(subject: str, *, emoji: bool = False) -> tuple[tuple[str, str], ...]:
    """The prompts of editability, with what they say beside the token."""
    _check(subject)
    if emoji:
        return EDITS_EMOJI_OBJECT if subject == "object" else EDITS_EMOJI_STYLE
    return EDITS_OBJECT if subject == "object" else EDITS_STYLE


def filled(template: str, words: str) -> str:
    """`template` about `words`."""
    return template.replace("{}", words)


def fits(sentence: str, tokenizers: Sequence[Any], tokens: int = 0) -> bool:
    """Whether text encoders read the sentence whole, with so many tokens for its `{}`."""
    rest = sentence.replace("{}", " ")
    return all(len(t(rest).input_ids) + tokens <= t.model_max_length for t in tokenizers)


def _check(subject: str) -> None:
    if subject not in SUBJECTS:
        raise InvalidInput(f"the kind of a concept is object or style, got {subject!r}")
