"""What the DPO-Diff benchmarks share: hard prompts, searches, and tables of what they found.

A search is judged by texts alone. Whatever found them, they are drawn anew (`gallery`) from the
noises that all searches share and from others that none saw.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gallery import HELD_OUT, REWARD, Asked, Gallery, Seen, Words
from grid import AT_ONCE, arguments

import tiller
from tiller.core.errors import InvalidInput, TillerNotice
from tiller.methods._catalog import make_method
from tiller.runs.record import read_run
from tiller.tasks.statistics import Estimated, estimated

HARD = Path(__file__).with_name("hard.json")
SAMPLER = ("num_inference_steps", "guidance_scale", "scheduler")
BATCH = {"cpu": 32, "cuda": 1024}  # pictures at once
EQUAL = 1e-6  # two scores that differ by less are the same words' up to rounding


@dataclass(frozen=True)
class Outcome:
    """What one method made of one prompt: the pictures of its words.

    Attributes:
        prompt, seed: the user's prompt, and the run's seed.
        words: what was found.
        own: the pictures from the noises that the search used.
        unseen: those from noises that it did not see; none where words were not changed.
        calls: forwards plus backwards that finding it took.
        seconds: of the search.
        similarity: of the found prompt with the user's, where it was limited.
        folder: of the run.
    """

    prompt: str
    seed: int
    words: Words
    own: list[Seen]
    unseen: list[Seen]
    calls: int = 0
    seconds: float = 0.0
    similarity: float | None = None
    folder: str = ""


class Lab:
    """One script's prompts, model and gallery, made from its options."""

    def __init__(self, options: argparse.Namespace, method: str) -> None:
        self.options = options
        self.settings = dict(part.split("=", 1) for part in options.set or ())
        self.model = tiller.load_model(options.model)
        _, plain = make_method(method, self.settings)
        self.noises = {} if plain.repeats == options.noises else {"noises": options.noises}
        _, chosen = make_method(method, {**self.settings, **self.noises})
        self.batch = options.batch or BATCH[self.model.device.type]
        self.gallery = Gallery(self.model, chosen, options.out, batch=self.batch)
        self.own = range(options.noises)
        self.unseen = range(options.noises, options.noises + options.unseen)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """Every prompt with every seed."""
        seeds = range(self.options.seeds)
        return [(prompt, seed) for prompt in self.prompts for seed in seeds]

    @property
    def prompts(self) -> list[str]:
        """The first of the hard prompts of this script's task."""
        prompts = hard_prompts(self.options.hard, self.options.task)
        if len(prompts) < self.options.prompts:
            raise InvalidInput(
                f"expected {self.options.prompts} prompts for {self.options.task!r} in "
                f"{self.options.hard}, got {len(prompts)}; choose more with hard.py"
            )
        part, parts = self.options.part
        return prompts[: self.options.prompts][part - 1 :: parts]

    def runs(
        self, method: str, *, budget: str, reward: str = REWARD, **settings: Any
    ) -> list[tiller.Result]:
        """A run for each prompt and seed, some at once; finished ones are read back."""
        found: list[tiller.Result] = []
        at_once = self.options.at_once or AT_ONCE[self.model.device.type]
        each = max(1, at_once // self.options.seeds)
        for first in range(0, len(self.prompts), each):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TillerNotice)  # in the journal
                found += tiller.steer_many(
                    self.model,
                    self.prompts[first : first + each],
                    seeds=range(self.options.seeds),
                    method=method,
                    reward=reward,
                    held_out=[HELD_OUT],
                    budget=budget,
                    out=self.options.out,
                    noises=self.options.noises,
                    unseen=0,  # the gallery looks at them
                    **settings,
                )
            print(f"{method}: {len(found)} of {len(self.keys)} runs", file=sys.stderr, flush=True)
        return found

    def searches(self, method: str, *, budget: str, **settings: Any) -> list[tiller.Result]:
        """The same for a search of words, with the fields of `--set`."""
        batch = {"batch": self.batch}
        return self.runs(method, budget=budget, **{**self.settings, **batch, **settings})

    def raw(self) -> list[Outcome]:
        """The user's own words."""
        words = [(prompt, "") for prompt, _ in self.keys]
        self.look_at(words)
        return [self.outcome(key, one) for key, one in zip(self.keys, words, strict=True)]

    def look_at(self, words: Sequence[Words]) -> None:
        """Draw the pictures of one text for each prompt and seed, in large batches."""
        noises = [*self.own, *self.unseen]
        pairs = zip(self.keys, words, strict=True)
        asked = [Asked(key[0], one, key[1], index) for key, one in pairs for index in noises]
        self.gallery.look(asked)

    def outcome(self, key: tuple[str, int], words: Words, **more: Any) -> Outcome:
        """The pictures of some words for a prompt and seed."""
        prompt, seed = key
        own = self.gallery.of(prompt, words, self.own, seed)
        unseen = self.gallery.of(prompt, words, self.unseen, seed)
        return Outcome(prompt, seed, words, own, unseen, **more)

    def outcomes(self, results: Sequence[tiller.Result]) -> list[Outcome]:
        """The pictures of what runs have found."""
        words = [(result.best_prompt, result.best_negative_prompt) for result in results]
        self.look_at(words)
        return [
            self.outcome(
                key,
                found,
                calls=result.cost.model_calls,
                seconds=result.cost.seconds,
                similarity=_similarity(result),
                folder=str(result.run_dir),
            )
            for key, found, result in zip(self.keys, words, results, strict=True)
        ]


