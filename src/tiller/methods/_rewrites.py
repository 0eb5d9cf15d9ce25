"""Methods that write whole prompts: the user's own first, then what somebody makes of it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.search import Phase, Problem
from tiller.methods.base import Method, Task
from tiller.solvers.proposer import Proposer
from tiller.spaces.texts import LENGTH, Texts

Scored = tuple[str, float]
Write = Callable[[list[Scored], int], Sequence[str]]
"""(prompts with their scores in the order in which they were tried, a seed) -> new prompts."""


@dataclass(frozen=True)
class Rewrites(Method, ABC):
    """Prompts written from outside, each drawn from the same noises, the baseline's.

    The reward compares every picture with the user's own prompt, whatever drew it.

    Attributes:
        noises: from how many noises each prompt is drawn; its score is the mean.
        unseen: noises that the search did not see, from which the best and the user's own prompt
            are drawn at the end, outside the budget; 0 for none.
    """

    noises: int = 3
    unseen: int = 8

    takes_affix: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noises < 1 or self.unseen < 0:
            raise InvalidInput(
                "expected noises of at least 1 and unseen of at least 0, got "
                f"noises={self.noises!r}, unseen={self.unseen!r}"
            )

    @property
    def repeats(self) -> int:
        """`noises`."""
        return self.noises

    def rewrites(
        self, task: Task, write: Write, *, iterations: int = 1, length: int = LENGTH
    ) -> list[Phase]:
        """The user's prompt, then `iterations` rounds of what `write` makes of the history.

        Texts longer than `length` letters are cut at a space.
        """
        noise = self.noise(task).sample(self.noises, Stream(task.seed))
        space = Texts(task.model, noise, task.prompt, task.negative_prompt, length=length)

        def propose(z: Tensor, score: Tensor, seed: int) -> Tensor:
            history = list(zip(space.texts(z), score.tolist(), strict=True))
            written = write(history, seed)
            return space.points([_cut(text, space.length) for text in written])

        solver = Proposer(propose=propose, iterations=iterations)
        problem = Problem(space, self.pictures(task), solver)
        return [Phase("rewriting", lambda _: problem)]


def _cut(text: str, length: int) -> str:
    """A text of at most `length` letters, without the word that would be cut."""
    text = text.replace("\0", " ")
    if len(text) <= length:
        return text
    return text[: length + 1].rpartition(" ")[0] or text[:length]
