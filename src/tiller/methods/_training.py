"""What methods that train weights share: their pictures, their training material, their phases."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.objective import Objective
from tiller.core.prompts import prompts_in
from tiller.core.rng import Draw, Stream, keyed_generator
from tiller.core.search import Handover, Phase, Problem
from tiller.methods._pictures import joined, judged
from tiller.methods._weights import TARGETS, Adaptable, with_lora
from tiller.methods.base import Method, Task
from tiller.models.base import Conditioning, FrozenModel
from tiller.models.checkpointing import (
    MEMORY_SHARE,
    Checkpoint,
    Plan,
    chosen,
    free_bytes,
    saved_bytes,
)
from tiller.models.guidance import guided
from tiller.models.inputs import Inputs
from tiller.models.trajectory import Gradient, Trajectory
from tiller.rewards.base import Reward
from tiller.spaces.lora import Adapted, Lora


@dataclass(frozen=True)
class Lesson:
    """What one training step draws: noise [b, slots, C, h, w], and which prompt each has [b]."""

    noise: Tensor
    prompt: Tensor


@dataclass(frozen=True)
class Lessons:
    """Prompts in shuffled epochs, each with a noise of its own, `batch` a round.

    Attributes:
        prompts: p texts.
        conditioning: p rows, their encodings.
        batch: b.
    """

    prompts: tuple[str, ...]
    conditioning: Conditioning
    batch: int

    def at(self, draw: Draw, trajectory: Trajectory) -> Lesson:
        """The round's: the same for the same seed and round, whatever came before."""
        numbers = range(draw.round * self.batch, (draw.round + 1) * self.batch)
        noises = [
            trajectory.sample_noise(keyed_generator(draw.seed, "training noise", number))
            for number in numbers
        ]
        chosen = torch.tensor([self._prompt(draw.seed, number) for number in numbers])
        return Lesson(torch.stack(noises), chosen)

    def texts(self, prompt: Tensor) -> list[str]:
        """The texts of prompts [b]."""
        return [self.prompts[i] for i in prompt.tolist()]

    def _prompt(self, seed: int, number: int) -> int:
        epoch, place = divmod(number, len(self.prompts))
        shuffle = keyed_generator(seed, "training epoch", epoch)
        return int(torch.randperm(len(self.prompts), generator=shuffle)[place])


