"""What the IPGO benchmarks share: prompts in four groups, halves of the subjects, rewards."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tiller.models.bundled.captions import SUBJECT_NAMES, Spec, caption, in_split, random_spec

GROUPS = ("plain", "background", "two", "rare")
REWARDS: dict[str, tuple[list[str], list[str]]] = {
    "clip": (["clip"], ["clip_heldout", "preference"]),
    "preference": (["preference"], ["clip_heldout", "clip"]),
    "mix": (["clip:1", "preference:0.1"], ["clip_heldout"]),
}
"""What is raised and what is watched; 0.1 brings preference to the spread of clip."""


def grouped(count: int, seed: int = 11) -> dict[str, list[str]]:
    """`count` prompts outside the training scenes in each group: one subject, one on a background,
    two, and one in words that the model has rarely read."""
    rng = np.random.default_rng([seed, 5])
    found: dict[str, list[str]] = {}
    for group in GROUPS:
        texts: dict[str, None] = {}
        while len(texts) < count:
            spec = random_spec(rng, "test", "two" if group == "two" else "one")
            if group in ("plain", "rare"):
                spec = dataclasses.replace(spec, background=None)
            texts.setdefault(caption(spec, rng, rare=1.0 if group == "rare" else 0.0))
        found[group] = list(texts)
    return found


def mixed(count: int, seed: int = 11) -> list[str]:
    """`count` prompts, the groups in turn."""
    groups = grouped(-(-count // len(GROUPS)), seed).values()
    return [text for texts in zip(*groups, strict=True) for text in texts][:count]


def halves(count: int, seed: int = 11) -> tuple[list[str], list[str]]:
    """`count` prompts of one half of the subjects, and as many of the other half."""
    shuffled = np.random.default_rng([seed, 6]).permutation(len(SUBJECT_NAMES))
    names = [SUBJECT_NAMES[i] for i in shuffled]
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    return of_subjects(first, count, seed), of_subjects(second, count, seed + 1)


def of_subjects(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` prompts with one of these subjects each, outside the training scenes."""
    rng = np.random.default_rng([seed, 7])
    texts: dict[str, None] = {}
    while len(texts) < count:
        spec = random_spec(rng, "test", "one")
        other = Spec(((names[rng.integers(len(names))], spec.subjects[0][1]),), spec.background)
        if in_split(other, "test"):
            texts.setdefault(caption(other, rng, rare=0.0))
    return list(texts)


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that `--sampling-steps` sets; none without it."""
    steps = options.sampling_steps
    return {} if steps is None else {"num_inference_steps": steps}
