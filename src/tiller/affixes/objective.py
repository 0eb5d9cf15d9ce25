"""The objective of batch training: one affix around many prompts, a minibatch a round.

    score(affix) = mean_b r(picture([V_pre, f(C_b), V_suf]), C_b),      b in the round's minibatch

Prompts have different lengths, and each is affixed without padding, as it will be used. They are
drawn together, the shorter ones filled up behind a mask (those of one length where the model takes
no mask); the mean is over all of them, so what a prompt contributes does not depend on the others
beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Estimate, Estimator, check_scores, gradients
from tiller.core.objective import Objective
from tiller.core.rng import Draw, keyed_generator
from tiller.core.space import Space
from tiller.models.base import Conditioning, FrozenModel
from tiller.models.checkpointing import Checkpoint
from tiller.models.trajectory import Gradient, Trajectory
from tiller.rewards.base import Reward
from tiller.spaces.affixes import Affix, Affixes
from tiller.spaces.insertion import Conformity, Prompts, Words

AT_ONCE = 16  # pictures drawn at once without a gradient, where memory takes so many


class PromptSet:
    """The texts of a training set, encoded as they are needed (the model keeps its encodings)."""

    def __init__(self, model: FrozenModel, texts: Sequence[str], negative_prompt: str) -> None:
        self.model, self.texts, self.negative = model, list(texts), negative_prompt
        (self._negative_count,) = model.token_counts([negative_prompt])

    def encoded(self, i: int) -> Conditioning:
        """Prompt i as the model draws it by itself, one row."""
        return self.model.encode([self.texts[i]], [self.negative])

    def words(self, i: int) -> Words:
        """Prompt i without its padding."""
        (count,) = self.model.token_counts([self.texts[i]])
        return Words.of(self.encoded(i), count, self._negative_count)


class BatchPictures(Objective[Affix, Tensor]):
    """The mean reward of a minibatch of prompts within one affix.

    Every prompt comes once an epoch, in an order that the run's seed and the epoch give. Each has
    a noise of its own, the same in every epoch unless `resample`.

    Args:
        trajectory: the frozen sampler.
        reward: pictures [m, 3, H, W] and their prompts to scores [m].
        prompts: the training set.
        space: what the conformity is taken over.
        batch: prompts a round; the last round of an epoch has what is left.
        gamma: weight of the conformity.
        gradient: how the trajectory is differentiated.
        checkpoint: see `Trajectory.run`.
        resample: new noises in each round.

    Raises:
        InvalidInput: no prompt, or a batch below 1.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        reward: Reward,
        prompts: PromptSet,
        space: Affixes,
        *,
        batch: int = 4,
        gamma: float = 1e-3,
        gradient: Gradient | None = None,
        checkpoint: Checkpoint = "auto",
        resample: bool = False,
    ) -> None:
        if batch < 1 or not prompts.texts:
            raise InvalidInput(
                f"expected prompts and a batch of at least 1, got {len(prompts.texts)} and {batch=}"
            )
        self.trajectory, self.reward, self.prompts = trajectory, reward, prompts
        self.batch = min(batch, len(prompts.texts))
        self.gradient = gradient or Gradient.none()
        self.checkpoint, self.resample = checkpoint, resample
        self.images_per_candidate = self.batch
        self.differentiable = reward.differentiable and self.gradient != Gradient.none()
        conformity = Conformity(space.decode, self._means, weight=gamma)
        self.regularisers = (conformity,) if gamma else ()

    @property
    def rounds(self) -> int:
        """Rounds of one epoch."""
        return -(-len(self.prompts.texts) // self.batch)

    def chosen(self, draw: Draw) -> list[int]:
        """The round's prompts, by their numbers."""
        epoch, place = divmod(draw.round, self.rounds)
        generator = keyed_generator(draw.seed, "order of prompts", epoch)
        order: list[int] = torch.randperm(len(self.prompts.texts), generator=generator).tolist()
        return order[place * self.batch : (place + 1) * self.batch]

    def noise(self, i: int, draw: Draw) -> Tensor:
        """Prompt i's noise in a round [1, slots, C, h, w]."""
        keys = (draw.round,) if self.resample else ()
        generator = keyed_generator(draw.seed, "noise of prompt", i, *keys)
        return self.trajectory.sample_noise(generator)[None]

    def render(self, x: Affix, draw: Draw) -> Tensor:
        """Pictures [n, b, 3, H, W] of the round's b prompts within each of n affixes."""
        everything = list(range(len(self.chosen(draw))))
        return self.pictures(x, draw, everything)

    def pictures(self, x: Affix, draw: Draw, places: Sequence[int]) -> Tensor:
        """The pictures [n, len(places), 3, H, W] of some of the round's prompts."""
        chosen = self.chosen(draw)
        n = len(x.prefix)
        told = [self.prompts.words(chosen[k]).conditioning(x) for k in places]
        noises = [self.noise(chosen[k], draw).expand(n, -1, -1, -1, -1) for k in places]
        gradient = self.gradient if torch.is_grad_enabled() else Gradient.none()
        drawn = drawn_together(
            self.trajectory, told, noises, gradient=gradient, checkpoint=self.checkpoint
        )
        return torch.stack(drawn, dim=1)

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """The mean reward [n] over the round's prompts."""
        return self.scores(y, draw, list(range(y.shape[1]))).mean(dim=1)

    def scores(self, y: Tensor, draw: Draw, places: Sequence[int]) -> Tensor:
        """The rewards [n, b] of pictures [n, b, 3, H, W] of the prompts at these places."""
        chosen = self.chosen(draw)
        texts = [self.prompts.texts[chosen[k]] for k in places] * len(y)
        found = self.reward(y.flatten(0, 1), texts)
        check_scores(found, len(texts))
        return found.reshape(len(y), len(places))

    def parts(self, n: int, draw: Draw) -> list[list[int]]:
        """The round's places in parts that are drawn together, none larger than memory takes.

        The gradient is taken part by part, so that a large batch needs no more memory than one
        picture does.
        """
        chosen = self.chosen(draw)
        words = [self.prompts.words(i) for i in chosen]
        lengths: dict[int, list[int]] = {}
        for k, one in enumerate(words):
            length = 0 if self.trajectory.model.masks_tokens else one.length
            lengths.setdefault(length, []).append(k)
        parts = []
        for places in lengths.values():
            longest = max((words[k] for k in places), key=lambda one: one.length)
            told = longest.conditioning()
            size = max(1, self.trajectory.room(told) // n)
            parts += [places[k : k + size] for k in range(0, len(places), size)]
        return parts

    def room(self, x: Affix, gradient: bool) -> int | None:
        """As many candidates as the free memory takes, one prompt after another.

        With a gradient `parts` sees to that.
        """
        if gradient:
            return None
        return self.trajectory.room(self._longest.conditioning(x))

    @functools.cached_property
    def _longest(self) -> Words:
        """The prompt that takes the most memory."""
        counts = self.prompts.model.token_counts(self.prompts.texts)
        return self.prompts.words(counts.index(max(counts)))

    def _means(self, draw: Draw) -> Prompts:
        return Prompts.of([self.prompts.words(i) for i in self.chosen(draw)])


class ByParts(Estimator):
    """The exact gradient of a minibatch's mean, one part of the minibatch after another."""

    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """Mean rewards [n], their gradients [n, d] and the pictures [n, b, 3, H, W]."""
        assert isinstance(objective, BatchPictures), "made for minibatches of prompts"
        batch = len(objective.chosen(draw))
        total = torch.zeros(len(z), dtype=torch.float64)
        grad = torch.zeros_like(z)
        pictures: dict[int, Tensor] = {}
        for places in objective.parts(len(z), draw):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                drawn = objective.pictures(space.decode(leaf), draw, places)
                part = objective.scores(drawn, draw, places).sum(dim=1) / batch
                (slope,) = gradients([part], [leaf])
            grad += slope
            total += part.detach().to(total)
            pictures.update(zip(places, drawn.detach().unbind(dim=1), strict=True))
        y = torch.stack([pictures[k] for k in range(batch)], dim=1)
        return Estimate(total, grad, y)


def drawn_together(
    trajectory: Trajectory,
    told: Sequence[Conditioning],
    noises: Sequence[Tensor],
    *,
    gradient: Gradient = Gradient.none(),  # noqa: B008  # frozen
    checkpoint: Checkpoint = "auto",
) -> list[Tensor]:
    """Pictures [m, 3, H, W] for each conditioning [m rows] and its noises [m, ...], in order.

    They are drawn as one batch, those that are told as many tokens where the model takes no mask,
    and without a gradient a bounded number of them at once, no more than memory takes.
    """
    groups: dict[int, list[int]] = {}
    for k, words in enumerate(told):
        length = 0 if trajectory.model.masks_tokens else words.prompt_embeds.shape[1]
        groups.setdefault(length, []).append(k)
    found: dict[int, Tensor] = {}
    for members in groups.values():
        size = len(members)
        if not torch.is_grad_enabled():
            longest = max((told[k] for k in members), key=lambda one: one.prompt_embeds.shape[1])
            size = min(AT_ONCE, trajectory.room(longest)) // len(noises[members[0]])
        for first in range(0, len(members), max(1, size)):
            some = members[first : first + max(1, size)]
            latents = trajectory.run(
                torch.cat([noises[k] for k in some]),
                Conditioning.side_by_side([told[k] for k in some]),
                gradient=gradient,
                checkpoint=checkpoint,
            )
            pictures = torch.split(trajectory.model.decode(latents), [len(noises[k]) for k in some])
            found.update(zip(some, pictures, strict=True))
    return [found[k] for k in range(len(told))]