class AdaptedPictures(Objective[Adapted, Tensor]):
    """score(x) = reward(decode(sample(x)), prompt), sampled by a copy that has x's weights.

    Candidates of one run are drawn one after another, since each has other weights. Those of
    several runs are drawn together where the copy takes weights by row.

    Args:
        adaptable: the copy.
        trajectory: the sampler of the frozen model.
        reward: images [n, 3, H, W] in [0, 1] and prompts to scores [n].
        prompt: what the reward compares with.
        gradient: how the trajectory is differentiated when a gradient is asked for.
        checkpoint: which steps keep their activations; see `Trajectory.run`.
        lessons: what is drawn for `practice`; None for the candidate's own noise and words.
        redraws: n of DRaFT-LV for `practice`; 0 for the trajectory's own gradient.
    """

    batch_size = 1

    def __init__(
        self,
        adaptable: Adaptable,
        trajectory: Trajectory,
        reward: Reward,
        prompt: str,
        *,
        gradient: Gradient | None = None,
        checkpoint: Checkpoint = "auto",
        lessons: Lessons | None = None,
        redraws: int = 0,
    ) -> None:
        self.adaptable, self.trajectory = adaptable, trajectory
        self.reward, self.prompt = reward, prompt
        self.gradient, self.checkpoint = gradient or Gradient.none(), checkpoint
        self.lessons, self.redraws = lessons, redraws
        self.render_differentiable = self.gradient != Gradient.none()
        self.differentiable = reward.differentiable and self.render_differentiable
        self._fed = trajectory.over(adaptable.fed()) if adaptable.by_row else None
        self._step_bytes: dict[int, int] = {}

    def render(self, x: Adapted, draw: Draw) -> Tensor:
        """The run's own pictures [n, 3, H, W] in [0, 1], one for each candidate's weights."""
        pictures = []
        for i, weights in enumerate(x.weights):
            words = x.conditioning.index([i])
            latents = self.latents(weights, x.noise[i : i + 1], words, self.gradient)
            pictures.append(self.trajectory.model.decode(latents))
        return torch.cat(pictures)

    def joint_key(self) -> Hashable | None:
        """Runs of one model with adapters of one shape draw together."""
        if not self.adaptable.by_row:
            return None
        path = self.trajectory
        own = self.adaptable.layout, self.adaptable.dtype
        return id(path.model), path.settings, self.gradient, self.checkpoint, *own

    def render_jointly(self, xs: Sequence[Adapted], draws: Sequence[Draw]) -> list[Tensor]:
        """Pictures of several runs' candidates from one trajectory, each row with its weights."""
        together = joined(xs)
        weights = torch.cat([x.weights for x in xs])
        latents = self.latents(weights, together.noise, together.conditioning, self.gradient)
        pictures = self.trajectory.model.decode(latents)
        return list(torch.split(pictures, [len(x.noise) for x in xs]))

    def room(self, x: Adapted, gradient: bool) -> int | None:
        """As many candidates as the free memory takes, each step's activations counted."""
        if not gradient:
            return None
        model = self.trajectory.model
        budget = int(MEMORY_SHARE * free_bytes(model.device))
        return max(1, budget // max(1, self._measured(x.weights, x.conditioning)))

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """The reward [n] of the pictures."""
        return self.reward(y, [self.prompt] * len(y))

    def score_key(self) -> Hashable:
        """Pictures that one reward judges."""
        return id(self.reward)

    @classmethod
    def score_jointly(
        cls, objectives: Sequence[AdaptedPictures], ys: Sequence[Tensor], draws: Sequence[Draw]
    ) -> list[Tensor]:
        """The rewards of several runs' pictures, each for its own run's prompt."""
        return judged(objectives[0].reward, ys, [one.prompt for one in objectives])

    def practice(self, x: Adapted, draw: Draw) -> Tensor:
        """Rewards [b] of the round's training pictures, drawn with the weights of x (one row).

        With `redraws` n, each finished picture x0 is noised n times to the last step and denoised
        again, [n b] in all; only these denoisings carry a gradient.

        Source: Clark et al. 2023 (DRaFT), algorithm 1; the redraws are DRaFT-LV.
        """
        noise, words, texts = x.noise, x.conditioning, [self.prompt]
        if self.lessons is not None:
            lesson = self.lessons.at(draw, self.trajectory)
            noise, words = lesson.noise, self.lessons.conditioning.index(lesson.prompt)
            texts = self.lessons.texts(lesson.prompt)
        weights, model = x.weights[0], self.trajectory.model
        if not self.redraws:
            latents = self.latents(weights, noise, words, self.gradient)
            return self.reward(model.decode(latents), texts)
        with torch.no_grad():
            latents = self.latents(weights, noise, words, Gradient.none())
        path, words = self.drawing(weights, words.expand(len(noise)))
        generator, rewards = draw.generator("redraws"), []
        for _ in range(self.redraws):
            fresh = torch.randn(latents.shape, generator=generator).to(latents)
            again = path.renoised(path.num_steps - 1, latents, fresh, words)
            rewards.append(self.reward(model.decode(again), texts))
        return torch.cat(rewards)

    def nearest(self, y: Tensor) -> Tensor:
        """Perturbed pictures, cut to [0, 1]: what rewards are promised."""
        return y.clamp(0, 1)

    def latents(
        self, weights: Tensor, noise: Tensor, words: Conditioning, gradient: Gradient
    ) -> Tensor:
        """The trajectory's end [b, C, h, w] for noise [b, slots, C, h, w].

        With weights [d] for all rows, or [b, d], each row's own.
        """
        words = words.expand(len(noise))
        if self._fed is not None:
            path, told = self.drawing(weights, words)
            gradient = gradient if torch.is_grad_enabled() else Gradient.none()
            return path.run(noise, told, gradient=gradient, checkpoint=self.checkpoint)
        steps = gradient.window(self.trajectory.num_steps).steps
        plan = Plan(0, 0)
        if torch.is_grad_enabled() and steps:
            plan = chosen(
                self.checkpoint,
                steps,
                measure=lambda: len(noise) * self._measured(weights, words),
                memory_budget=None,
                device=self.trajectory.model.device,
            )
        else:
            gradient = Gradient.none()
        path, _ = self.drawing(weights, words, plan)
        # What the plan recomputes, the model's stand-in does: it alone knows of the weights.
        return path.run(noise, words, gradient=gradient, checkpoint="keep")

    def drawing(
        self,
        weights: Tensor,
        words: Conditioning,
        plan: Plan = Plan(0, 0),  # noqa: B008  # frozen
    ) -> tuple[Trajectory, Conditioning]:
        """The sampler, and what it is told, so that the pictures of these words have the weights.

        Args:
            weights: [d] for all rows, or [b, d], each row's own, where the copy takes them by row.
            words: of b rows.
            plan: what is recomputed where the copy does not.
        """
        if self._fed is not None:
            return self._fed, replace(words, weights=weights.expand(len(words), -1))
        return self.trajectory.over(self.adaptable.drawing_with(weights, plan)), words

    def _measured(self, weights: Tensor, words: Conditioning) -> int:
        """Bytes that one step keeps for one picture; one unbilled forward, once."""
        one = (weights if weights.ndim == 1 else weights[0]).detach().requires_grad_()
        model = self.adaptable.drawing_with(one)
        denoiser = guided(model, words.index([0]), self.trajectory.settings.guidance_scale)
        if denoiser.branches not in self._step_bytes:
            shape = (1, *self.trajectory.noise_shape[1:])
            latents = torch.zeros(shape, device=model.device, dtype=model.dtype)
            t = self.trajectory.timesteps[0].to(model.device)
            self._step_bytes[denoiser.branches] = saved_bytes(
                lambda: denoiser(latents.requires_grad_(), t, *denoiser.inputs)
            )
        return self._step_bytes[denoiser.branches]


@dataclass(frozen=True)
class Training(Method):
    """A method that trains weights: of a copy, never of the loaded model.

    The run's own picture is drawn in each round with the weights of that round, and the best of
    these is kept; the first has the frozen model's own weights.

    Attributes:
        rank: of the low-rank adapters W + B A.
        targets: which of the UNet's modules get one, ends of their names with commas between.
        prompts: a text file with a prompt a line to train on; empty trains on the run's prompt.
        batch: training pictures a step, each with a noise of its own.
    """

    rank: int = 6
    targets: str = TARGETS
    prompts: str = ""
    batch: int = 0

    redrawable: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...]] = ("prompts",)
    takes_affix: ClassVar[bool] = False

    def contents(self) -> dict[str, Any]:
        """As every method, and the prompts."""
        texts = prompts_in(self.prompts) if self.prompts else ()
        return {**super().contents(), **({"training_prompts": list(texts)} if texts else {})}

    def notes(self) -> tuple[str, ...]:
        """That the picture is a trained copy's."""
        text = (
            f"{type(self).__name__.lower()} trains weights: of a copy, the loaded model stays as "
            "it is. The pictures are the copy's, not the frozen model's; best.safetensors holds "
            "the weights of the best round"
        )
        return (text,)

    def build(self, task: Task) -> list[Phase]:
        """The training, from the frozen model's own weights.

        Raises:
            InvalidInput: a field is out of its range, or a prompts file that cannot be read.
            Incompatible: the reward does not fit the method.
        """
        adaptable = self.adaptable(task.model)
        lessons = self._lessons(task)
        trajectory = self.trajectory(task.model)
        own = self.noise(task)
        space = Lora(
            adaptable.layout,
            Inputs(own.sample(1, Stream(task.seed)), own.conditioning),
            start=adaptable.start,
            dtype=adaptable.dtype,
        )

        def training(_: Handover | None = None) -> Problem:
            return self.problem(task, space, adaptable, trajectory, lessons)

        training()  # refused now, and not after the run has begun
        return [Phase("training", training)]

    @abstractmethod
    def problem(
        self,
        task: Task,
        space: Lora,
        adaptable: Adaptable,
        trajectory: Trajectory,
        lessons: Lessons | None,
    ) -> Problem:
        """What is searched; its objective may keep a memory, so every call makes another."""

    def adaptable(self, model: FrozenModel) -> Adaptable:
        """The copy with its adapters."""
        names = [name.strip() for name in self.targets.split(",")]
        return with_lora(model, self.rank, [name for name in names if name])

    def _lessons(self, task: Task) -> Lessons | None:
        """The training material, None for the run's own noise alone."""
        if self.batch < 0:
            raise InvalidInput(f"batch must not be negative, got batch={self.batch}")
        if not self.batch:
            if self.prompts:
                raise InvalidInput(
                    "training on the prompts of a file needs pictures a step, got "
                    f"prompts={self.prompts!r} and batch=0; set batch=4"
                )
            return None
        self.check_batch(self.batch)
        texts = prompts_in(self.prompts) if self.prompts else [task.prompt]
        words = task.model.encode(texts, [task.negative_prompt] * len(texts))
        return Lessons(tuple(texts), words, self.batch)
