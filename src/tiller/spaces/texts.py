"""Whole prompts as a space: any text, letter by letter, so that a candidate says itself.

For proposers that write prompts (`solvers.proposer`); nobody searches letters one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.shapes import Choices
from tiller.core.space import Discrete
from tiller.models.base import FrozenModel
from tiller.models.inputs import Inputs

_CODES = 0x110000  # Unicode's; 0 ends a text
LENGTH = 512
"""Letters that a text may have by default: more than a CLIP text encoder reads."""


class Texts(Discrete[Inputs]):
    """Prompts, each candidate drawn from the same S noises; its samples are the user's prompt.

    z [n, length]: the code points of a text, then zeros. Decodes to n * S rows, a candidate's S
    noises one after another.

    Args:
        model: encodes the texts.
        noise: [S, slots, C, h, w], shared by all candidates.
        prompt: the user's.
        negative_prompt: the user's, for every candidate.
        length: letters at most; longer if the user's prompt is.

    Raises:
        InvalidInput: `noise` has another shape, or `length` is below 1.

    Example:
        >>> model = tiller.load_model("emoji")                                     # doctest: +SKIP
        >>> space = Texts(model, noise, "a red cat")                               # doctest: +SKIP
        >>> space.texts(space.points(["a crimson cat"]))                           # doctest: +SKIP
        ['a crimson cat']
    """

    def __init__(
        self,
        model: FrozenModel,
        noise: Tensor,
        prompt: str,
        negative_prompt: str = "",
        *,
        length: int = LENGTH,
    ) -> None:
        if noise.ndim != 5 or not len(noise):
            raise InvalidInput(f"noise must be [S, slots, C, h, w], got {list(noise.shape)}")
        if length < 1:
            raise InvalidInput(f"length must be at least 1, got {length=}")
        self.model, self.noise = model, noise
        self.prompt, self.negative_prompt = prompt, negative_prompt
        self.length = max(length, len(prompt))

    @property
    def choices(self) -> tuple[int, ...]:
        """Every code point, at every place."""
        return (_CODES,) * self.length

    def sample(self, n: int, rng: Stream) -> Choices:
        """The user's prompt, `n` times: where every proposer begins."""
        for _ in range(n):
            rng.next()
        return self.points([self.prompt]).expand(n, -1).clone()

    def points(self, texts: Sequence[str]) -> Choices:
        """z [n, length] of n texts.

        Raises:
            InvalidInput: a text is longer than `length`, or holds the code point 0.
        """
        for text in texts:
            if len(text) > self.length or "\0" in text:
                raise InvalidInput(
                    f"expected texts of at most {self.length} letters without NUL, got "
                    f"{len(text)}: {text[:80]!r}"
                )
        z = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, text in zip(z, texts, strict=True):
            row[: len(text)] = torch.tensor([ord(letter) for letter in text], dtype=torch.int64)
        return z

    def texts(self, z: Choices) -> list[str]:
        """The text of each candidate z [n, length], up to its first 0."""
        rows = self.canonical(z).tolist()
        return ["".join(chr(code) for code in row if code) for row in rows]

    def canonical(self, z: Choices) -> Choices:
        """z with nothing after a text's end."""
        return torch.where((z == 0).cumsum(dim=1) == 0, z, 0)

    def decode(self, z: Choices) -> Inputs:
        """n * S rows: every candidate's text with each of the S noises."""
        repeats = len(self.noise)
        prompts = tuple(text for text in self.texts(z) for _ in range(repeats))
        negatives = (self.negative_prompt,) * len(prompts)
        noise = self.noise.repeat(len(z), *[1] * (self.noise.ndim - 1))
        with warnings.catch_warnings():  # that a proposal is longer than the encoder reads
            warnings.simplefilter("ignore", UserWarning)
            conditioning = self.model.encode(prompts, negatives)
        return Inputs(noise, conditioning, prompts, negatives)

    def describe(self) -> str:
        """Where it begins, and how long a text may be."""
        return f"texts of at most {self.length} letters, from {self.prompt!r}"

    def notes(self, z: Choices, score: Tensor) -> dict[str, Any]:
        """What each candidate says and what it was worth."""
        pairs = zip(self.texts(z), score.tolist(), strict=True)
        negative = self.negative_prompt
        return {
            "candidates": [
                {"prompt": text, "negative_prompt": negative, "score": one} for text, one in pairs
            ]
        }
