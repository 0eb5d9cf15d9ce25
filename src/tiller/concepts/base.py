"""What a method of learning a concept is: a frozen dataclass whose fields are its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from tiller.concepts.objective import ConceptLoss, Sampling
from tiller.concepts.vocabulary import Words
from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.search import Phase, SearchState
from tiller.models.base import FrozenModel
from tiller.models.concepts import MOST_VECTORS
from tiller.models.loader import is_emoji
from tiller.spaces.concept import ConceptSpace

STARTS = ("clip", "best", "random")  # everything else is words of the user's
LONGEST = 3  # words of a phrase that a search may begin at
AUTO, DRAWN, DENOISING = LOSSES = ("auto", "drawn", "denoising")
# What a field that is None stands for, by loss: a drawing says more than a trial, and costs more.
OPEN: dict[str, dict[str, Any]] = {
    DRAWN: {"draws": 2, "held_out_draws": 16, "check_every": 8, "preview_every": 8},
    DENOISING: {"draws": 4, "held_out_draws": 64, "check_every": 10, "preview_every": 50},
}


@dataclass(frozen=True)
class ConceptMethod(ABC):
    """A way to find a concept's vectors. One file, one frozen dataclass.

    The fields below belong to the loss, the start and the watch over it, and so to every method.

    Attributes:
        loss: denoising (the papers'), drawn (ours: quick drawings compared with the pictures by the
            CLIP), or auto: drawn for the bundled model, where the other was measured to fail.
        sketch_steps: of the sampler for a drawing that the drawn loss searches with; all of them
            if it has fewer. What chooses, at the start and at each look, takes all of them.
        tokens: pseudo-words, 1 to 3 as a rule; None for 3 of the drawn loss from the best start,
            as many as `init` has words of the user's, and else 1 (the paper, section 4.3: one edits
            best).
        init: where the search begins: clip (the paper's cross-attention over the vocabulary), best
            (that, or one of the nearest words, with several tokens phrases of as many words, at
            most three, whichever has the lowest loss; ours), random (a word drawn from the
            vocabulary), auto (best of the drawn loss, clip of the other), or words of the user's,
            such as duck.
        temperature: of the attention's softmax (CLIP's own scale; the paper prints none).
        clip: of the start and of the drawn loss: auto, emoji, or the hub id or folder of a
            CLIPModel.
        draws: of one evaluation: (picture, timestep, noise) trials (the paper: 20), or drawings;
            None for 4 trials, or 2 drawings.
        templates: different sentences among them, at most.
        ground: whether sentences say what colour is behind the thing ("on a blue background"),
            where a picture's border has one; else the word has to explain it as well (ours).
        flip: chance that a picture is seen in the mirror.
        t_low: the part of the noise schedule that is tried begins here; 0 is clean.
        t_high: and ends here; 1 is pure noise.
        held_out_draws: trials that no search step sees, which choose the result; None for 64, or 16
            drawings.
        check_every: rounds from one look at them to the next; None for 10, or 8 of drawings.
        patience: looks without a gain of a thousandth, after which the search ends; 0 for never.
        preview_every: rounds from one sample drawing to the next; 0 for none, None for 50, or 8
            of the drawn loss.
    """

    loss: str = AUTO
    sketch_steps: int = 8
    tokens: int | None = None
    init: str = AUTO
    temperature: float = 100.0
    clip: str = "auto"
    draws: int | None = None
    templates: int = 2
    ground: bool = True
    flip: float = 0.0
    t_low: float = 0.0
    t_high: float = 1.0
    held_out_draws: int | None = None
    check_every: int | None = None
    patience: int = 0
    preview_every: int | None = None

    citation: ClassVar[str] = ""
    default_budget: ClassVar[Budget] = Budget(forwards=12_000)
    open: ClassVar[dict[str, dict[str, Any]]] = OPEN

    def __post_init__(self) -> None:
        self.sampling()
        if self.loss not in LOSSES:
            raise InvalidInput(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("tokens", "sketch_steps", "held_out_draws", "check_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name} must be at least 1, got {value}")
        for name in ("patience", "preview_every"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InvalidInput(f"{name} must be at least 0, got {value}")
        if self.vectors > MOST_VECTORS:
            raise InvalidInput(f"a word has at most {MOST_VECTORS} tokens, got {self.tokens}")
        if not 0 < self.temperature < float("inf"):
            raise InvalidInput(f"temperature must be positive and finite, got {self.temperature}")

    @abstractmethod
    def space(self, start: list[Tensor], words: Words, seed: int) -> tuple[ConceptSpace, Tensor]:
        """What may change, and the z [1, k, d] at which it is e0 = `start`, [k, D_e] each."""

    @abstractmethod
    def build(self, space: ConceptSpace, z: Tensor, objective: ConceptLoss) -> list[Phase]:
        """The searches to run in turn, the first from z [1, k, d]."""

    @abstractmethod
    def centre(self, state: SearchState) -> Tensor:
        """The z [1, k, d] where the search stands after a round."""

    def settled(self, model: FrozenModel) -> Self:
        """The same with no field left open, for this model."""
        loss, init = self.loss, self.init
        if loss == AUTO:
            loss = DRAWN if is_emoji(model) else DENOISING
        if init == AUTO:
            init = "best" if loss == DRAWN else "clip"
        given = (self.flip, self.t_low, self.t_high)
        if loss == DRAWN and given != (0.0, 0.0, 1.0):
            raise InvalidInput(
                "flip, t_low and t_high belong to loss=denoising, and this model's loss is drawn; "
                f"got {given}: leave them out, or set loss=denoising"
            )
        tokens = self.tokens
        if tokens is None:
            named = 1 if init in STARTS else max(1, len(init.split()))
            tokens = LONGEST if (loss, init) == (DRAWN, "best") else named
        left = {k: v for k, v in self.open[loss].items() if getattr(self, k) is None}
        return replace(self, loss=loss, init=init, tokens=tokens, **left)

    @property
    def vectors(self) -> int:
        """How many tokens, 1 while that is open."""
        return 1 if self.tokens is None else self.tokens

    def sampling(self) -> Sampling:
        """What a round's losses are taken over."""
        return self._sampling(1 if self.draws is None else self.draws, self.templates)

    def held_out(self) -> Sampling:
        """What chooses the result: the same, of more trials and sentences."""
        most = self.held_out_draws or 1
        return self._sampling(most, most)

    def _sampling(self, draws: int, templates: int) -> Sampling:
        return Sampling(draws, templates, self.flip, self.t_low, self.t_high)
