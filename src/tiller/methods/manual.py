"""`manual`: the prompt with a list of modifiers appended, as people do by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.search import Phase
from tiller.methods._rewrites import Rewrites, Scored
from tiller.methods.base import Task
from tiller.spaces.texts import LENGTH

MODIFIERS = (
    "highly detailed, sharp focus, clear outlines, good composition, balanced colours, "
    "soft natural light, high resolution, professional quality"
)
"""Ours: what guides for users of text-to-image models commonly advise to append."""


@dataclass(frozen=True)
class Manual(Rewrites):
    """The user's prompt, then the same with modifiers appended; the better picture is kept.

    No search and no model of anything: what hand-made prompts are compared with. It raises rewards
    that like such words, and does nothing for what the prompt asks for.

    Attributes:
        each: try every beginning of the list too, one modifier more each time.
        modifiers: what is appended, separated by commas.
    """

    each: bool = False
    modifiers: str = MODIFIERS

    citation: ClassVar[str] = (
        "Oppenlaender, A taxonomy of prompt modifiers for text-to-image generation, 2023"
    )
    default_budget: ClassVar[Budget] = Budget(steps=2)

    def build(self, task: Task) -> list[Phase]:
        """A round with the prompt as it is, then one with all that is made of it."""
        written = self.prompts(task.prompt)

        def write(history: Sequence[Scored], seed: int) -> Sequence[str]:
            return written

        return self.rewrites(task, write, length=max(LENGTH, len(written[-1])))

    def prompts(self, prompt: str) -> list[str]:
        """What is made of a prompt, the longest last.

        Raises:
            InvalidInput: there is no modifier.

        Example:
            >>> Manual(modifiers="sharp, bright", each=True).prompts("a cat.")
            ['a cat, sharp', 'a cat, sharp, bright']
        """
        modifiers = [part for part in (p.strip() for p in self.modifiers.split(",")) if part]
        if not modifiers:
            raise InvalidInput(
                f"expected modifiers separated by commas, got modifiers={self.modifiers!r}"
            )
        start = prompt.rstrip().rstrip(".,;")
        counts = range(1, len(modifiers) + 1) if self.each else [len(modifiers)]
        return [", ".join([start, *modifiers[:k]]) for k in counts]
