"""What an affix does for prompts that it never saw: with and without it, the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiller.affixes.objective import PromptSet, drawn_together
from tiller.core.rng import keyed_generator
from tiller.models.trajectory import Trajectory
from tiller.rewards import RewardSum
from tiller.runs.affix_report import SHEET
from tiller.spaces.affixes import Affix
from tiller.tasks.statistics import Estimated, estimated, wins

Scores = dict[str, list[float]]


@dataclass(frozen=True)
class Comparison:
    """One reward on the unseen prompts.

    The intervals are over prompts, and of one prompt they say nothing.

    Attributes:
        before: the mean without the affix, with its interval over prompts.
        after: the mean with it.
        gain: the mean difference of the pairs.
        wins: how often the affixed picture is the better of its pair, a tie counting half.
    """

    before: Estimated
    after: Estimated
    gain: Estimated
    wins: Estimated

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> Comparison:
        """From one score a prompt, paired."""
        gains = [b - a for a, b in zip(before, after, strict=True)]
        return cls(
            estimated(before), estimated(after), estimated(gains), estimated(wins(after, before))
        )

    @property
    def prompts(self) -> int:
        """How many it was taken over."""
        return self.gain.runs

    def plain(self) -> dict[str, dict[str, float]]:
        """The same as plain data, for the journal."""
        return {
            name: {key: getattr(value, key) for key in ("value", "low", "high")}
            for name, value in vars(self).items()
        }


@dataclass(frozen=True)
class Unseen:
    """The pictures of prompts outside the training set.

    Attributes:
        trajectory: the sampler.
        prompts: the prompts.
        reward: what was raised; of a sum the parts are reported, and the sum itself.
        seed: the run's; each prompt has a noise of its own.
        held_out: what else is asked about the pictures.
    """

    trajectory: Trajectory
    prompts: PromptSet
    reward: RewardSum
    seed: int
    held_out: RewardSum | None = None

    @torch.no_grad()
    def pictures(self, affix: Affix | None) -> Tensor:
        """A picture [m, 3, H, W] of each prompt, within the affix (a batch of one) or as it is."""
        every = range(len(self.prompts.texts))
        told = [
            self.prompts.encoded(i) if affix is None else self.prompts.words(i).conditioning(affix)
            for i in every
        ]
        noises = [
            self.trajectory.sample_noise(keyed_generator(self.seed, "noise of unseen prompt", i))
            for i in every
        ]
        drawn = drawn_together(self.trajectory, told, [noise[None] for noise in noises])
        return torch.cat(drawn)

    @torch.no_grad()
    def scores(self, pictures: Tensor) -> Scores:
        """What every reward says of each picture."""
        texts, found = self.prompts.texts, {}
        if self.held_out is not None:
            found = self.held_out.parts_scores(pictures, texts)
        parts = self.reward.parts_scores(pictures, texts)
        total = {self.reward.name: self.reward.total(parts)} if len(parts) > 1 else {}
        found |= {**parts, **total}
        return {name: [float(value) for value in values] for name, values in found.items()}


def compared(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Any]
) -> dict[str, Comparison]:
    """Every reward of two sets of scores, paired prompt by prompt."""
    return {name: Comparison.of(before[name], after[name]) for name in before if name in after}


def means(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each reward."""
    return {name: sum(values) / len(values) for name, values in scores.items()}


def sheet(pictures: Tensor, most: int = SHEET) -> Tensor:
    """The first pictures of [m, 3, H, W] in rows of four, as one picture, white where none."""
    shown = pictures[:most]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    blank = torch.ones(rows * columns - len(shown), *shown.shape[1:]).to(shown)
    grid = torch.cat([shown, blank]).reshape(rows, columns, *shown.shape[1:])
    return torch.cat([torch.cat(list(row), dim=2) for row in grid], dim=1)[None]
