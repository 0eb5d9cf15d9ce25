"""Is a learned word nearer than any plain word, once the ground is asked for?

    python benchmarks/concepts/grounds.py [--seeds 0 1 2] [--images 16] [--rows FOLDER] [--json]

The paper's reconstruction compares whole pictures, so a word that draws grounds like the given ones
is near whatever else it draws, and the nearest words are names of colours. Here each drawing is
asked for the ground of one given picture, and compared with that (`placed` of
`tiller concept evaluate`). The plain words are the one that was chosen by eye and the twelve that
the first CLIP finds nearest, each with and without its article: all of them in one drawing of each
ground, the best six in as many as the learned word, and the best of these by the held-out CLIP,
which also judges. `--rows` keeps a line of each phrase as it is measured, a file for each seed, so
that several processes may do some seeds each; what is there is not made again.
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
from tiller.concepts.metrics import mean_likeness, on_grounds
from tiller.concepts.pictures import load_pictures
from tiller.concepts.vocabulary import words_of
from tiller.models import FrozenModel
from tiller.models.concepts import Concept
from tiller.rewards._tower import EMOJI, EMOJI_HELD_OUT, tower_for
from tiller.tasks.statistics import estimated

TOKEN = "<new>"  # no word of any model
UNSEEN = 1000  # seeds of the pictures that measure begin here; no search draws with them
FINALISTS = 6  # phrases that are drawn in full


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
    table = {made.name: row(lines, made.name) for made in CONCEPTS[: options.concepts]}
    pairs = [
        (learned - word, name)
        for name, found in table.items()
        for learned, word in zip(found["learned"], found["word"], strict=True)
    ]
    gap = estimated([gain for gain, _ in pairs], groups=[name for _, name in pairs])
    if options.json:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "options": {k: str(v) for k, v in vars(options).items()},
        }
        said = {"about": about, "table": table, "learned less the best word": asdict(gap)}
        print(json.dumps(said, indent=1))
        return
    for name, found in table.items():
        means = {k: sum(found[k]) / len(found[k]) for k in ("word", "learned")}
        print(f"{name:<20}" + "  ".join(f"{k} {v:.3f}" for k, v in means.items()), found["phrases"])
    print(f"the learned word is nearer than the best plain word by {gap}")


def row(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """A concept's best phrase of each seed beside what was learned, in the seeds' order."""
    own = [line for line in lines if line["concept"] == name]
    found: dict[str, Any] = {"word": [], "learned": [], "phrases": []}
    for seed in dict.fromkeys(line["seed"] for line in own):
        full = {line["phrase"]: line["placed"] for line in own if line["seed"] == seed}
        found["learned"].append(full.pop(TOKEN))
        best = max(full, key=lambda phrase: full[phrase])
        found["word"].append(full[best])
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
        images = self.options.images
        few = {phrase: self.placed(phrase, 1) for phrase in self.phrases()}
        finalists = sorted(few, key=lambda phrase: -few[phrase])[:FINALISTS]
        for phrase in (TOKEN, *finalists):
            self.placed(phrase, images)
        asked = {self.key(phrase, images) for phrase in (TOKEN, *finalists)}
        return [line for key, line in self.known.items() if key in asked]

    def phrases(self) -> list[str]:
        """The plain words, each as it is and with its article."""
        sentence = templates.training(self.made.subject, emoji=True)[0]
        given = self.given.tensor()
        words = words_of(self.model)
        _, near = similarities(tower_for(EMOJI, given), given, words, sentence, NEAREST)
        names = dict.fromkeys([self.made.word, *near])
        if self.made.subject == "style":  # it stands where a colour does: "a {} picture"
            return list(names)
        return [text for n in names for text in (n, f"{'an' if n[0] in 'aeiou' else 'a'} {n}")]

    def key(self, phrase: str, images: int) -> str:
        """What a line is kept under: all that it depends on."""
        own = {"concept": self.made.name, "seed": self.seed, "phrase": phrase, "images": images}
        return json.dumps(own | {"calls": self.options.calls if phrase == TOKEN else 0})

    def _read(self) -> dict[str, dict[str, Any]]:
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        found = [json.loads(line) for line in lines]
        return {json.dumps({k: v for k, v in one.items() if k != "placed"}): one for one in found}

    def placed(self, phrase: str, images: int) -> float:
        """The mean cosine of its drawings on the given pictures' grounds with these pictures."""
        key = self.key(phrase, images)
        if key not in self.known:
            concept = self.learned() if phrase == TOKEN else phrase
            given, first = self.given.tensor(), UNSEEN * (self.seed + 1)
            seeds = range(first, first + images)
            drawn = on_grounds(self.model, concept, given, self.made.subject, seeds)
            found = mean_likeness(tower_for(EMOJI_HELD_OUT, given), drawn)
            self.known[key] = {**json.loads(key), "placed": found}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write(json.dumps(self.known[key]) + "\n")
            seen = f"{self.made.name}, seed {self.seed}: {phrase!r}, {images} images: {found:.3f}"
            print(seen, file=sys.stderr, flush=True)
        return float(self.known[key]["placed"])

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