def options_of(about: str, script: str, task: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options of a script that searches words for the hard prompts of a task."""
    own = {"prompts": 60, "seeds": 1, "images": 48, **defaults}
    parser = arguments(about, script, prompts=own["prompts"], seeds=own["seeds"])
    parser.add_argument("--images", type=int, default=own["images"], help="budget of one search")
    parser.add_argument("--noises", type=int, default=3, help="that each prompt is drawn from")
    parser.add_argument("--unseen", type=int, default=8, help="noises that no search sees")
    parser.add_argument("--hard", type=Path, default=HARD, help="the chosen prompts")
    parser.add_argument("--batch", type=int, help="pictures drawn at once [32; on a GPU 1024]")
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="I/N", help="of the prompts, for processes"
    )
    parser.add_argument("--set", nargs="+", metavar="FIELD=VALUE", help="fields of the method")
    parser.set_defaults(task=task)
    return parser


def _part(text: str) -> tuple[int, int]:
    """The I-th of N parts, written I/N."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected I/N such as 1/3, got {text!r}")
    return int(part), int(parts)


def hard_prompts(path: Path, task: str) -> list[str]:
    """The prompts that `hard.py` has chosen for a task."""
    if not path.exists():
        raise InvalidInput(f"expected the chosen prompts in {path}, got no file; run hard.py first")
    return [one["prompt"] for one in json.loads(path.read_text(encoding="utf-8"))[task]]


def average(seen: Sequence[Seen], name: str) -> float:
    """The mean over pictures of a reward, or the share that the judge finds faithful."""
    return statistics.fmean(one.value(name) for one in seen)


def over_prompts(outcomes: Sequence[Outcome], values: Sequence[float]) -> Estimated:
    """The mean of one value a run; its interval is over prompts."""
    return estimated(values, groups=[one.prompt for one in outcomes])


def change(
    mine: Sequence[Outcome], others: Sequence[Outcome], which: str, name: str = REWARD
) -> Estimated:
    """By how much mine are better than others, run by run; `which` is "own" or "unseen"."""
    return over_prompts(mine, differences(mine, others, which, name))


def differences(
    mine: Sequence[Outcome], others: Sequence[Outcome], which: str, name: str = REWARD
) -> list[float]:
    """The same before the mean."""
    pairs = zip(mine, others, strict=True)
    return [average(getattr(a, which), name) - average(getattr(b, which), name) for a, b in pairs]


def summary(
    outcomes: Sequence[Outcome], raw: Sequence[Outcome], *, sign: int = 1, reward: str = REWARD
) -> dict[str, Estimated]:
    """A line of a table; `sign` is -1 where a lower reward is what is searched for."""

    def mean(value: Callable[[Outcome], float]) -> Estimated:
        return over_prompts(outcomes, [value(one) for one in outcomes])

    names = (reward, HELD_OUT, "faithful")
    row = {name: mean(lambda one, n=name: average(one.own, n)) for name in names}
    moved = [sign * one for one in differences(outcomes, raw, "own", reward)]
    row["change"] = change(outcomes, raw, "own", reward)
    row["right way"] = over_prompts(outcomes, [float(one > EQUAL) for one in moved])
    row["wrong way"] = over_prompts(outcomes, [float(one < -EQUAL) for one in moved])
    if all(one.unseen for one in outcomes):
        for name in names:
            row[f"unseen {name}"] = mean(lambda one, n=name: average(one.unseen, n))
            row[f"unseen change of {name}"] = change(outcomes, raw, "unseen", name)
    row["calls"] = mean(lambda one: one.calls)
    row["seconds"] = mean(lambda one: one.seconds)
    return row


def listing(
    outcomes: Sequence[Outcome], raw: Sequence[Outcome], reward: str = REWARD
) -> list[dict[str, Any]]:
    """What was found for each prompt, for reading."""
    own, unseen = (differences(outcomes, raw, which, reward) for which in ("own", "unseen"))
    return [
        {
            "prompt": one.prompt,
            "seed": one.seed,
            "words": list(one.words),
            "change": own[i],
            "unseen_change": unseen[i],
            "similarity": one.similarity,
            "run": one.folder,
        }
        for i, one in enumerate(outcomes)
    ]


def draw_examples(figure: Any, outcomes: Sequence[Outcome], count: int = 4) -> None:
    """The first prompts' pictures: above of the user's words, below of those that were found."""
    from PIL import Image

    shown = [one for one in outcomes if one.folder][:count]
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, one in zip(axes.T, shown, strict=True):
        said, avoided = one.words
        new = [said] if said != one.prompt or not avoided else []
        texts = (one.prompt, ", ".join([*new, *([f"not: {avoided}"] if avoided else [])]))
        for axis, name, text in zip(column, ("baseline", "best"), texts, strict=True):
            images = Path(one.folder) / "images"
            several = images / f"{name}-seeds.png"
            path = several if several.exists() else images / f"{name}.png"
            axis.imshow(Image.open(path))
            axis.set_title(textwrap.fill(text, 46), fontsize=6)
            axis.set_axis_off()


def _similarity(result: tiller.Result) -> float | None:
    words = result.best_prompt, result.best_negative_prompt
    for step in read_run(result.run_dir).steps:
        for one in step.get("candidates", ()):
            if (one["prompt"], one["negative_prompt"]) == words and "similarity" in one:
                return float(one["similarity"])
    return None
