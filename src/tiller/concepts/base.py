"""What a method of learning a concept is: a frozen dataclass whose fields are its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tiller.concepts.objective import DenoisingLoss, Sampling
from tiller.concepts.vocabulary import Words
from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.search import Phase, SearchState
from tiller.spaces.concept import ConceptSpace


@dataclass(frozen=True)
class ConceptMethod(ABC):
    """A way to find a concept's vectors. One file, one frozen dataclass.

    The fields below belong to the loss, the start and the watch over it, and so to every method.

    Attributes:
        tokens: pseudo-words, 1 to 3 as a rule (the paper, section 4.3: one edits best).
        init: where the search begins: clip (the paper's cross-attention over the vocabulary),
            random (a word drawn from it), or words of the user's, such as bird.
        temperature: of the attention's softmax (CLIP's own scale; the paper prints none).
        clip: the CLIP of the attention: auto, emoji, or the hub id or folder of a CLIPModel.
        draws: (picture, timestep, noise) trials of one evaluation (the paper: 20).
        templates: different sentences among them, at most.
        ground: whether sentences say what colour is behind the thing ("on a blue background"),
            where a picture's border has one; else the word has to explain it as well (ours).
        flip: chance that a picture is seen in the mirror.
        t_low: the part of the noise schedule that is tried begins here; 0 is clean.
        t_high: and ends here; 1 is pure noise.
        held_out_draws: trials that no search step sees, which choose the result.
        check_every: rounds from one look at them to the next.
        patience: looks without a gain of a thousandth, after which the search ends; 0 for never.
        preview_every: rounds from one sample drawing to the next; 0 for none.
    """

    tokens: int = 1
    init: str = "clip"
    temperature: float = 100.0
    clip: str = "auto"
    draws: int = 4
    templates: int = 2
    ground: bool = True
    flip: float = 0.0
    t_low: float = 0.0
    t_high: float = 1.0
    held_out_draws: int = 64
    check_every: int = 10
    patience: int = 0
    preview_every: int = 50

    citation: ClassVar[str] = ""
    default_budget: ClassVar[Budget] = Budget(steps=300)

    def __post_init__(self) -> None:
        self.sampling()
        for name in ("tokens", "held_out_draws", "check_every"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("patience", "preview_every"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 < self.temperature < float("inf"):
            raise InvalidInput(f"temperature must be positive and finite, got {self.temperature}")

    @abstractmethod
    def space(self, start: list[Tensor], words: Words, seed: int) -> tuple[ConceptSpace, Tensor]:
        """What may change, and the z [1, k, d] at which it is e0 = `start`, [k, D_e] each."""

    @abstractmethod
    def build(self, space: ConceptSpace, z: Tensor, objective: DenoisingLoss) -> list[Phase]:
        """The searches to run in turn, the first from z [1, k, d]."""

    @abstractmethod
    def centre(self, state: SearchState) -> Tensor:
        """The z [1, k, d] where the search stands after a round."""

    def sampling(self) -> Sampling:
        """What a round's losses are taken over."""
        return Sampling(self.draws, self.templates, self.flip, self.t_low, self.t_high)

    def held_out(self) -> Sampling:
        """What chooses the result: the same, of more trials and sentences."""
        return Sampling(
            self.held_out_draws, self.held_out_draws, self.flip, self.t_low, self.t_high
        )
