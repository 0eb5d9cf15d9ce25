"""`ddpo`: denoising diffusion policy optimization, a policy gradient into weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.rng import Draw
from tiller.core.search import Problem
from tiller.methods._training import AdaptedPictures, Lessons, Training
from tiller.methods._weights import Adaptable, with_all_weights
from tiller.methods.base import Task
from tiller.models.base import Conditioning, FrozenModel, SamplerSettings
from tiller.models.schedulers import DRAWING
from tiller.models.trajectory import Trajectory
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.solvers.policy_gradient import Policy, PolicyGradient, Rollout
from tiller.solvers.rules import Adam, AdamW
from tiller.spaces.lora import Adapted, Lora


@dataclass(frozen=True)
class Ddpo(Training):
    """Make the denoisings of good pictures likelier: a policy gradient with clipped ratios.

        w <- w + Adam(clip((1/T) sum_t d mean_i min(rho_t A_i, clip(rho_t, 1 - c, 1 + c) A_i) / dw))

    Sampling with DDIM and eta > 0 is a chain of Gaussian decisions p_w(x_{t-1} | x_t), rho_t the
    ratio of their densities to those of the weights that drew them, and A a picture's reward less
    its prompt's mean, over its deviation. The reward may be a black box: only its values are used.

    A baseline: it changes weights, of a copy. A round is one update; every `updates` rounds it
    draws `batch` new pictures. The run's own picture is drawn besides, to see what the weights do.

    Attributes:
        eta: of ddim, above 0; 1 is the paper's sampler. euler_a and lcm have no use for it.
        lr: Adam's learning rate.
        weight_decay: AdamW's pull of the trained weights towards 0.
        clip_norm: largest gradient norm.
        clip_range: c; the densities are per number of a latent.
        clip_advantage: A is cut to this.
        updates: rounds that the same pictures serve; 1 leaves the ratios at 1.
        buffer: rewards that a prompt's mean and deviation are taken over.
        least: until a prompt has had so many, the round's are used.
        weights: lora, or all: every weight of the UNet.
        at_once: training pictures drawn and differentiated at once; the result does not depend on
            it.
        rank: of the adapters (the authors' release: 4).
        batch: training pictures a round of drawing.

    Example:
        >>> tiller.steer("emoji", "a red cat", method="ddpo", reward="jpeg")  # doctest: +SKIP

    Source: Black et al. 2023, "Training diffusion models with reinforcement learning", section 4.3.
    """

    eta: float = 1.0
    lr: float = 3e-4
    weight_decay: float = 1e-4
    clip_norm: float | None = 1.0
    clip_range: float = 1e-4
    clip_advantage: float = 5.0
    updates: int = 2
    buffer: int = 32
    least: int = 16
    weights: str = "lora"
    at_once: int = 8
    rank: int = 4
    batch: int = 8

    citation: ClassVar[str] = (
        "Black et al., Training diffusion models with reinforcement learning, 2023"
    )
    default_budget: ClassVar[Budget] = Budget(steps=30)

    def sampler(self, model: FrozenModel) -> SamplerSettings:
        """A sampler whose steps have a density: DDIM with this eta, or euler_a or lcm."""
        own = super().sampler(model)
        if own.scheduler in DRAWING:
            return own
        if self.scheduler not in (None, "ddim") or self.eta == 0:
            raise InvalidInput(
                "ddpo needs steps with a density, of ddim with eta > 0, euler_a or lcm; got "
                f"scheduler={self.scheduler!r} and eta={self.eta:g}. Leave both out"
            )
        return replace(own, scheduler="ddim", eta=self.eta)

    def notes(self) -> tuple[str, ...]:
        """That the picture is a trained copy's, what all weights weigh, and what teaches little."""
        found = list(super().notes())
        if self.weights == "all":
            found.append(
                "weights=all keeps about five float32 copies of the UNet in memory and writes them "
                "to the run's folder in every round; weights=lora keeps a few megabytes"
            )
        if self.batch == 1:
            found.append(
                "batch=1 compares a picture with itself until its prompt has had "
                f"least={self.least} rewards, and nothing is learned before; set batch=4 or more"
            )
        if self.buffer < max(2, self.batch):
            enough = max(type(self).buffer, self.batch)
            found.append(
                f"buffer={self.buffer} keeps too few rewards to compare a round's pictures by, "
                f"batch={self.batch}, so its deviation means little; set buffer={enough} or more"
            )
        return tuple(found)

    def adaptable(self, model: FrozenModel) -> Adaptable:
        """The copy, its adapters or all of its weights an input."""
        if self.weights not in ("lora", "all"):
            raise InvalidInput(f"weights must be lora or all, got {self.weights!r}")
        return super().adaptable(model) if self.weights == "lora" else with_all_weights(model)

    def problem(
        self,
        task: Task,
        space: Lora,
        adaptable: Adaptable,
        trajectory: Trajectory,
        lessons: Lessons | None,
    ) -> Problem:
        """The ascent of one set of weights by policy gradients."""
        if lessons is None or self.at_once < 1:
            raise InvalidInput(
                f"batch and at_once must be at least 1, got batch={self.batch} and "
                f"at_once={self.at_once}"
            )
        if not trajectory.noisy_steps:
            raise InvalidInput(
                "ddpo needs a step that adds noise, and the only one of num_inference_steps=1 adds "
                "none; set num_inference_steps=2 or more"
            )
        pictures = AdaptedPictures(adaptable, trajectory, task.reward, task.prompt)
        estimator = PolicyGradient(
            self.clip_range, self.clip_advantage, self.updates, self.buffer, self.least
        )
        solver = GradientSolver(
            rule=AdamW(weight_decay=self.weight_decay) if self.weight_decay else Adam(),
            lr=self.lr,
            clip_norm=self.clip_norm,
            estimator=estimator,
        )
        return Problem(space, Denoisings(pictures, lessons, self.at_once), solver)


class Denoisings(Policy[Adapted, Tensor]):
    """Sampling as a chain of Gaussian decisions, each a noisy step of the sampler.

        log p_w(x_{t-1} | x_t) = sum -(x_{t-1} - mean_w(x_t))^2 / 2 s^2 - log s - log sqrt(2 pi)

    Args:
        pictures: draws and scores the run's own picture.
        lessons: the prompts and noises of the chains.
        at_once: chains drawn and differentiated in one call.
    """

    at_once: int

    def __init__(self, pictures: AdaptedPictures, lessons: Lessons, at_once: int) -> None:
        self.pictures, self.lessons, self.at_once = pictures, lessons, at_once
        self.steps = pictures.trajectory.noisy_steps
        self.decisions, self.groups = len(self.steps), len(lessons.prompts)

    def render(self, x: Adapted, draw: Draw) -> Tensor:
        """The run's own picture [1, 3, H, W]."""
        return self.pictures.render(x, draw)

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """Its reward [1]."""
        return self.pictures.score(y, draw)

    def nearest(self, y: Tensor) -> Tensor:
        """As for pictures of the frozen model."""
        return self.pictures.nearest(y)

    @torch.no_grad()
    def rollout(self, x: Adapted, draw: Draw) -> Rollout:
        """The round's training pictures: every latent on the way [b, T + 1, C, h, w], rewards."""
        lesson = self.lessons.at(draw, self.pictures.trajectory)
        states, rewards = [], []
        for rows in torch.split(torch.arange(len(lesson.noise)), self.at_once):
            noise, prompt = lesson.noise[rows], lesson.prompt[rows]
            path, words = self._drawing(x, prompt)
            chain = [path.initial(noise.to(path.model.device, path.model.dtype))]

            def keep(
                index: int, latents: Tensor, estimate: Tensor, chain: list[Tensor] = chain
            ) -> Tensor:
                chain.append(latents)
                return latents

            latents = path.run(noise, words, hook=keep)
            images = path.model.decode(latents)
            rewards.append(self.pictures.reward(images, self.lessons.texts(prompt)))
            states.append(torch.stack(chain, dim=1))
        return Rollout(torch.cat(states), torch.cat(rewards), lesson.prompt)

    def log_prob(self, x: Adapted, states: Tensor, group: Tensor, step: int) -> Tensor:
        """log p [b] of noisy step number `step`, in float32 at least."""
        index = self.steps[step]
        path, words = self._drawing(x, group)
        states = states.to(path.model.device)
        mean, deviation = path.transition(index, states[:, index], words)
        wide = torch.promote_types(mean.dtype, torch.float32)
        off = (states[:, index + 1].to(wide) - mean.to(wide)) / deviation
        constant = math.log(deviation) + 0.5 * math.log(2 * math.pi)
        return -(off**2 / 2 + constant).flatten(1).sum(dim=1)

    def _drawing(self, x: Adapted, group: Tensor) -> tuple[Trajectory, Conditioning]:
        return self.pictures.drawing(x.weights[0], self.lessons.conditioning.index(group))
