"""What chooses a concept's result: losses on trials that the search never sees."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiller.concepts.objective import ConceptLoss
from tiller.core.errors import RewardError
from tiller.core.rng import Draw
from tiller.spaces.concept import ConceptSpace, Vectors

GAIN = 1e-3  # of the held-out loss: less between looks is a plateau
_CHOOSING, _REPORTING = -1, -2  # rounds that no search has


@dataclass(frozen=True)
class Look:
    """What one look found.

    Attributes:
        loss: the lowest held-out loss of the candidates.
        z: the candidate that has it, [1, k, d].
        kept: whether it is the lowest of all looks.
    """

    loss: float
    z: Tensor
    kept: bool


class Watch:
    """Looks at candidates on held-out trials, keeps the lowest loss, and knows a plateau.

    The loss of a round ranks its candidates and says little of them: it is taken over few trials,
    and the lowest of many rounds is the round with the easiest noises. So the result is chosen on
    one larger set of trials, the same at every look; it is reported on yet another, since the best
    of many looks is flattered by the set that chose it.

    Args:
        space: decodes z.
        objective: with the held-out sampling.
        seed: of the run.
        every: rounds between looks.
        patience: looks without a gain, after which `plateau` says so; 0 for never.
    """

    def __init__(
        self, space: ConceptSpace, objective: ConceptLoss, seed: int, *, every: int, patience: int
    ) -> None:
        self.space, self.objective, self.seed = space, objective, seed
        self.every, self.patience = every, patience
        self.best = math.inf
        self._mark = math.inf  # the loss that was last a gain
        self._since = 0

    def look(self, z: Tensor) -> Look:
        """The best of the candidates z [n, k, d]."""
        losses = self.losses(z)
        k = min(range(len(losses)), key=losses.__getitem__)
        kept = losses[k] < self.best
        self._take(losses[k])
        return Look(losses[k], z[k : k + 1], kept)

    def losses(self, z: Tensor) -> list[float]:
        """The held-out loss of each z [n, k, d]."""
        return self._losses(self.space.decode(z), _CHOOSING)

    def report(self, *candidates: Vectors) -> list[float]:
        """The loss of each candidate, a batch of one, on the trials that chose nothing."""
        together = tuple(torch.cat(column) for column in zip(*candidates, strict=True))
        return self._losses(together, _REPORTING)

    @torch.no_grad()
    def _losses(self, x: Vectors, round_: int) -> list[float]:
        found = self.objective.render(x, Draw(self.seed, round_))
        if not bool(torch.isfinite(found).all()):
            raise RewardError(
                "the loss of the word must be finite, got NaN or infinity; load the model in "
                'float32 (dtype="float32"), half precision overflows'
            )
        return [float(loss) for loss in found.double().mean(dim=1)]

    def plateau(self) -> str | None:
        """Why the search ends, or None."""
        if self.patience and self._since >= self.patience:
            return f"the held-out loss has not fallen for {self._since} looks (patience)"
        return None

    def recall(self, entries: Iterable[dict[str, Any]]) -> None:
        """Stand where the journal's looks leave a run that goes on."""
        for entry in entries:
            if entry.get("held_out") is not None:
                self._take(float(entry["held_out"]))

    def _take(self, loss: float) -> None:
        self.best = min(self.best, loss)
        gained = loss < self._mark * (1 - GAIN)
        self._mark = loss if gained else self._mark
        self._since = 0 if gained else self._since + 1
