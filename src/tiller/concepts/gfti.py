"""`gfti`: gradient-free textual inversion, CMA-ES in a subspace of the token embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tiller.concepts.base import DENOISING, DRAWN, OPEN, ConceptMethod
from tiller.concepts.objective import ConceptLoss
from tiller.concepts.vocabulary import Words
from tiller.core.errors import InvalidInput
from tiller.core.rng import keyed_generator
from tiller.core.search import Phase, Problem, SearchState
from tiller.core.space import starting_at
from tiller.solvers.cma import CmaEs
from tiller.spaces.concept import BASES, ConceptSpace, basis

DIMENSIONS = 256  # the paper's, of an embedding of 768


@dataclass(frozen=True)
class Gfti(ConceptMethod):
    """Q* = argmin L(e0 + W Q), by CMA-ES on the loss alone.

        Q_i ~ m + sigma N(0, C),   i = 1 .. popsize, ranked on common noises

    No gradient is taken, so the model may be anything that can be asked, and the loss anything that
    can be computed: with `loss=denoising` the paper's, with `loss=drawn` a likeness of drawings.
    The result is the mean or a candidate, whichever has the lowest loss on trials that the search
    never saw.

    Attributes:
        projection: W: pca (the vocabulary's principal axes), prior (random, scaled to the
            vocabulary's spread), random (not scaled) or full (no subspace).
        d: dimensions of a pseudo-word's subspace, at most as many as its embedding and the
            vocabulary have; None for 256 (section 4.1), a third of a small embedding's width, or
            16 of the drawn loss.
        stretch: lambda of equation 5; how far W Q reaches, in spreads of the vocabulary (the paper
            leaves it open); None for 3, or .5 of the drawn loss.
        popsize: candidates a round; None for 30 (section 4.1), or 16 of the drawn loss.
        sigma0: first step size (figure 6: N(0, .5)).
        full_up_to: dimensions up to which CMA-ES learns all correlations; above, the diagonal.

    Example:
        >>> Gfti(projection="prior", d=64).default_budget
        Budget(steps=None, images=None, forwards=12000, seconds=None)

    Source: sections 3.2 to 3.5 and 4.1.
    """

    projection: str = "pca"
    d: int | None = None
    stretch: float | None = None
    popsize: int | None = None
    sigma0: float = 0.5
    full_up_to: int = 512
    patience: int = 8

    citation: ClassVar[str] = "Fei et al., Gradient-free textual inversion, 2023"
    open: ClassVar[dict[str, dict[str, Any]]] = {
        DRAWN: OPEN[DRAWN] | {"d": 16, "stretch": 0.5, "popsize": 16},
        DENOISING: OPEN[DENOISING] | {"stretch": 3.0, "popsize": 30},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._solver()
        if self.d is not None and self.d < 1:
            raise InvalidInput(f"a subspace has at least one dimension, got d={self.d}")
        if self.stretch is not None and not 0 < self.stretch < float("inf"):
            raise InvalidInput(f"stretch must be positive and finite, got {self.stretch}")
        if self.projection not in BASES:
            raise InvalidInput(
                f"projection must be one of {', '.join(BASES)}, got {self.projection!r}"
            )

    def space(self, start: list[Tensor], words: Words, seed: int) -> tuple[ConceptSpace, Tensor]:
        """e0 + W Q, and Q = 0."""
        width = sum(table.shape[1] for table in words.tables)
        d = min(DIMENSIONS, width // 3) if self.d is None else self.d
        drawn = keyed_generator(seed, "basis")
        stretch = 1.0 if self.stretch is None else self.stretch
        own = {"stretch": stretch, "spread": self.sigma0}
        most = min(width, len(words.names) - 1)  # axes that the vocabulary has
        W = basis(self.projection, words.tables, min(d, most), generator=drawn, **own)
        space = ConceptSpace(start, W, self.sigma0)
        return space, torch.zeros(1, *space.shape)

    def build(self, space: ConceptSpace, z: Tensor, objective: ConceptLoss) -> list[Phase]:
        """One search from Q = 0."""
        problem = Problem(starting_at(space, z), objective, self._solver())
        return [Phase("evolution", lambda _: problem)]

    def centre(self, state: SearchState) -> Tensor:
        """The mean of the distribution."""
        return self._solver().mean(state.solver)

    def _solver(self) -> CmaEs:
        popsize = 30 if self.popsize is None else self.popsize
        return CmaEs(sigma0=self.sigma0, popsize=popsize, full_up_to=self.full_up_to)
