"""The objective of every method that draws: noise and conditioning in, a scored picture out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from tiller.core.evaluation import check_shape
from tiller.core.objective import Objective, Regulariser
from tiller.core.rng import Draw
from tiller.models.base import Conditioning
from tiller.models.checkpointing import Checkpoint
from tiller.models.inputs import Inputs
from tiller.models.trajectory import Gradient, Trajectory
from tiller.rewards.base import Reward


class Pictures(Objective[Inputs, Tensor]):
    """score(x) = reward(decode(sample(x)), prompt), the mean over a candidate's pictures.

    Args:
        trajectory: the frozen sampler; its model decodes the final latents.
        reward: images [n, 3, H, W] in [0, 1] and prompts to scores [n].
        prompt: what the reward compares with; the conditioning may say something else.
        gradient: how the trajectory is differentiated when a gradient is asked for.
        checkpoint: which steps keep their activations; see `Trajectory.run`.
        batch_size: candidates drawn at once; None for a whole round.
        regularisers: penalties over z.
        repeats: S, the pictures of one candidate: it has S rows in x, one after another, which are
            scored together and kept together.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        reward: Reward,
        prompt: str,
        *,
        gradient: Gradient | None = None,
        checkpoint: Checkpoint = "auto",
        batch_size: int | None = None,
        regularisers: tuple[Regulariser, ...] = (),
        repeats: int = 1,
    ) -> None:
        self.trajectory = trajectory
        self.reward = reward
        self.prompt = prompt
        self.gradient = gradient or Gradient.none()
        self.checkpoint = checkpoint
        self.batch_size = batch_size
        self.regularisers = regularisers
        self.images_per_candidate = repeats
        self.forwards_per_candidate = repeats * trajectory.forwards_per_image
        self.render_differentiable = self.gradient != Gradient.none()
        self.differentiable = reward.differentiable and self.render_differentiable

    def joint_key(self) -> Hashable:
        """Pictures of one model, sampled and differentiated alike, are drawn together."""
        model = id(self.trajectory.model)
        return model, self.trajectory.settings, self.gradient, self.checkpoint

    def render_jointly(self, xs: Sequence[Inputs], draws: Sequence[Draw]) -> list[Tensor]:
        """Pictures of several runs' candidates from one trajectory.

        Where the model takes no token mask, from one for those that are told as many tokens.
        """
        alike: dict[int, list[int]] = {}
        for k, x in enumerate(xs):
            told = (
                0 if self.trajectory.model.masks_tokens else x.conditioning.prompt_embeds.shape[1]
            )
            alike.setdefault(told, []).append(k)
        found: dict[int, Tensor] = {}
        for members in alike.values():
            some = [xs[k] for k in members]
            pictures = self.render(joined(some), draws[0])  # a frozen model draws no lots
            parts = torch.split(pictures, [len(x.noise) for x in some])
            found.update(zip(members, parts, strict=True))
        return [found[k] for k in range(len(xs))]

    def room(self, x: Inputs, gradient: bool) -> int | None:
        """As many candidates as the free memory takes, each step's activations counted.

        Also without a gradient, which needs less: a bound that is too low costs little.
        """
        fits = max(1, self.trajectory.room(x.conditioning) // self.images_per_candidate)
        return fits if self.batch_size is None else min(fits, self.batch_size)

    def render(self, x: Inputs, draw: Draw) -> Tensor:
        """Pictures [n S, 3, H, W] in [0, 1], holding a graph where gradients are enabled."""
        return self.drawn(x, self.gradient if torch.is_grad_enabled() else Gradient.none())

    def drawn(self, x: Inputs, gradient: Gradient) -> Tensor:
        """Pictures [n S, 3, H, W] in [0, 1], differentiated in one of the trajectory's ways."""
        latents = self.trajectory.run(
            x.noise, x.conditioning, gradient=gradient, checkpoint=self.checkpoint
        )
        return self.trajectory.model.decode(latents)

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """The reward [n] of the pictures [n S, 3, H, W], the mean of each candidate's."""
        rewards = self.reward(y, [self.prompt] * len(y))
        return rewards.view(-1, self.images_per_candidate).mean(dim=1)

    def score_key(self) -> Hashable:
        """Pictures that one reward judges, as many of each candidate."""
        return id(self.reward), self.images_per_candidate

    @classmethod
    def score_jointly(
        cls, objectives: Sequence[Pictures], ys: Sequence[Tensor], draws: Sequence[Draw]
    ) -> list[Tensor]:
        """The rewards of several runs' pictures, each for its own run's prompt."""
        first = objectives[0]
        rewards = judged(first.reward, ys, [one.prompt for one in objectives])
        return [found.view(-1, first.images_per_candidate).mean(dim=1) for found in rewards]

    def pick(self, y: Tensor, index: int) -> Tensor:
        """A candidate's pictures [S, 3, H, W]."""
        first = index * self.images_per_candidate
        return y[first : first + self.images_per_candidate]

    def nearest(self, y: Tensor) -> Tensor:
        """Perturbed pictures, cut to [0, 1]: what rewards are promised."""
        return y.clamp(0, 1)


def judged(reward: Reward, ys: Sequence[Tensor], prompts: Sequence[str]) -> list[Tensor]:
    """One reward's scores of each of ys, pictures [n, 3, H, W] of one prompt, from one call."""
    told = [prompt for y, prompt in zip(ys, prompts, strict=True) for _ in y]
    scores = reward(torch.cat(list(ys)), told)
    check_shape(scores, len(told))
    return list(torch.split(scores, [len(y) for y in ys]))


def joined(xs: Sequence[Inputs]) -> Inputs:
    """The rows of all inputs, one after another."""
    noise = torch.cat([x.noise for x in xs])
    return Inputs(noise, Conditioning.side_by_side([x.conditioning for x in xs]))
