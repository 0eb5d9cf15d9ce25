"""Is a learned word nearer to the given pictures than plain words?

    python benchmarks/concepts/words.py [--seeds 0 1 2] [--images 16] [--rows FOLDER] [--json]

The plain words are the one that was chosen by eye and the twelve that the first CLIP finds nearest,
each with and without its article. Three of them are compared with, each chosen by the mean of all
seeds: the one whose drawings the first CLIP finds nearest, which is what one can choose by without
having learned anything, as the search does; the one whose drawings the held-out CLIP finds nearest,
which no one can choose without it; and its own among words alone, which have no article.
The held-out CLIP judges, in two ways: the paper's reconstruction, and drawings that are asked
for the ground of one given picture and compared with that (`placed` of `tiller concept evaluate`).
All phrases are drawn once on each ground; the first four of each choice are drawn in full.
`--rows` keeps a line of each phrase as it is measured, a file for each seed, and what is there is
not made again: several processes may do some seeds each before one asks for all.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import tiller
from concepts import CONCEPTS, Made, pictures
from tiller.concepts import templates
from tiller.concepts.initialize import NEAREST, similarities
from tiller.concepts.learn import learn_concept
from tiller.concepts.metrics import drawings, likeness, mean_likeness, on_grounds
from tiller.concepts.pictures import load_pictures
from tiller.concepts.vocabulary import words_of
from tiller.models import FrozenModel
from tiller.models.concepts import Concept
from tiller.rewards._tower import EMOJI, EMOJI_HELD_OUT, tower_for
from tiller.tasks.statistics import Estimated, estimated
from tiller.words.inflection import article

TOKEN = "<new>"  # no word of any model
UNSEEN = 1000  # seeds of the pictures that measure begin here; no search draws with them
FINALISTS = 4  # of each choice, phrases that are drawn in full
JUDGE = EMOJI_HELD_OUT
TOWERS = (EMOJI, JUDGE)
# By which CLIP, and whether a phrase may have an article.
CHOICES = {
    "the first CLIP's phrase": (EMOJI, True),
    "the held-out CLIP's phrase": (JUDGE, True),
    "the held-out CLIP's word": (JUDGE, False),
}
KEY = ("concept", "seed", "phrase", "images", "calls")
MEASURES = ("reconstruction", "placed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--concepts", type=int, default=len(CONCEPTS), help="how many, from 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=16, help="pictures of each phrase")
    parser.add_argument("--calls", type=int, default=12_000, help="forwards of a search")
    parser.add_argument("--out", type=Path, default=Path("runs/concepts"), help="of the searches")
    parser.add_argument("--rows", type=Path, default=Path("runs/concepts/grounds"))
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    model = tiller.load_model("emoji")
    lines = [
        line for made in CONCEPTS[: options.concepts] for line in all_lines(model, made, options)
    ]
    names = [made.name for made in CONCEPTS[: options.concepts]]
    table = {measure: {name: row(lines, name, measure) for name in names} for measure in MEASURES}
    gaps = {f"{m}, less {by}": gap(found, by) for m, found in table.items() for by in CHOICES}
    if options.json:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "options": {k: str(v) for k, v in vars(options).items()},
        }
        differences = {text: asdict(found) for text, found in gaps.items()}
        print(json.dumps({"about": about, "table": table, "differences": differences}, indent=1))
        return
    for measure, found in table.items():
        print(measure)
        for name, own in found.items():
            means = {k: sum(own[k]) / len(own[k]) for k in (*CHOICES, "learned")}
            print(f"  {name:<20}" + "  ".join(f"{k} {v:.3f}" for k, v in means.items()))
            print(f"  {'':<20}{own['phrases']}")
    for text, difference in gaps.items():
        print(f"learned, {text}: {difference}")


def gap(found: dict[str, dict[str, Any]], by: str) -> Estimated:
    """What was learned less the phrase that was chosen so, concept by concept and seed by seed."""
    pairs = [
        (learned - phrase, name)
        for name, own in found.items()
        for learned, phrase in zip(own["learned"], own[by], strict=True)
    ]
    return estimated([gain for gain, _ in pairs], groups=[name for _, name in pairs])


def all_lines(model: FrozenModel, made: Made, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Of one concept, what each seed draws in full: the learned word and the finalists."""
    seeds = [Measuring(model, made, seed, options) for seed in options.seeds]
    few = {p: mean_of([one.measured(p, 1)["placed"] for one in seeds]) for p in seeds[0].phrases()}
    finalists = [phrase for by in CHOICES for phrase in ranked(few, by)[:FINALISTS]]
    asked = dict.fromkeys([TOKEN, *finalists])
    return [one.measured(phrase, options.images) for one in seeds for phrase in asked]


