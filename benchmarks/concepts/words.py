"""Is a learned word nearer to the given pictures than plain words?

    python benchmarks/concepts/words.py [--seeds 0 1 2] [--images 16] [--rows FOLDER] [--json]

The plain words are the one that was chosen by eye and the twelve that the first CLIP finds nearest,
each with and without its article. Two of them are compared with: the one whose drawings the first
CLIP finds nearest, which is what one can choose by without having learned anything, as the search
does; and the one whose drawings the held-out CLIP finds nearest, which is the judge's own choice.
The judge is the held-out CLIP, in two ways: the paper's reconstruction, and drawings that are asked
for the ground of one given picture and compared with that (`placed` of `tiller concept evaluate`).
All phrases are drawn once on each ground; those that either CLIP has among its first four are drawn
in full. `--rows` keeps a line of each phrase as it is measured, a file for each seed, so that
several processes may do some seeds each; what is there is not made again.
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
FINALISTS = 4  # of each CLIP, phrases that are drawn in full
JUDGE = EMOJI_HELD_OUT
CHOSEN = {"the first CLIP's word": EMOJI, "the judge's word": JUDGE}
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
        line
        for seed in options.seeds
        for made in CONCEPTS[: options.concepts]
        for line in Measuring(model, made, seed, options).lines()
    ]
    names = [made.name for made in CONCEPTS[: options.concepts]]
    table = {measure: {name: row(lines, name, measure) for name in names} for measure in MEASURES}
    gaps = {f"{m}, less {by}": gap(found, by) for m, found in table.items() for by in CHOSEN}
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
            means = {k: sum(own[k]) / len(own[k]) for k in (*CHOSEN, "learned")}
            print(f"  {name:<20}" + "  ".join(f"{k} {v:.3f}" for k, v in means.items()))
            print(f"  {'':<20}{own['phrases']}")
    for text, difference in gaps.items():
        print(f"learned, {text}: {difference}")


def gap(found: dict[str, dict[str, Any]], by: str) -> Estimated:
    """What was learned less the word that was chosen so, concept by concept and seed by seed."""
    pairs = [
        (learned - word, name)
        for name, own in found.items()
        for learned, word in zip(own["learned"], own[by], strict=True)
    ]
    return estimated([gain for gain, _ in pairs], groups=[name for _, name in pairs])


def row(lines: list[dict[str, Any]], name: str, measure: str) -> dict[str, Any]:
    """By the judge, of each seed in turn: what was learned, and the two words that are chosen."""
    own = [line for line in lines if line["concept"] == name]
    found: dict[str, Any] = {"learned": [], **{by: [] for by in CHOSEN}, "phrases": []}
    for seed in dict.fromkeys(line["seed"] for line in own):
        seen = {line["phrase"]: line[measure] for line in own if line["seed"] == seed}
        found["learned"].append(seen.pop(TOKEN)[JUDGE])
        for by, tower in CHOSEN.items():
            best = max(seen, key=lambda phrase, tower=tower: seen[phrase][tower])
            found[by].append(seen[best][JUDGE])
            found["phrases"].append(best)
    return found


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

    def lines(self) -> list[dict[str, Any]]:
        """The lines of what was drawn in full: the learned word and the finalists."""
        few = {phrase: self.measured(phrase, 1)["placed"] for phrase in self.phrases()}
        finalists = [
            phrase
            for tower in CHOSEN.values()
            for phrase in sorted(few, key=lambda p, tower=tower: -few[p][tower])[:FINALISTS]
        ]
        asked = dict.fromkeys([TOKEN, *finalists])
        return [self.measured(phrase, self.options.images) for phrase in asked]

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
            towers = {name: tower_for(name, given) for name in CHOSEN.values()}
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
