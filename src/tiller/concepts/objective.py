"""The denoising loss of a concept's vectors: what a few pictures say of a word.

Source: Gal et al. 2022, equation 2; Fei et al. 2023, equation 1 and section 3.2.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiller.core.budget import count
from tiller.core.errors import InvalidInput
from tiller.core.objective import Objective
from tiller.core.rng import Draw
from tiller.models.base import Conditioning, FrozenModel
from tiller.models.checkpointing import MEMORY_SHARE, free_bytes, recomputed, saved_bytes
from tiller.models.pieces import Piece, Tokens
from tiller.models.schedulers import noise_level
from tiller.spaces.concept import Vectors


@dataclass(frozen=True)
class Sampling:
    """What one round's losses are taken over.

    Attributes:
        draws: (picture, timestep, noise) triples a candidate is tried on.
        templates: different sentences among them, at most; each costs a run of the text encoder.
        flip: chance that a picture is seen in the mirror.
        t_low, t_high: the part of the noise schedule, 0 for clean and 1 for pure noise.

    Raises:
        InvalidInput: a number is out of its range.
    """

    draws: int = 4
    templates: int = 2
    flip: float = 0.0
    t_low: float = 0.0
    t_high: float = 1.0

    def __post_init__(self) -> None:
        for name in ("draws", "templates"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.flip <= 1:
            raise InvalidInput(f"flip is a chance, 0 to 1, got {self.flip}")
        if not 0 <= self.t_low < self.t_high <= 1:
            raise InvalidInput(
                f"expected 0 <= t_low < t_high <= 1, got t_low={self.t_low}, t_high={self.t_high}"
            )


@dataclass(frozen=True)
class Trials:
    """One round's randomness, made real: the same for all of its candidates.

    Attributes:
        t: [m] timesteps, one from each of m equal parts of the schedule.
        noisy: [m, C, h, w] the pictures' latents at these timesteps.
        target: [m, C, h, w] what the network should have said.
        templates: the round's sentences, with the places of the pictures that they are about.
        sentence: [m] which of them each trial uses.
    """

    t: Tensor
    noisy: Tensor
    target: Tensor
    templates: tuple[str, ...]
    sentence: Tensor


class ConceptLoss(Objective[Vectors, Tensor]):
    """What a few pictures say of a word, as a loss [n, m] of n candidates in a round's m trials.

    A round draws its trials once, from its `Draw`, and tries every candidate on them (common random
    numbers): else the ranking would be that of the noises.

    Args:
        model: the frozen model.
        templates: the sentences, each with one `{}`.
        sampling: what a round is taken over.
        places: how the sentences about each picture end ("on a blue background"), "" for as they
            are.
        rows: of one denoiser call at most; a call of another size differs by rounding, so a run
            keeps to one.

    Raises:
        InvalidInput: sentences that cannot be used.
    """

    differentiable = True
    images_per_candidate = 0

    def __init__(
        self,
        model: FrozenModel,
        templates: Sequence[str],
        sampling: Sampling,
        places: Sequence[str],
        rows: int,
    ) -> None:
        bad = [text for text in templates if text.count("{}") != 1]
        if bad or not templates:
            raise InvalidInput(f"sentences need one {{}} for the concept each, got {bad or 'none'}")
        if rows < 1:
            raise InvalidInput(f"a call has at least one row, got {rows=}")
        self.model = model
        self.templates = tuple(templates)
        self.places = tuple(places)
        self.sampling = sampling
        self.rows = rows

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """The mean loss, negated: higher is better."""
        return -y.mean(dim=1)

    def sentences(self, pictures: Tensor, draw: Draw, placed: Tensor | None = None) -> list[str]:
        """What is said in each trial, of these pictures [m]: few templates, evenly dealt.

        Args:
            pictures: which picture a trial is about.
            draw: the round's.
            placed: [m] whether a sentence ends with its picture's place; by default all do.
        """
        m = len(pictures)
        picks = torch.randperm(len(self.templates), generator=draw.generator("templates"))
        some = [self.templates[i] for i in picks[: min(m, self.sampling.templates)].tolist()]
        which = dealt(len(some), m, draw.generator("sentences"))
        ends = [self.places[j] for j in pictures.tolist()]
        if placed is not None:
            ends = [end if said else "" for end, said in zip(ends, placed.tolist(), strict=True)]
        return [f"{some[i]} {end}".rstrip() for i, end in zip(which.tolist(), ends, strict=True)]

    def states(self, x: Vectors, templates: Sequence[str]) -> Conditioning:
        """The text encoder's states, [n * sentences, ...], a candidate's sentences side by side."""
        texts: list[list[Piece]] = []
        for i in range(len(x[0])):
            word = Tokens(tuple(vectors[i] for vectors in x))
            for template in templates:
                before, after = (part.strip() for part in template.split("{}"))
                texts.append([*filter(None, [before]), word, *filter(None, [after])])
        found = self.model.encode_pieces(texts)
        return Conditioning(found.prompt_embeds, pooled_prompt_embeds=found.pooled_prompt_embeds)


class DenoisingLoss(ConceptLoss):
    """-E |prediction(x_t, t, f(sentence with e)) - target|^2, mean over the latents' numbers.

        x_t = alpha_t x_0 + sigma_t eps,   target: eps, v = alpha_t eps - sigma_t x_0, or x_0,

    whichever the network predicts. Without guidance, as networks are trained. A round draws
    pictures, timesteps, noises, mirrors and sentences. The pictures are encoded once, to the mean
    of the encoder's distribution.

    A round of n candidates is n draws times few large denoiser calls and one of the text encoder.

    Args:
        model: the frozen model.
        latents: [N, C, h, w] of the pictures, or [2, N, C, h, w] with the mirrored ones.
        templates: the sentences, each with one `{}`.
        sampling: what a round is taken over.
        places: how the sentences about each picture end ("on a blue background"), "" for as they
            are; none for no picture.
        rows: of one denoiser call at most; a call of another size differs by rounding, so a run
            keeps to one.

    Raises:
        InvalidInput: latents or sentences that cannot be used.

    Example:
        >>> import tiller
        >>> model = tiller.load_model("emoji")
        >>> word = tuple(table[320][None, None] for table in model.token_embeddings)
        >>> loss = DenoisingLoss(model, torch.zeros(1, 4, 16, 16), ["a picture of {}"])
        >>> loss.render(word, Draw(0, 0)).shape          # of one candidate, in 4 trials
        torch.Size([1, 4])
    """

    def __init__(
        self,
        model: FrozenModel,
        latents: Tensor,
        templates: Sequence[str],
        sampling: Sampling = Sampling(),  # frozen
        *,
        places: Sequence[str] = (),
        rows: int = 128,
    ) -> None:
        views = latents if latents.ndim == 5 else latents[None]
        if (
            views.ndim != 5
            or tuple(views.shape[2:3]) != model.latent_shape[:1]
            or not views.numel()
        ):
            raise InvalidInput(
                f"expected latents [n, {model.latent_shape[0]}, h, w], got {list(latents.shape)}"
            )
        if sampling.flip and len(views) != 2:
            raise InvalidInput("a chance of mirrors needs the mirrored pictures' latents as well")
        if places and len(places) != views.shape[1]:
            raise InvalidInput(f"expected {views.shape[1]} places, one a picture, got {places}")
        super().__init__(model, templates, sampling, places or ("",) * views.shape[1], rows)
        self._views = views.to(model.device, model.dtype)
        self._kind = str(model.scheduler.config.prediction_type)

    def render(self, x: Vectors, draw: Draw) -> Tensor:
        """The losses [n, m] of the candidates in the round's m trials."""
        trials = self.trials(draw)
        words = self.states(x, trials.templates)
        n, m = len(x[0]), len(trials.t)
        candidate = torch.arange(n, device=trials.t.device).repeat_interleave(m)
        trial = torch.arange(m, device=trials.t.device).repeat(n)
        row = candidate * len(trials.templates) + trials.sentence.repeat(n)
        parts = []
        for first in range(0, n * m, self.rows):
            span = slice(first, first + self.rows)
            told = words.index(row[span])
            parts.append(self._losses(told, trials, trial[span], recompute=n * m > self.rows))
        return torch.cat(parts).view(n, m)

    def trials(self, draw: Draw) -> Trials:
        """The round's pictures, timesteps, noises, mirrors and sentences."""
        m, own = self.sampling.draws, self.sampling
        pictures = dealt(self._views.shape[1], m, draw.generator("pictures"))
        mirrored = (torch.rand(m, generator=draw.generator("flips")) < own.flip).long()
        spread = (torch.arange(m) + torch.rand(m, generator=draw.generator("timesteps"))) / m
        steps = int(self.model.scheduler.config.num_train_timesteps)
        t = ((own.t_low + (own.t_high - own.t_low) * spread) * steps).long().clamp(max=steps - 1)
        whole = self.sentences(pictures, draw)
        chosen = tuple(dict.fromkeys(whole))
        sentence = torch.tensor([chosen.index(text) for text in whole])
        eps = torch.randn((m, *self._views.shape[2:]), generator=draw.generator("noise"))
        eps, device = eps.to(self._views), self._views.device
        x0 = self._views[mirrored.to(device), pictures.to(device)]
        alpha, sigma = (
            level.to(eps).view(-1, 1, 1, 1) for level in noise_level(self.model.scheduler, t)
        )
        noisy = alpha * x0 + sigma * eps
        targets = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}
        return Trials(t.to(device), noisy, targets[self._kind], chosen, sentence.to(device))

    def _losses(
        self, words: Conditioning, trials: Trials, trial: Tensor, *, recompute: bool = False
    ) -> Tensor:
        """The losses of some rows, one call of the denoiser."""
        count(forwards=len(trial))
        told = {"prompt_embeds": words.prompt_embeds}
        if words.pooled_prompt_embeds is not None:
            told["pooled_prompt_embeds"] = words.pooled_prompt_embeds
        t = trials.t[trial]

        def predict(noisy: Tensor, *inputs: Tensor) -> Tensor:
            given: dict[str, Any] = dict(zip(told, inputs, strict=True))
            return self.model.denoise(noisy, t, **given)

        noisy, inputs = trials.noisy[trial], tuple(told.values())
        if torch.is_grad_enabled() and any(v.requires_grad for v in inputs):
            prediction = _differentiable(predict, noisy, inputs, recompute)
        else:
            prediction = predict(noisy, *inputs)
        error = (prediction - trials.target[trial]).flatten(1)
        return error.to(torch.promote_types(error.dtype, torch.float32)).square().mean(dim=1)


