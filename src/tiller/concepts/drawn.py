"""The drawn loss of a concept's vectors: do quick drawings of the word look like the pictures?

A search without gradients needs no loss that can be differentiated cheaply, so it can ask for what
is wanted: the drawing itself. Ours; the papers have the denoising loss alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tiller.concepts.objective import ConceptLoss, Sampling, dealt
from tiller.core.budget import count
from tiller.core.errors import InvalidInput
from tiller.core.rng import Draw
from tiller.models.base import Conditioning, FrozenModel
from tiller.models.schedulers import noise_level
from tiller.models.trajectory import Trajectory
from tiller.rewards._tower import Tower
from tiller.spaces.concept import Vectors


@dataclass(frozen=True)
class Sketches:
    """One round's randomness, the same for all of its candidates.

    Attributes:
        noise: [m, slots, C, h, w] that each drawing begins at.
        templates: the round's different sentences.
        sentence: [m] which of them each drawing uses.
        weights: [m, N] of the given pictures that each drawing is compared with; a row sums to 1.
    """

    noise: Tensor
    templates: tuple[str, ...]
    sentence: Tensor
    weights: Tensor


class DrawnLoss(ConceptLoss):
    """1 - E cos(c(drawing of a sentence with e), c(given pictures)), c a CLIP.

    Drawings take a few of the sampler's own steps, the first among them, under the model's own
    guidance (DDIM). A schedule made for so few would begin at less noise, and what looks right
    there need not look right in a whole drawing.

    Every second one's sentence ends with the place of one picture, and it is compared with that;
    the others say nothing of a place and are compared with all pictures. So the thing is learned
    and the places are not.

    A round of n candidates is n draws few-step drawings, in large batches; each counts as an image.

    Args:
        model: the frozen model.
        tower: the CLIP that compares; another than the one that reports.
        pictures: [N, 3, H, W] in [0, 1], the given ones.
        templates: the sentences, each with one `{}`.
        sampling: what a round is taken over; `draws` drawings.
        steps: of the sampler for one drawing, at most as many as it has; None for all.
        places: how the sentences about each picture end, "" for as they are.
        rows: of one denoiser call at most; guidance takes two a drawing.

    Raises:
        InvalidInput: sentences that cannot be used.

    Example:
        >>> import tiller
        >>> from tiller.rewards._tower import tower_for
        >>> model, given = tiller.load_model("emoji"), torch.rand(3, 3, 64, 64)
        >>> word = tuple(table[320][None, None] for table in model.token_embeddings)
        >>> loss = DrawnLoss(model, tower_for("emoji", given), given, ["a picture of {}"], steps=2)
        >>> loss.render(word, Draw(0, 0)).shape          # of one candidate, in 4 drawings
        torch.Size([1, 4])
    """

    def __init__(
        self,
        model: FrozenModel,
        tower: Tower,
        pictures: Tensor,
        templates: Sequence[str],
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        *,
        steps: int | None = 4,
        places: Sequence[str] = (),
        rows: int = 128,
    ) -> None:
        ends = places or ("",) * len(pictures)
        if len(ends) != len(pictures):
            raise InvalidInput(f"expected {len(pictures)} places, one a picture, got {places}")
        super().__init__(model, templates, sampling, ends, rows)
        self.tower = tower
        self.path = Trajectory(model)
        steps = min(steps or self.path.num_steps, self.path.num_steps)
        self.steps = [i * self.path.num_steps // steps for i in range(steps)]
        with torch.no_grad():
            self._given = tower.embed_images(pictures.to(tower.model.device)).float()
            self._empty = model.encode_pieces([[""]], [[""]])
        self._branches = model.branches(self.path.settings.guidance_scale)
        self.images_per_candidate = sampling.draws
        self.forwards_per_candidate = sampling.draws * steps * self._branches

    def render(self, x: Vectors, draw: Draw) -> Tensor:
        """The losses [n, m] of the candidates in the round's m drawings."""
        sketches = self.sketches(draw)
        words = self.states(x, sketches.templates)
        n, m = len(x[0]), len(sketches.noise)
        trial = torch.arange(m, device=sketches.sentence.device).repeat(n)
        candidate = torch.arange(n, device=trial.device).repeat_interleave(m)
        row = candidate * len(sketches.templates) + sketches.sentence.repeat(n)
        at_once = max(1, self.rows // self._branches)
        parts = []
        for first in range(0, n * m, at_once):
            span = slice(first, first + at_once)
            drawn = self._drawn(words.index(row[span]), sketches.noise[trial[span]])
            near = self.tower.embed_images(drawn).float() @ self._given.T
            parts.append(1 - (near * sketches.weights[trial[span]]).sum(dim=1))
        return torch.cat(parts).view(n, m)

    def sketches(self, draw: Draw) -> Sketches:
        """The round's noises, sentences, and the pictures that they speak of."""
        m, device, given = self.sampling.draws, self.model.device, len(self.places)
        pictures = dealt(given, m, draw.generator("pictures"))
        named = (torch.arange(m) + draw.round) % 2 == 0
        whole = self.sentences(pictures, draw, named)
        chosen = tuple(dict.fromkeys(whole))
        sentence = torch.tensor([chosen.index(text) for text in whole])
        own = torch.tensor([bool(self.places[i]) for i in pictures.tolist()]) & named
        alone = torch.eye(given)[pictures]
        weights = torch.where(own[:, None], alone, torch.full((m, given), 1 / given))
        noises = draw.generator("noise")
        noise = torch.stack([self.path.sample_noise(noises) for _ in range(m)]).to(self.model.dtype)
        return Sketches(noise.to(device), chosen, sentence.to(device), weights.to(self._given))

    def _drawn(self, words: Conditioning, noise: Tensor) -> Tensor:
        """Pictures [n, 3, H, W], with a graph to the words where they want one."""
        empty = self._empty.expand(len(noise))
        told = replace(
            words,
            negative_prompt_embeds=empty.negative_prompt_embeds,
            negative_pooled_prompt_embeds=empty.negative_pooled_prompt_embeds,
        )
        scheduler, first = self.model.scheduler, self.path.timesteps[0]
        eps = noise[:, 0] / noise_level(scheduler, first)[1]  # the first step reads the noise alone
        x0 = torch.zeros_like(eps)
        for index in self.steps:
            found = self.path.renoised(index, x0, eps, told)
            alpha, sigma = noise_level(scheduler, self.path.timesteps[index])
            eps = eps + alpha / sigma * (x0 - found)  # so that alpha x0 + sigma eps stays as it was
            x0 = found
        count(images=len(noise))
        return self.model.decode(x0)
