"""What a run watches beside its score: P(z) of the noise, and the held-out reward.

Both tell when a reward is being hacked: the score still rises, and the picture leaves what the
model was trained on (P(z) falls) or what other rewards like (the held-out score falls). A guard
keeps the pictures from before that, and may end the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tiller.core.search import Step
from tiller.models.inputs import Inputs
from tiller.runs.journal import Entry
from tiller.spaces.probability import probability


@dataclass
class Guard:
    """Looks at each round, and says whether its best is kept and whether the run ends.

    Attributes:
        stop_below: end the run where P(z) of the round's best candidate is below this, and keep
            what was found before; 0 for never.
        patience: end the run where the held-out reward has not risen above its peak for so many
            rounds, and keep the picture of that peak; 0 for not looking at it.
        lowers: the run seeks low scores, so that the held-out reward should fall as well.
        peak: the highest held-out worth so far; the unsteered picture's at the start.
        since: rounds since then.
        device: where P(z) is computed.
    """

    stop_below: float = 0.0
    patience: int = 0
    lowers: bool = False
    peak: float = float("-inf")
    since: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable

    def __post_init__(self) -> None:
        self._noise: torch.Tensor | None = None
        self._probability = 1.0

    def probability(self, step: Step) -> float:
        """P(z) of this round's best candidate; see `tiller.spaces.probability`."""
        k = step.evaluation.best
        with torch.no_grad():
            x: Inputs = step.problem.space.decode(step.z[k : k + 1])
        noise = x.noise[:1].detach().cpu()
        if self._noise is None or not torch.equal(noise, self._noise):
            found = float(probability(noise.to(self.device)))
            self._noise, self._probability = noise, found
        return self._probability

    def worth(self, held_out: float) -> float:
        """What a held-out score is worth to the run; higher is better."""
        return -held_out if self.lowers else held_out

    def keeps(self, probability: float, held_out: float) -> bool:
        """Whether a better picture with these values takes the place of the best so far."""
        return probability >= self.stop_below and (not self.patience or held_out > self.peak)

    def after(self, probability: float, kept: float | None) -> str | None:
        """Why the run ends with this round, or None; `kept` is what was kept in it, if any."""
        self.peak, self.since = (
            (self.peak, self.since + 1) if kept is None else (max(self.peak, kept), 0)
        )
        if probability < self.stop_below:
            return (
                f"P(z)={probability:.2g} is below stop_below={self.stop_below:g}: the noise has "
                "left what the model was trained on; the best from before is kept"
            )
        if self.patience and self.since >= self.patience:
            return f"the held-out reward has not risen for {self.since} rounds (patience)"
        return None

    def recall(self, entries: Sequence[Entry], held_out: str | None) -> None:
        """Stand where the journal's rounds leave a run that goes on."""
        for entry in entries:
            if entry["kind"] == "baseline":
                self.peak = self._found(entry, held_out)
            elif entry["kind"] == "step" and not entry.get("relaxed"):
                fresh = entry["image"] is not None
                self.peak = max(self.peak, self._found(entry, held_out))
                self.since = 0 if fresh else self.since + 1

    def _found(self, entry: Entry, held_out: str | None) -> float:
        """The worth of what a line says of the held-out reward; the peak where it says nothing."""
        score = entry["scores"].get(held_out)
        return self.peak if score is None else self.worth(score)
