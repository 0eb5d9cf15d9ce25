"""Drawing with concepts: the token in a prompt, the vectors in the text encoder.

A picture's noise is diffusers' own for that seed, so a plain pipeline that has loaded the concept
draws the same picture from the same prompt and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models.base import Conditioning, FrozenModel, SamplerSettings
from tiller.models.concept_files import read_named
from tiller.models.concepts import Concept, Vocabulary, notice_capitals, notice_unnamed
from tiller.models.loader import load_model
from tiller.models.pieces import Piece
from tiller.models.trajectory import Trajectory

SEEDS = range(-(1 << 63), 1 << 64)


def draw(
    model: str | Path | FrozenModel | Any,
    prompt: str,
    *,
    concepts: Sequence[str | Path | Concept] = (),
    seeds: Sequence[int] = (0,),
    negative_prompt: str = "",
    on_picture: Callable[[int, Any], None] | None = None,
    **sampler: Any,
) -> list[Any]:
    """PIL pictures of a prompt that names concepts, one a seed.

    Args:
        model: what `load_model` takes or returns.
        prompt: words, with the concepts' tokens among them.
        concepts: files, runs' folders, `FILE=<TOKEN>`, or `Concept` objects.
        seeds: of the noises, as `torch.Generator().manual_seed` takes them.
        negative_prompt: what guidance steers away from; may name concepts too.
        on_picture: called with a seed and its picture as soon as that is drawn.
        sampler: fields of `SamplerSettings` that differ from the model's own.

    Raises:
        InvalidInput: a concept of another model, two with one token, no such setting, or a seed
            that torch does not take.

    Example:
        >>> from tiller.concepts import draw
        >>> pictures = draw("emoji", "a <duck> on a blue background",    # doctest: +SKIP
        ...                 concepts=["duck/learned_embeds.safetensors"], seeds=range(4))
    """
    from tiller.runs.png import to_image

    loaded = model if isinstance(model, FrozenModel) else load_model(model)
    found = [one if isinstance(one, Concept) else read_named(one) for one in concepts]
    words = vocabulary(loaded, found)
    texts = [words.read(prompt), words.read(negative_prompt)]
    notice_unnamed(found, [prompt, negative_prompt])
    notice_capitals(found, [prompt, negative_prompt])
    try:
        settings = replace(loaded.defaults, **sampler)
    except TypeError as error:
        raise InvalidInput(f"no such setting of the sampler: {error}") from None
    check_seeds(seeds)
    told = told_by(loaded, texts[0], texts[1])
    pictures = []
    for seed in seeds:
        pictures.append(to_image(sample(loaded, told, [seed], settings)))
        if on_picture is not None:
            on_picture(seed, pictures[-1])
    return pictures


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds of pictures that `torch.Generator.manual_seed` does not take.

    Raises:
        InvalidInput: one is out of its range.
    """
    for seed in seeds:
        if int(seed) not in SEEDS:
            raise InvalidInput(f"the seed of a picture lies between -2^63 and 2^64, got {seed}")


def vocabulary(model: FrozenModel, concepts: Sequence[Concept]) -> Vocabulary:
    """The concepts as this model reads them.

    Raises:
        InvalidInput: one of another model, or two with one token.
    """
    return Vocabulary(concepts, model.tokenizers, [t.shape[1] for t in model.token_embeddings])


@torch.no_grad()
def told_by(
    model: FrozenModel, text: Sequence[Piece], negative: Sequence[Piece] = ("",)
) -> Conditioning:
    """The conditioning of one text, encoded alone: the same whatever else is drawn."""
    return model.encode_pieces([text], [negative])


@torch.no_grad()
def sample(
    model: FrozenModel,
    told: Conditioning,
    seeds: Sequence[int],
    settings: SamplerSettings | None = None,
    *,
    at_once: int = 1,
) -> Tensor:
    """Pictures [n, 3, H, W] in [0, 1] on the CPU, one a seed.

    Args:
        model: the frozen model.
        told: one row for all of them, or one for each.
        seeds: of diffusers' noises.
        settings: the model's own if not given.
        at_once: pictures of one batch. One at a time, a picture is bit for bit what a plain
            pipeline draws; more agree up to rounding.
    """
    path = Trajectory(model, settings)
    noise = [path.sample_noise(torch.Generator().manual_seed(int(seed))) for seed in seeds]
    rows = told.expand(len(noise))
    parts = []
    for first in range(0, len(noise), at_once):
        span = slice(first, first + at_once)
        part = torch.stack(noise[span])
        parts.append(model.decode(path.run(part, rows.index(span))).cpu())
    return torch.cat(parts)
