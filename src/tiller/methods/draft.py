"""`draft`: direct reward fine-tuning, a reward's own gradient into an adapter's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.evaluation import (
    Autograd,
    Estimate,
    Estimator,
    check_scores,
    detached,
    gradients,
)
from tiller.core.objective import Objective
from tiller.core.rng import Draw
from tiller.core.search import Problem
from tiller.core.space import Space
from tiller.methods._training import AdaptedPictures, Lessons, Training
from tiller.methods._weights import Adaptable
from tiller.methods.base import Task
from tiller.models.trajectory import Gradient, Trajectory
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.solvers.rules import Adam, AdamW
from tiller.spaces.lora import Lora


@dataclass(frozen=True)
class Draft(Training):
    """Ascend r(M_w(x_T)) in the weights w of low-rank adapters, through the last K steps.

        w <- w + Adam(clip(d r(M_w(x_T)) / dw)),    d by the last K sampling steps alone

    A baseline: it changes weights, of a copy. With `batch=0` it trains on the run's own noise, the
    same in every step; with `batch` > 0 on fresh noises, of the run's prompt or of many prompts.

    Attributes:
        k: K, the last sampling steps that carry a gradient (DRaFT-1: 1).
        redraws: n of DRaFT-LV: each finished picture is noised and denoised n times at the last
            step, and the n gradients are averaged; 0 for DRaFT-K.
        lr: Adam's learning rate.
        weight_decay: AdamW's pull of the adapters towards 0.
        clip_norm: largest gradient norm.
        rank: of the adapters (IPGO's table 3: 6).
        batch: training pictures a step with fresh noises; 0 trains on the run's own noise.

    Example:
        >>> tiller.steer("emoji", "a red cat", method="draft", budget="steps=20")  # doctest: +SKIP

    Source: Clark et al. 2023, "Directly fine-tuning diffusion models on differentiable rewards",
    section 4 and algorithm 1.
    """

    k: int = 1
    redraws: int = 0
    lr: float = 1e-3
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    citation: ClassVar[str] = (
        "Clark et al., Directly fine-tuning diffusion models on differentiable rewards, 2023"
    )
    needs_gradient: ClassVar[bool] = True
    default_budget: ClassVar[Budget] = Budget(steps=50)

    def problem(
        self,
        task: Task,
        space: Lora,
        adaptable: Adaptable,
        trajectory: Trajectory,
        lessons: Lessons | None,
    ) -> Problem:
        """The ascent of one adapter.

        Raises:
            InvalidInput: a field is out of its range.
            Incompatible: the reward has no gradient.
        """
        if not task.reward.differentiable:
            raise Incompatible(
                f"draft needs a differentiable reward, got {task.reward.name}; use --method ddpo"
            )
        if self.redraws < 0 or (self.redraws and self.k != 1):
            raise InvalidInput(
                "redraws (DRaFT-LV) are of the last step alone and not negative, got "
                f"redraws={self.redraws} with k={self.k}; set k=1, or redraws=0"
            )
        gradient = Gradient.last(self.k)
        gradient.window(trajectory.num_steps)  # refused now, and not in the first round
        objective = AdaptedPictures(
            adaptable,
            trajectory,
            task.reward,
            task.prompt,
            gradient=gradient,
            checkpoint=self._checkpoint(),
            lessons=lessons,
            redraws=self.redraws,
        )
        own = lessons is None and not self.redraws
        solver = GradientSolver(
            rule=AdamW(weight_decay=self.weight_decay) if self.weight_decay else Adam(),
            lr=self.lr,
            clip_norm=self.clip_norm,
            estimator=Autograd() if own else Practice(),
        )
        return Problem(space, objective, solver)


class Practice(Estimator):
    """The gradient of the mean reward over the round's training pictures.

    The reward that is reported is of the run's own picture, which is drawn without a graph.
    """

    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """Rewards [n] of the own pictures, and gradients [n, d] of the training pictures'."""
        assert isinstance(objective, AdaptedPictures), "draft makes no other"
        with torch.no_grad():
            y = objective.render(space.decode(z), draw)
            reward = objective.score(y, draw)
            check_scores(reward, len(z))
        slopes = []
        for row in torch.split(z, 1):
            with torch.enable_grad():
                leaf = row.detach().requires_grad_()
                rewards = objective.practice(space.decode(leaf), draw)
                check_scores(rewards, len(rewards))
                slopes += gradients([rewards.mean()], [leaf])
        return Estimate(reward.detach(), torch.cat(slopes), detached(y))
