"""Words relaxed: a distribution over the options of each slot, mixed inside the text encoder.

    p(w = i) = exp((log alpha_i + g_i) / tau) / sum_j exp((log alpha_j + g_j) / tau)

with log alpha = z, and the user's own option as heavy as the others together where z = 0; g is the
Gumbel noise of a round. What is mixed are the token embeddings, before
positions, causal mask and all layers of the text encoder.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff), section
4.3.2, equation 6; Jang et al. 2017, "Categorical reparameterization with Gumbel-softmax".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.objective import Regulariser
from tiller.core.rng import Draw, Stream
from tiller.core.shapes import Points
from tiller.core.space import Continuous
from tiller.models.base import Conditioning
from tiller.models.pieces import Choice, Piece
from tiller.spaces.words import Words, cut_silently, log_chances, probabilities
from tiller.words.segments import Segment, segments

Texts = tuple[list[list[Piece]], list[list[Piece]]]
"""Prompts and negative prompts, made of pieces."""

LARGEST = 3.0  # of a logit; the smallest is 0 (the authors' release)


@dataclass(frozen=True)
class SoftWords:
    """What relaxed words decode to: an objective draws the Gumbel noise and encodes them.

    Attributes:
        words: whose slots they are.
        logits: z [n, positions, options].
        noise: [n * S, slots, C, h, w], a candidate's S noises one after another.
    """

    words: RelaxedWords
    logits: Tensor
    noise: Tensor

    def conditioning(self, gumbel: Tensor, tau: float = 1.0) -> Conditioning:
        """The encoded mixtures: n * S rows, with the graph of the logits.

        Args:
            gumbel: [S, positions, options], the noise g; the same for all candidates.
            tau: the temperature.
        """
        return self.words.encoded(self._weights(gumbel, tau))

    def texts(self, gumbel: Tensor, tau: float = 1.0) -> Texts:
        """What `conditioning` encodes: of several prompts it may be encoded as one batch."""
        return self.words.texts(self._weights(gumbel, tau))

    def _weights(self, gumbel: Tensor, tau: float) -> Tensor:
        log_alpha = log_chances(self.logits, self.words.space.choices)
        weights = ((log_alpha[:, None] + gumbel.to(log_alpha)) / tau).softmax(dim=-1)
        return weights.flatten(0, 1)


class RelaxedWords(Continuous[SoftWords]):
    """The distributions over the candidates of `Words`: z [n, positions, options] of logits.

    All samples are the start: `start` for the user's own words, 0 for the others. Logits are kept
    in [0, 3]. Positions with fewer options than others have numbers that nothing reads.

    Args:
        space: the words.
        start: logit of the user's own words (the authors' release: 1).

    Raises:
        InvalidInput: the space has one candidate, or `start` is not in [0, 3].

    Example:
        >>> relaxed = RelaxedWords(space)                                          # doctest: +SKIP
        >>> LearnedWords(space, relaxed.sample(1, Stream(0))[0]).mode              # doctest: +SKIP
        tensor([[0, 0]])
    """

    def __init__(self, space: Words, start: float = 1.0) -> None:
        if not 0 <= start <= LARGEST:
            raise InvalidInput(f"start must lie in [0, {LARGEST:g}], as every logit; got {start=}")
        if space.size < 2:
            raise InvalidInput(
                f"a relaxation needs words with options, got a space of {space.size} prompt"
            )
        self.space = space
        self.start = start
        positive = space.wording.positive
        self._segments = segments(positive) if positive else (Segment((space.wording.prompt,)),)
        self._own = len(positive.slots) if positive else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(positions, options of the largest slot)."""
        return len(self.space.choices), max(self.space.choices)

    @property
    def logits(self) -> Tensor:
        """[positions, options] of the start."""
        z = torch.zeros(self.shape)
        z[:, 0] = self.start
        return z

    def sample(self, n: int, rng: Stream) -> Points:
        """The start, `n` times."""
        for _ in range(n):
            rng.next()
        return self.logits.repeat(n, 1, 1)

    def project(self, z: Points) -> Points:
        """The nearest logits in [0, 3]."""
        return z.clamp(0.0, LARGEST)

    def decode(self, z: Points) -> SoftWords:
        """The logits beside the S noises of each candidate."""
        noise = self.space.noise
        return SoftWords(self, z, noise.repeat(len(z), *[1] * (noise.ndim - 1)))

    def encoded(self, weights: Tensor) -> Conditioning:
        """The conditioning of mixtures: weights [rows, positions, options] that sum to 1.

        One-hot weights give what the space's own `decode` gives for those options.
        """
        with cut_silently():
            return self.space.model.encode_pieces(*self.texts(weights))

    def texts(self, weights: Tensor) -> Texts:
        """The texts of such mixtures, made of pieces."""
        wording = self.space.wording
        rows = [[row[j, :size] for j, size in enumerate(self.space.choices)] for row in weights]
        positive: list[list[Piece]] = [[wording.prompt]] * len(rows)
        negative: list[list[Piece]] = [[wording.negative_prompt]] * len(rows)
        if wording.positive:
            positive = [self._prompt(row) for row in rows]
        if wording.negative:
            negative = [self._negative(row[self._own :]) for row in rows]
        return positive, negative

    def _prompt(self, weights: Sequence[Tensor]) -> list[Piece]:
        """The prompt's stretches, those of slots mixed."""
        pieces: list[Piece] = []
        for segment in self._segments:
            wordings = tuple(wording.strip() for wording in segment.wordings)
            if segment.slot is not None:
                pieces.append(Choice(wordings, weights[segment.slot]))
            elif wordings[0]:
                pieces.append(wordings[0])
        return pieces

    def _negative(self, weights: Sequence[Tensor]) -> list[Piece]:
        """What is said, with commas between: a stretch brings the one before it.

        A slot whose likeliest option repeats what was said has no stretch.
        """
        wording = self.space.wording
        assert wording.negative is not None
        own = wording.negative_prompt
        slots = [("", *(option.text for option in slot.options)) for slot in wording.negative.slots]
        likeliest = [o[int(w.argmax())] for o, w in zip(slots, weights, strict=True)]
        if any(likeliest):
            own = own.rstrip().rstrip(",")
        pieces: list[Piece] = [own] if own else []
        said: set[str] = set()
        for options, text, chances in zip(slots, likeliest, weights, strict=True):
            if text in said:
                continue
            comma = ", " if own or said else ""
            pieces.append(Choice(("", *(comma + option for option in options[1:])), chances))
            said |= {text} - {""}
        return pieces

    def describe(self) -> str:
        """How many distributions, over how many options."""
        return f"relaxed words: {len(self.space.choices)} distributions over {self.space.choices}"

    def notes(self, z: Points, score: Tensor) -> dict[str, Any]:
        """The distribution of the best candidate, slot by slot."""
        chances = probabilities(z[int(score.argmax())], self.space.choices)
        return {
            "distribution": [
                {
                    "part": position.part,
                    "word": position.slot.word,
                    "options": [position.text(option) for option in range(position.slot.size)],
                    "probabilities": row[: position.slot.size].tolist(),
                }
                for position, row in zip(self.space.positions, chances, strict=True)
            ]
        }