def mean_of(seen: list[dict[str, float]]) -> dict[str, float]:
    """By each CLIP, the mean of what it says of several seeds."""
    return {tower: sum(one[tower] for one in seen) / len(seen) for tower in TOWERS}


def ranked(seen: dict[str, dict[str, float]], by: str) -> list[str]:
    """The phrases among which that choice is made, the nearest first."""
    tower, articles = CHOICES[by]
    allowed = [phrase for phrase in seen if articles or not has_article(phrase)]
    return sorted(allowed, key=lambda phrase: -seen[phrase][tower])


def has_article(phrase: str) -> bool:
    """Whether it is a word behind its article."""
    first, _, rest = phrase.partition(" ")
    return bool(rest) and first == article(rest)


def row(lines: list[dict[str, Any]], name: str, measure: str) -> dict[str, Any]:
    """By the held-out CLIP, seed by seed: what was learned, and the phrases that are chosen."""
    seeds: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        if line["concept"] == name:
            seeds.setdefault(line["phrase"], []).append(line[measure])
    learned = seeds.pop(TOKEN)
    means = {phrase: mean_of(seen) for phrase, seen in seeds.items()}
    chosen = {by: ranked(means, by)[0] for by in CHOICES}
    return {
        "learned": [seen[JUDGE] for seen in learned],
        **{by: [seen[JUDGE] for seen in seeds[phrase]] for by, phrase in chosen.items()},
        "phrases": list(chosen.values()),
    }


class Measuring:
    """One concept and seed: what is drawn of it, and the lines that are kept of that.

    Args:
        model: the bundled one.
        made: the concept.
        seed: of the search and of the noises.
        options: the script's.
    """

    def __init__(
        self, model: FrozenModel, made: Made, seed: int, options: argparse.Namespace
    ) -> None:
        self.model, self.made, self.seed, self.options = model, made, seed, options
        size = (model.defaults.height, model.defaults.width)
        self.given = load_pictures(pictures(made.name), size)
        self.file = options.rows / f"{seed}.jsonl"
        self.known = self._read()

    def phrases(self) -> list[str]:
        """The plain words, each as it is and with its article."""
        sentence = templates.training(self.made.subject, emoji=True)[0]
        given = self.given.tensor()
        words = words_of(self.model)
        _, near = similarities(tower_for(EMOJI, given), given, words, sentence, NEAREST)
        names = dict.fromkeys([self.made.word, *near])
        if self.made.subject == "style":  # it stands where a colour does: "a {} picture"
            return list(names)
        return [text for n in names for text in (n, f"{article(n)} {n}")]

    def key(self, phrase: str, images: int) -> str:
        """What a line is kept under: all that it depends on but for gfti's defaults.

        Where these change, the lines of what was learned have to be taken out of the file.
        """
        calls = self.options.calls if phrase == TOKEN else 0
        values = (self.made.name, self.seed, phrase, images, calls)
        return json.dumps(dict(zip(KEY, values, strict=True)))

    def measured(self, phrase: str, images: int) -> dict[str, Any]:
        """The line of a phrase: what each CLIP says of it; plain drawings beside several alone."""
        key = self.key(phrase, images)
        if key not in self.known:
            concept = self.learned() if phrase == TOKEN else phrase
            given, subject, first = self.given.tensor(), self.made.subject, UNSEEN * (self.seed + 1)
            seeds = range(first, first + images)
            towers = {name: tower_for(name, given) for name in TOWERS}
            placed = on_grounds(self.model, concept, given, subject, seeds)
            found = {"placed": {name: mean_likeness(t, placed) for name, t in towers.items()}}
            if images > 1:
                sentence = templates.training(subject, emoji=True)[0]
                (plain,) = drawings(self.model, concept, [sentence], seeds)
                whole = {name: likeness(tower, plain, given) for name, tower in towers.items()}
                found["reconstruction"] = whole
            self.known[key] = json.loads(key) | found
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write(json.dumps(self.known[key]) + "\n")
            print(f"{self.made.name}, {phrase!r}, {found}", file=sys.stderr, flush=True)
        return self.known[key]

    def _read(self) -> dict[str, dict[str, Any]]:
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        found = [json.loads(line) for line in lines]
        return {json.dumps({k: line[k] for k in KEY}): line for line in found}

    def learned(self) -> Concept:
        """What the search finds, by `gfti` with its defaults."""
        return learn_concept(
            self.model,
            self.given,
            TOKEN,
            subject=self.made.subject,
            budget=f"forwards={self.options.calls}",
            seed=self.seed,
            out=self.options.out,
            preview_every=0,
            patience=0,
        ).concept


if __name__ == "__main__":
    main()
