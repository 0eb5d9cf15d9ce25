"""`lgd`: loss-guided diffusion, a reward's gradient inside every step of one trajectory."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput, RewardError
from tiller.core.objective import Objective
from tiller.core.rng import Draw, keyed_generator
from tiller.core.search import Handover, Phase, Problem
from tiller.core.space import starting_at
from tiller.methods._pictures import Pictures, joined
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel, SamplerSettings
from tiller.models.inputs import Inputs
from tiller.solvers.best_of_n import BestOfN
from tiller.spaces.noise import Noise

NORMALISATIONS = ("noise", "none")


@dataclass(frozen=True)
class Lgd(Method):
    """Guide each step by the reward of what it is heading for; the best of many such pictures.

        score(x_t) + d/dx_t log (1/n) sum_i exp(r(x0_i)),   x0_i ~ N(x0_hat(x_t), r_t^2 I),
        r_t = sigma_t / sqrt(1 + sigma_t^2)                 (sigma_t of x_t = x0 + sigma_t eps)

    The clean picture that x_t will become is not known while it is drawn, so it is guessed: the
    denoiser's estimate, blurred by what that leaves open. One backward pass through the denoiser a
    step, n through the decoder and the reward. Nothing is learnt from one picture for the next:
    the run's own noise is drawn without guidance and then guided, and after it other noises.

    Attributes:
        n: Monte Carlo samples of the clean picture a step (DNO, table 1: 10 and 100).
        scale: how strong the guidance is.
        normalise: what `scale` means. noise: each step's guidance changes the predicted noise by
            `scale` times its length, whatever the reward's unit. none: the paper's, the loss is
            -scale r, so that the model's pictures are weighted by exp(scale r).
        eta: 0 guides the ODE, up to 1 the SDE of ddim.
        batch: Monte Carlo samples decoded at once; the result does not depend on it.

    Example:
        >>> tiller.steer("emoji", "a red cat", method="lgd", budget="steps=5")    # doctest: +SKIP

    Source: Song et al. 2023, "Loss-guided diffusion models for plug-and-play controllable
    generation", LGD-MC.
    """

    n: int = 10
    scale: float = 0.1
    normalise: str = "noise"
    eta: float = 0.0
    batch: int = 4

    redrawable: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Song et al., Loss-guided diffusion models for plug-and-play controllable generation, 2023"
    )
    needs_gradient: ClassVar[bool] = True
    default_budget: ClassVar[Budget] = Budget(images=9)

    def sampler(self, model: FrozenModel) -> SamplerSettings:
        """The model's own sampling; DDIM where the steps have noise of their own (eta > 0)."""
        own = super().sampler(model)
        if self.eta > 0 and self.scheduler not in (None, "ddim"):
            raise InvalidInput(
                f"eta > 0 is the ddim scheduler's, got scheduler={self.scheduler!r} with "
                f"eta={self.eta:g}; set eta=0, or leave the scheduler out"
            )
        return replace(own, scheduler="ddim" if self.eta > 0 else own.scheduler, eta=self.eta)

    def build(self, task: Task) -> list[Phase]:
        """The run's own noise without guidance, so that the best is never worse; then guided ones.

        Raises:
            InvalidInput: a field is out of its range.
            Incompatible: the reward has no gradient.
        """
        self._check()
        if not task.reward.differentiable:
            raise Incompatible(
                f"lgd needs a differentiable reward, and {task.reward.name} is not; choose dno, "
                "which compares scores, or best_of_n"
            )
        space, plain = Told(self.noise(task), task.prompt), self.pictures(task)
        objective = GuidedPictures(plain, self) if self.scale else plain

        def guided(before: Handover | None) -> Problem:
            assert before is not None, "the unguided picture comes first"
            return Problem(starting_at(space, before.best.z), objective, BestOfN(batch=1))

        own = Problem(space, plain, BestOfN(batch=1, n=1))
        return [Phase("unguided", lambda _: own), Phase("guided", guided)]

    def _check(self) -> None:
        for name in ("n", "batch"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1, got {name}={getattr(self, name)!r}")
        if not 0 <= self.scale < math.inf:
            raise InvalidInput(
                f"scale must be finite and not negative, got scale={self.scale}; 0 is no guidance"
            )
        if self.normalise not in NORMALISATIONS:
            raise InvalidInput(
                f"normalise must be one of {', '.join(NORMALISATIONS)}; got {self.normalise!r}"
            )


class Told(Noise):
    """A noise space that says its prompt, which the guide's reward compares with.

    Args:
        noise: the space.
        prompt: of all of its candidates.
    """

    def __init__(self, noise: Noise, prompt: str) -> None:
        super().__init__(noise.shape, noise.conditioning, noise.trust)
        self.prompt = prompt

    def decode(self, z: Tensor) -> Inputs:
        """As the noise space, with the prompt in each row."""
        return replace(super().decode(z), prompts=(self.prompt,) * len(z))


class GuidedPictures(Objective[Inputs, Tensor]):
    """What `Pictures` draws and scores, drawn under guidance by the same reward.

    A picture depends on its noise, its prompt and the run's seed alone, so the best one can be
    drawn again, and runs with one reward can be drawn together.

    Args:
        pictures: the sampler, the reward and the prompt.
        settings: the method's fields.
    """

    def __init__(self, pictures: Pictures, settings: Lgd) -> None:
        self.pictures = pictures
        self.settings = settings
        self.batch_size = pictures.batch_size

    def joint_key(self) -> Hashable:
        """Pictures under one guidance by one reward, of one model."""
        return self.pictures.joint_key(), self.settings, id(self.pictures.reward)

    def room(self, x: Inputs, gradient: bool) -> int | None:
        """As many candidates as their Monte Carlo samples have room for."""
        fits = self.pictures.room(x, gradient=True)
        return None if fits is None else max(1, fits // self.settings.batch)

    def render(self, x: Inputs, draw: Draw) -> Tensor:
        """Pictures [n, 3, H, W] in [0, 1], without a graph."""
        (drawn,) = self.render_jointly([x], [draw])
        return drawn

    def render_jointly(self, xs: Sequence[Inputs], draws: Sequence[Draw]) -> list[Tensor]:
        """Pictures of several runs' candidates, each guided by its own run's prompt and samples."""
        trajectory, own = self.pictures.trajectory, self.pictures.prompt
        counts = [len(x.noise) for x in xs]
        guide = LossGuide(
            self.pictures,
            self.settings,
            tuple(draw.seed for draw, n in zip(draws, counts, strict=True) for _ in range(n)),
            tuple(p for x, n in zip(xs, counts, strict=True) for p in x.prompts or (own,) * n),
        )
        whole = joined(xs)
        with torch.no_grad():
            latents = trajectory.run(whole.noise, whole.conditioning, guide=guide)
            return list(torch.split(trajectory.model.decode(latents), counts))

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """The reward [n] of the pictures."""
        return self.pictures.score(y, draw)

    def score_key(self) -> Hashable:
        """As pictures."""
        return self.pictures.score_key()

    @classmethod
    def score_jointly(
        cls, objectives: Sequence[GuidedPictures], ys: Sequence[Tensor], draws: Sequence[Draw]
    ) -> list[Tensor]:
        """As pictures."""
        return Pictures.score_jointly([one.pictures for one in objectives], ys, draws)

    def nearest(self, y: Tensor) -> Tensor:
        """As for pictures without guidance."""
        return self.pictures.nearest(y)


@dataclass(frozen=True)
class LossGuide:
    """d/dx_t log (1/n) sum_i exp(k r(x0_i)): the `Guide` of a trajectory.

    The samples depend on the run's seed and the step, and are shared by all candidates of a run
    (common random numbers), so a picture does not depend on what it is drawn with.

    Attributes:
        pictures: decodes and scores.
        settings: the method's fields.
        seeds: of each candidate's run.
        prompts: of each candidate.
    """

    pictures: Pictures
    settings: Lgd
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]

    def __call__(self, index: int, x: Tensor, estimate: Tensor, sigma: float) -> Tensor:
        """The gradient [m, C, h, w] at x_t = alpha_t x0 + sigma_t eps, [m, C, h, w].

        With alpha_t^2 + sigma_t^2 = 1 the paper's r_t is sigma_t itself.

        Raises:
            RewardError: the reward loses its gradient, or the gradient is not finite.
        """
        slope = self.slope(index, estimate.detach(), sigma)
        (gradient,) = torch.autograd.grad(estimate, x, slope.to(estimate.dtype))
        if not bool(torch.isfinite(gradient).all()):
            raise RewardError(
                f"the guidance is not finite at sampling step {index + 1}; try a smaller scale, "
                "another reward, or a higher precision (dtype)"
            )
        if self.settings.normalise == "none":
            return gradient
        # eps' = eps - sigma_t g, and a typical |eps| is the root of its dimension.
        wanted = self.settings.scale * math.sqrt(gradient[0].numel()) / sigma
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        lengths = wide.flatten(1).norm(dim=1).clamp(min=torch.finfo(wide.dtype).tiny)
        rescaled: Tensor = wide / lengths.view(-1, 1, 1, 1) * wanted
        return rescaled

    def slope(self, index: int, estimate: Tensor, sigma: float) -> Tensor:
        """d/dx0_hat log (1/n) sum_i exp(k r(x0_hat + sigma_t eps_i)) [m, C, h, w], no graph.

        It is k sum_i w_i dr/dx0_i with w = softmax(k r), so a few samples at a time are decoded
        and only their gradients kept. k is `scale` where that weighs the reward, else 1.
        """
        settings, m = self.settings, len(estimate)
        noises = self._noises(index, estimate)
        rewards, slopes = [], []
        for some in torch.split(noises, settings.batch, dim=1):
            samples = (estimate[:, None] + sigma * some).flatten(0, 1)
            prompts = [prompt for prompt in self.prompts for _ in range(some.shape[1])]
            reward, slope = self._reward(samples, prompts)
            rewards.append(reward.view(m, -1))
            slopes.append(slope.view(some.shape))
        k = settings.scale if settings.normalise == "none" else 1.0
        weights = torch.softmax(k * torch.cat(rewards, dim=1), dim=1)
        return k * torch.einsum("mi,mi...->m...", weights, torch.cat(slopes, dim=1).to(weights))

    def _noises(self, index: int, like: Tensor) -> Tensor:
        """Each candidate's samples of N(0, I) at a step, [m, n, C, h, w]: those of its seed."""
        drawn = {
            seed: torch.randn(
                (self.settings.n, *like.shape[1:]), generator=keyed_generator(seed, "lgd", index)
            )
            for seed in dict.fromkeys(self.seeds)
        }
        return torch.stack([drawn[seed] for seed in self.seeds]).to(like)

    def _reward(self, latents: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """r [j] of latents [j, C, h, w], and its gradient by them."""
        with torch.enable_grad():
            leaf = latents.detach().requires_grad_()
            pictures = self.pictures.trajectory.model.decode(leaf)
            reward = self.pictures.reward(pictures, prompts)
            if not reward.requires_grad:
                raise RewardError(
                    "the reward gave a score without a gradient, though it had one when it was "
                    "tried; keep its computation in torch on every path, or choose best_of_n"
                )
            (slope,) = torch.autograd.grad(reward.sum(), leaf)
        return reward.detach(), slope