class SimilarityPenalty(Regulariser):
    """How far the prompts of a distribution lie below the least similarity, to first order.

        value(z) = max(0, sum_j sum_i p_ji (1 - s_ji) - (1 - lambda)),     p = softmax(z)

    s_ji is the similarity of the user's prompt with option i at position j alone, which any encoder
    gives, differentiable or not. Losses of single words are added up.

    Args:
        space: words with a limit lambda on the similarity.
        weight: of the penalty.
    """

    def __init__(self, space: Words, weight: float = 1.0) -> None:
        if not 0 <= weight < float("inf"):
            raise InvalidInput(f"the weight must be finite and not negative, got {weight=}")
        self.weight = weight
        self.choices = space.choices
        self.slack = 1 - space.wording.least
        self.losses = torch.zeros(len(space.choices), max(space.choices))
        for j, size in enumerate(space.choices):
            alone = torch.zeros(size, len(space.choices), dtype=torch.int64)
            alone[:, j] = torch.arange(size)
            self.losses[j, :size] = 1 - space.similarity(alone)

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        """The penalty [n] of z [n, positions, options], at least 0; differentiable."""
        expected = probabilities(z, self.choices) * self.losses.to(z)
        return (expected.sum(dim=(1, 2)) - self.slack).clamp(min=0)
