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
            what was found before; 0 for never. Noise that was drawn and not moved is not kept
            below this, and ends nothing: one draw in thirty is below .05 by chance.
        patience: end the run where for so many rounds no picture was better by its score and by the
            held-out reward than the one that is kept; 0 for not looking at the held-out reward.
        lowers: the run seeks low scores, so that the held-out reward should fall as well.
        peak: the highest held-out worth so far; the unsteered picture's at the start.
        since: rounds since then.
        probability: P(z) of the latest round's best candidate, as `weigh` left it.
        drawn: its noise was drawn in that round, whatever came before.
        rounds: that were looked at.
    """

    stop_below: float = 0.0
    patience: int = 0
    lowers: bool = False
    peak: float = float("-inf")
    since: int = 0

    def __post_init__(self) -> None:
        self.noise: torch.Tensor | None = None  # of the latest round's best candidate
        self.probability, self.drawn, self.rounds = 1.0, False, 0

    def worth(self, held_out: float) -> float:
        """What a held-out score is worth to the run; higher is better."""
        return -held_out if self.lowers else held_out

    def keeps(self, held_out: float) -> bool:
        """Whether a better picture of this worth takes the place of the best so far."""
        return self.probability >= self.stop_below and (not self.patience or held_out > self.peak)

    def after(self, kept: float | None) -> str | None:
        """Why the run ends with this round, or None; `kept` is what was kept in it, if any."""
        self.rounds += 1
        self.peak, self.since = (
            (self.peak, self.since + 1) if kept is None else (max(self.peak, kept), 0)
        )
        return self.ended

    @property
    def ended(self) -> str | None:
        """Why the run has ended with the latest round, or None."""
        if self.probability < self.stop_below and not self.drawn:
            low = f"P(z)={self.probability:.2g} is below stop_below={self.stop_below:g}"
            if self.rounds == 1:
                return f"{low} before anything was moved: take another seed, or a lower stop_below"
            return (
                f"{low}: the noise has left what the model was trained on; the best from before "
                "is kept"
            )
        if self.patience and self.since >= self.patience:
            return (
                f"no picture was better by its score and by the held-out reward for {self.since} "
                "rounds (patience)"
            )
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
                self.probability = entry.get("probability", self.probability)
                self.drawn = entry.get("drawn", False)
                self.rounds += 1

    def _found(self, entry: Entry, held_out: str | None) -> float:
        """The worth of what a line says of the held-out reward; the peak where it says nothing."""
        score = entry["scores"].get(held_out)
        return self.peak if score is None else self.worth(score)


@torch.no_grad()
def weigh(guards: Sequence[Guard], steps: Sequence[Step], device: torch.device) -> None:
    """Tell each guard P(z) of its round's best candidate, from one call for all that are new."""
    new: dict[torch.Size, list[Guard]] = {}
    for guard, step in zip(guards, steps, strict=True):
        k = step.evaluation.best
        x: Inputs = step.problem.space.decode(step.z[k : k + 1])
        guard.drawn = step.problem.solver.divisible  # its candidates owe nothing to one another
        noise = x.noise[:1].detach().cpu()
        if guard.noise is None or not torch.equal(noise, guard.noise):
            guard.noise = noise
            new.setdefault(noise.shape, []).append(guard)
    for some in new.values():
        noises = torch.cat([guard.noise for guard in some if guard.noise is not None])
        for guard, found in zip(some, probability(noises.to(device)).tolist(), strict=True):
            guard.probability = found
