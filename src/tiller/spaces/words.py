"""Words as a space: what stands for each word of the prompt, and what the negative prompt says.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff), section 4.2.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.shapes import Choices
from tiller.core.space import Discrete
from tiller.models.base import FrozenModel
from tiller.models.inputs import Inputs
from tiller.words.segments import listed
from tiller.words.similarity import Similarity
from tiller.words.substitutions import Slot, Substitutions

Part = Literal["prompt", "negative_prompt"]


@dataclass(frozen=True)
class Position:
    """One position of z: a slot, and which of the two prompts it belongs to."""

    part: Part
    slot: Slot

    def text(self, option: int) -> str:
        """What the slot says under an option: in a prompt its own word for 0, else nothing."""
        if option:
            return self.slot.options[option - 1].text
        return self.slot.word if self.part == "prompt" else ""


@dataclass(frozen=True)
class Wording:
    """The words that may change, and those that do not.

    Attributes:
        prompt: the user's.
        negative_prompt: the user's; what is chosen comes after it.
        positive: what may stand for words of the prompt; None to leave it alone.
        negative: what the negative prompt may say besides; None for nothing.
        similarity: compares prompts with the user's, where that is limited.
        least: the lowest similarity that is allowed.
        longest: tokens that a prompt may have, both ends included; 0 for any number. More would
            push words out of what the text encoder reads.
    """

    prompt: str
    negative_prompt: str = ""
    positive: Substitutions | None = None
    negative: Substitutions | None = None
    similarity: Similarity | None = None
    least: float = 0.0
    longest: int = 0

    @property
    def positions(self) -> tuple[Position, ...]:
        """The slots of the prompt, then those of the negative prompt."""
        return tuple(self._positions())

    def _positions(self) -> Iterator[Position]:
        for slot in self.positive.slots if self.positive else ():
            yield Position("prompt", slot)
        for slot in self.negative.slots if self.negative else ():
            yield Position("negative_prompt", slot)

    def texts(self, choice: list[int]) -> tuple[str, str]:
        """The prompt and the negative prompt of one option a position."""
        own = len(self.positive.slots) if self.positive else 0
        prompt = self.positive.text(choice[:own]) if self.positive else self.prompt
        chosen = [p.text(o) for p, o in zip(self.positions[own:], choice[own:], strict=True)]
        return prompt, listed(chosen, self.negative_prompt)


class Words(Discrete[Inputs]):
    """Prompts and negative prompts, each candidate drawn from the same S noises.

    z [n, positions]: one option a slot, the prompt's slots before the negative prompt's; zeros are
    the user's own words. Decodes to n * S rows, a candidate's S noises one after another.

    Negative prompts name each thing once, so several choices may say the same; the canonical one
    takes each text from the first slot that can say it there.

    Args:
        model: encodes the texts.
        wording: what may change.
        noise: [S, slots, C, h, w], shared by all candidates.

    Raises:
        InvalidInput: `noise` has another shape, or a limit on the similarity nothing to measure it.

    Example:
        >>> model = tiller.load_model("emoji")                                     # doctest: +SKIP
        >>> wording = Wording("a red cat", positive=positive_substitutions("a red cat"))
        ...                                                                        # doctest: +SKIP
        >>> space = Words(model, wording, noise)                                   # doctest: +SKIP
        >>> space.decode(torch.tensor([[1, 0]])).prompts                           # doctest: +SKIP
        ('a scarlet cat',)
    """

    def __init__(self, model: FrozenModel, wording: Wording, noise: Tensor) -> None:
        if noise.ndim != 5 or not len(noise):
            raise InvalidInput(f"noise must be [S, slots, C, h, w], got {list(noise.shape)}")
        if wording.least > 0 and wording.similarity is None:
            raise InvalidInput(f"least={wording.least} needs a similarity to measure, got None")
        self.model = model
        self.wording = wording
        self.noise = noise
        self.positions = wording.positions

    @property
    def choices(self) -> tuple[int, ...]:
        """The slots' sizes."""
        return tuple(position.slot.size for position in self.positions)

    def texts(self, z: Choices) -> list[tuple[str, str]]:
        """The prompt and the negative prompt of each candidate z [n, positions]."""
        return [self.wording.texts(choice) for choice in z.tolist()]

    def decode(self, z: Choices) -> Inputs:
        """n * S rows: every candidate's words with each of the S noises."""
        repeats = len(self.noise)
        texts = [text for text in self.texts(z) for _ in range(repeats)]
        prompts, negatives = tuple(p for p, _ in texts), tuple(n for _, n in texts)
        noise = self.noise.repeat(len(z), *[1] * (self.noise.ndim - 1))
        with cut_silently():
            conditioning = self.model.encode(prompts, negatives)
        return Inputs(noise, conditioning, prompts, negatives)

    def canonical(self, z: Choices) -> Choices:
        """The choices [n, positions] that say what z's do, each text as early as it can be said."""
        rows = [self._earliest(row) for row in z.tolist()]
        return torch.tensor(rows, dtype=torch.int64).reshape(z.shape)

    def _earliest(self, choice: list[int]) -> list[int]:
        found = [
            o if p.part == "prompt" else 0 for p, o in zip(self.positions, choice, strict=True)
        ]
        free = 0
        said: set[str] = set()
        for position, option in zip(self.positions, choice, strict=True):
            text = position.text(option)
            if position.part == "prompt" or not option or text in said:
                continue
            said.add(text)
            place, own = next(
                (j, [o.text for o in later.slot.options].index(text) + 1)
                for j, later in enumerate(self.positions)
                if j >= free and later.part == "negative_prompt" and _says(later.slot, text)
            )
            found[place], free = own, place + 1
        return found

    def allows(self, z: Choices) -> Tensor:
        """Whether each prompt is short enough and similar enough to the user's, [n] bool."""
        allowed = super().allows(z)
        if self.wording.longest and len(z):
            counts = self.model.token_counts([prompt for prompt, _ in self.texts(z)], cut=False)
            allowed &= torch.tensor(counts, dtype=torch.int64) <= self.wording.longest
        if self.wording.least > 0:
            allowed &= self.similarity(z) >= self.wording.least
        return allowed

    def similarity(self, z: Choices) -> Tensor:
        """How similar each prompt is to the user's, [n] in float64."""
        assert self.wording.similarity is not None, "checked where the space is made"
        return self.wording.similarity([prompt for prompt, _ in self.texts(z)])

    def describe(self) -> str:
        """The words, their options with where each comes from, and the size."""
        parts = [s.describe() for s in (self.wording.positive, self.wording.negative) if s]
        least = self.wording.least
        if least > 0:
            parts.append(f"prompts at least {least:g} similar to the user's")
        if len(parts) > 1:
            parts.append(f"together {self.size:,} prompts")
        return "\n".join(parts) or "no word may change"

    def notes(self, z: Choices, score: Tensor) -> dict[str, Any]:
        """What each candidate says, as a whole and a slot, and what it was worth."""
        candidates: list[dict[str, Any]] = [
            {
                "prompt": prompt,
                "negative_prompt": negative,
                "says": [p.text(o) for p, o in zip(self.positions, choice, strict=True)],
                "score": float(one),
            }
            for (prompt, negative), choice, one in zip(
                self.texts(z), z.tolist(), score, strict=True
            )
        ]
        if self.wording.similarity is not None:
            for note, one in zip(candidates, self.similarity(z).tolist(), strict=True):
                note["similarity"] = one
        slots = [{"part": one.part, "word": one.slot.word} for one in self.positions]
        return {"slots": slots, "candidates": candidates}