def _differentiable(
    predict: Callable[..., Tensor], noisy: Tensor, inputs: tuple[Tensor, ...], recompute: bool
) -> Tensor:
    """The prediction with a graph to the words, its backward counted in this call's context."""
    context, amount = contextvars.copy_context(), len(noisy)
    if recompute:
        again = functools.partial(context.run, count, recomputes=amount)
        out = recomputed(predict, noisy, inputs, again)
    else:
        out = predict(noisy, *inputs)
    out.register_hook(  # type: ignore[no-untyped-call]  # of torch
        lambda grad: context.run(count, backwards=amount)
    )
    return out


def dealt(kinds: int, draws: int, generator: torch.Generator) -> Tensor:
    """[draws] of `kinds` in random order, each as often as the others, or once more."""
    decks = [torch.randperm(kinds, generator=generator) for _ in range(-(-draws // kinds))]
    return torch.cat(decks)[:draws]


def rows_that_fit(objective: DenoisingLoss, x: Vectors, most: int = 128) -> int:
    """How many rows of one denoiser call fit into half of the free memory, at most `most`.

    Measured on one row with its activations kept, so it holds with and without a gradient.
    """
    one = tuple(vectors[:1].detach().requires_grad_() for vectors in x)
    trials = objective.trials(Draw(0, 0))
    with torch.enable_grad():
        words = objective.states(one, trials.templates[:1])
        first = torch.zeros(1, dtype=torch.long, device=trials.t.device)
        needed = saved_bytes(lambda: objective._losses(words, trials, first))
    budget = int(MEMORY_SHARE * free_bytes(objective.model.device))
    return max(1, min(most, budget // max(1, needed)))
