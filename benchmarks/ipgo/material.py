"""What the IPGO benchmarks share: prompts in four groups, halves of the subjects, rewards, cells.

A cell is a training that a script needs, measured: a file of JSON in the folder of `--out`. One
that is there is not computed again, so some processes may do some cells each, and another prints
the table. (Runs of `grid` are found again by themselves.)
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiller.models.bundled.captions import (
    SUBJECT_NAMES,
    Spec,
    Split,
    caption,
    in_split,
    random_spec,
)

GROUPS = ("plain", "background", "two", "rare")
REWARDS: dict[str, tuple[list[str], list[str]]] = {
    "clip": (["clip"], ["clip_heldout", "preference"]),
    "preference": (["preference"], ["clip_heldout", "clip"]),
    "mix": (["clip:1", "preference:0.1"], ["clip_heldout"]),
}
"""What is raised and what is watched; 0.1 brings preference to the spread of clip."""


def grouped(count: int, seed: int = 11, split: Split = "test") -> dict[str, list[str]]:
    """`count` prompts in each group: one subject, one on a background, two, and one in words that
    the model has rarely read; outside the training scenes, which are for choosing settings."""
    rng = np.random.default_rng([seed, 5])
    found: dict[str, list[str]] = {}
    for group in GROUPS:
        texts: dict[str, None] = {}
        while len(texts) < count:
            spec = random_spec(rng, split, "two" if group == "two" else "one")
            if group in ("plain", "rare"):
                spec = dataclasses.replace(spec, background=None)
            texts.setdefault(caption(spec, rng, rare=1.0 if group == "rare" else 0.0))
        found[group] = list(texts)
    return found


def mixed(count: int, seed: int = 11, split: Split = "test") -> list[str]:
    """`count` prompts, the groups in turn."""
    groups = grouped(-(-count // len(GROUPS)), seed, split).values()
    return [text for texts in zip(*groups, strict=True) for text in texts][:count]


def halves(count: int, seed: int = 11, split: Split = "test") -> tuple[list[str], list[str]]:
    """`count` prompts of one half of the subjects, and as many of the other half."""
    shuffled = np.random.default_rng([seed, 6]).permutation(len(SUBJECT_NAMES))
    names = [SUBJECT_NAMES[i] for i in shuffled]
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    return of_subjects(first, count, seed, split), of_subjects(second, count, seed + 1, split)


def of_subjects(names: Sequence[str], count: int, seed: int, split: Split) -> list[str]:
    """`count` prompts with one of these subjects each, of scenes of this split."""
    rng = np.random.default_rng([seed, 7])
    texts: dict[str, None] = {}
    while len(texts) < count:
        spec = random_spec(rng, split, "one")
        other = Spec(((names[rng.integers(len(names))], spec.subjects[0][1]),), spec.background)
        if in_split(other, split):
            texts.setdefault(caption(other, rng, rare=0.0))
    return list(texts)


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that `--sampling-steps` sets; none without it."""
    steps = options.sampling_steps
    return {} if steps is None else {"num_inference_steps": steps}


def fields(options: argparse.Namespace) -> dict[str, Any]:
    """The method's fields that `--set` gives as FIELD=VALUE."""
    return dict(pair.split("=", 1) for pair in options.set)


def cell(out: Path, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, plain data, from its file in `out` if it is there."""
    text = json.dumps(key, sort_keys=True)
    name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    file = out / f"cell-{name}.json"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        whole = file.with_suffix(f".{os.getpid()}")  # another process may make the same
        whole.write_text(json.dumps({"key": key, **make()}))
        whole.replace(file)
    found: dict[str, Any] = json.loads(file.read_text())
    return found
