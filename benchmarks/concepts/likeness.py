"""What the CLIPs find alike: a near word's drawings, and those that a person would choose.

    python benchmarks/concepts/likeness.py [--images 16] [--json]

Textual inversion can only be as like by eye as what measures it sees. For seven of the concepts the
bundled model can draw a thing of the right kind and about the right colour. Its likeness to the
given pictures, by both CLIPs, stands beside that of a word that the CLIPs find near.
"""

from __future__ import annotations

import argparse
import json

import torch

import tiller
from concepts import pictures
from tiller.concepts import templates
from tiller.concepts.drawing import sample, told_by
from tiller.concepts.pictures import load_pictures
from tiller.rewards._tower import EMOJI, EMOJI_HELD_OUT, tower_for
from tiller.tasks.statistics import estimated

# concept: a near word (where searches of `variants.py` begin), and what a person would draw
PAIRS = {
    "unicorn": ("pink", "a white horse"),
    "pineapple": ("honeybee", "a yellow cactus"),
    "robot": ("dog", "a gray truck"),
    "strawberry": ("rooster", "a red apple"),
    "teddy": ("crab", "a brown dog"),
    "dog in two colours": ("mauve", "a purple dog"),
    "fish in two colours": ("pippin", "a red fish"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--concepts", type=int, default=len(PAIRS), help="how many, from 1")
    parser.add_argument("--images", type=int, default=16, help="pictures of each phrase")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    model = tiller.load_model("emoji")
    size = (model.defaults.height, model.defaults.width)
    towers = {source: tower_for(source, torch.zeros(1)) for source in (EMOJI, EMOJI_HELD_OUT)}
    plainest = templates.training("object", emoji=True)[0]

    @torch.no_grad()
    def likeness(concept: str, phrase: str) -> dict[str, float]:
        """The mean cosine of its drawings with the given pictures, by each CLIP."""
        told = told_by(model, [templates.filled(plainest, phrase)])
        drawn = sample(model, told, range(options.images), at_once=options.images)
        given = load_pictures(pictures(concept), size).tensor()
        return {
            name: float((tower.embed_images(drawn) @ tower.embed_images(given).T).mean())
            for name, tower in towers.items()
        }

    names = list(PAIRS)[: options.concepts]
    found = {n: {phrase: likeness(n, phrase) for phrase in PAIRS[n]} for n in names}
    pairs = [(found[n][word], found[n][chosen]) for n in names for word, chosen in [PAIRS[n]]]
    gaps = {t: estimated([chosen[t] - word[t] for word, chosen in pairs]) for t in towers}
    if options.json:
        said = {tower: vars(gap) for tower, gap in gaps.items()}
        print(json.dumps({"likeness": found, "by eye less the word": said}, indent=1))
        return
    for name, phrases in found.items():
        for phrase, seen in phrases.items():
            print(f"{name:<20}{phrase:<18}" + "  ".join(f"{k} {v:.3f}" for k, v in seen.items()))
    for tower, gap in gaps.items():
        print(f"{tower}: what a person would choose, less the word: {gap}")


if __name__ == "__main__":
    main()
