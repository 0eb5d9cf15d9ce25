"""`ti`: textual inversion by gradients, the standard that gradient-free search is measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tiller.concepts.base import DENOISING, ConceptMethod
from tiller.concepts.objective import ConceptLoss
from tiller.concepts.vocabulary import Words
from tiller.core.budget import Budget
from tiller.core.search import Phase, Problem, SearchState
from tiller.core.space import starting_at
from tiller.solvers.gradient import Gradient
from tiller.solvers.rules import AdamW
from tiller.spaces.concept import ConceptSpace


@dataclass(frozen=True)
class Ti(ConceptMethod):
    """e <- e - AdamW(dL / de), through the denoiser and the text encoder, in the full space.

    Same loss, same start and same choice of the result as `gfti`, so that the two differ in how
    they search. A step costs `draws` forwards and as many backwards.

    Attributes:
        lr: the learning rate (Gal et al., section 4: .005).
        weight_decay: AdamW's pull towards 0 (torch's own default, as in diffusers' script).
        clip_norm: largest gradient norm of a step; None for not (diffusers' script: none).

    Example:
        >>> Ti().lr
        0.005

    Source: Gal et al. 2022, "An image is worth one word", section 4.
    """

    loss: str = DENOISING
    lr: float = 0.005
    weight_decay: float = 0.01
    clip_norm: float | None = None
    check_every: int | None = 100
    patience: int = 8
    preview_every: int | None = 500

    citation: ClassVar[str] = (
        "Gal et al., An image is worth one word: personalizing text-to-image generation using "
        "textual inversion, 2022"
    )
    default_budget: ClassVar[Budget] = Budget(steps=3000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._solver()

    def space(self, start: list[Tensor], words: Words, seed: int) -> tuple[ConceptSpace, Tensor]:
        """The vectors themselves, so that the decay pulls them and not their increment."""
        space = ConceptSpace([torch.zeros_like(e) for e in start])
        return space, torch.cat(start, dim=1)[None]

    def build(self, space: ConceptSpace, z: Tensor, objective: ConceptLoss) -> list[Phase]:
        """One descent of the loss from e0."""
        problem = Problem(starting_at(space, z), objective, self._solver())
        return [Phase("descent", lambda _: problem)]

    def centre(self, state: SearchState) -> Tensor:
        """Where the latest step led."""
        z: Tensor = state.solver.z
        return z[:1]

    def _solver(self) -> Gradient:
        rule = AdamW(weight_decay=self.weight_decay)
        return Gradient(rule=rule, lr=self.lr, clip_norm=self.clip_norm)
