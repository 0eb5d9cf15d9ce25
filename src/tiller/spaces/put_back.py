"""A winner with its words put back one by one: what each of them is worth.

The gain of a word is the winner's score less that of the same words without it (leave-one-out).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiller.core.rng import Stream
from tiller.core.shapes import Choices
from tiller.core.space import Discrete
from tiller.models.inputs import Inputs
from tiller.spaces.words import Words


class PutBack(Discrete[Inputs]):
    """The space of words, whose first samples are the winner with one changed word put back.

    Args:
        words: the space that was searched.
        z: [1, positions], the winner.
        score: what it was worth.
    """

    def __init__(self, words: Words, z: Choices, score: float) -> None:
        self.words = words
        self.z = z
        self.score = score
        self.changed, self.start = put_back(words, z)

    @property
    def choices(self) -> tuple[int, ...]:
        """The words' own."""
        return self.words.choices

    def sample(self, n: int, rng: Stream) -> Choices:
        """Those with a word put back where the stream stands at its beginning, then any."""
        taken = self.start[rng.position : rng.position + n]
        for _ in range(len(taken)):
            rng.next()
        rest = n - len(taken)
        return torch.cat([taken, self.words.sample(rest, rng)]) if rest else taken.clone()

    def decode(self, z: Choices) -> Inputs:
        """As the words do."""
        return self.words.decode(z)

    def canonical(self, z: Choices) -> Choices:
        """As the words say."""
        return self.words.canonical(z)

    def allows(self, z: Choices) -> Tensor:
        """As the words say."""
        return self.words.allows(z)

    def describe(self) -> str:
        """How many words are put back, in which space."""
        return f"{self.words.describe()}\n{len(self.start)} words of the best put back, each alone"

    def notes(self, z: Choices, score: Tensor) -> dict[str, Any]:
        """The candidates, and the gain of each word that was put back."""
        gains = []
        tried = {tuple(row): one for row, one in zip(z.tolist(), score.tolist(), strict=True)}
        for j, row in zip(self.changed, self.start.tolist(), strict=True):
            if tuple(row) not in tried:
                continue
            position, option = self.words.positions[j], int(self.z[0, j])
            gains.append(
                {
                    "part": position.part,
                    "word": position.slot.word,
                    "start": position.slot.start,
                    "end": position.slot.end,
                    "option": position.text(option),
                    "source": position.slot.options[option - 1].source,
                    "gain": self.score - tried[tuple(row)],
                }
            )
        return {**self.words.notes(z, score), "gains": gains}


def put_back(words: Words, z: Choices) -> tuple[list[int], Tensor]:
    """The changed positions of z [1, positions], and z with each of them put back [m, positions].

    Without those that would not be allowed.
    """
    changed = [j for j, option in enumerate(z[0].tolist()) if option]
    variants = z.repeat(len(changed), 1)
    variants[torch.arange(len(changed)), changed] = 0
    variants = words.canonical(variants)
    good = words.allows(variants).tolist()
    return [j for j, one in zip(changed, good, strict=True) if one], variants[good]