class LearnedWords(Words):
    """The same space, whose samples are drawn from a distribution: one categorical a position.

    Args:
        words: the space.
        logits: [positions, options], at least as many as the largest slot has.
    """

    def __init__(self, words: Words, logits: Tensor) -> None:
        super().__init__(words.model, words.wording, words.noise)
        self.probabilities = probabilities(logits, self.choices)

    @property
    def mode(self) -> Choices:
        """The likeliest candidate [1, positions]."""
        return self.probabilities.argmax(dim=1)[None]

    def sample(self, n: int, rng: Stream) -> Choices:
        """`n` draws [n, positions], by inversion of one uniform number a position."""
        steps = self.probabilities.double().cumsum(dim=1)
        limits = torch.tensor(self.choices) - 1
        rows = [
            torch.rand(len(steps), 1, generator=rng.next(), dtype=torch.float64) for _ in range(n)
        ]
        drawn = [torch.searchsorted(steps, row, right=True)[:, 0] for row in rows]
        return torch.stack(drawn).clamp(max=limits)


def log_chances(logits: Tensor, choices: tuple[int, ...]) -> Tensor:
    """Log of what each option weighs, up to a constant a position; -inf where there is none.

    The user's own option weighs as much as its substitutes together when all logits are 0: else a
    slot with a whole library behind it would hardly ever be left empty.

    Args:
        logits: [..., positions, options], option 0 the user's own.
        choices: how many options each position has.
    """
    sizes = torch.tensor(choices, device=logits.device)
    option = torch.arange(logits.shape[-1], device=logits.device)
    own = (sizes - 1).clamp(min=1).to(logits).log()[:, None] * (option == 0)
    return (logits + own).masked_fill(option >= sizes[:, None], -torch.inf)


def probabilities(logits: Tensor, choices: tuple[int, ...]) -> Tensor:
    """softmax of `log_chances` of logits [..., positions, options] over the options."""
    return log_chances(logits, choices).softmax(dim=-1)


@contextlib.contextmanager
def cut_silently() -> Iterator[None]:
    """No word on texts that the encoder cuts: whoever made the space has said it once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _says(slot: Slot, text: str) -> bool:
    return any(option.text == text for option in slot.options)
