"""Choose hard prompts by thresholds, as the paper does: badly drawn ones to improve, well drawn
ones to attack.

    python benchmarks/dpo_diff/hard.py [--prompts 60] [--below -0.18] [--above -0.15] [--json]

Prompts of combinations that were not trained on, with two subjects, with rare words, or with both,
are looked at in a fixed order until enough are found for each task. A prompt's score is the mean of
spherical_clip over the pictures of the shared noises. Writes hard.json, which is part of the
repository; the other scripts read it. Cost: a picture takes .35 to .4 s of one core, a prompt three
pictures; 60 and 60 prompts take about 550 pictures, four minutes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from tiller.core.errors import InvalidInput
from tiller.models.bundled.captions import COLOURS, SUBJECTS, Kind, caption, random_spec
from tiller.tasks.statistics import estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from gallery import REWARD, Asked
from grid import report
from measured import Lab, average, options_of

# name -> subjects, and the chance that a word is one of its rarer ones
KINDS: dict[str, tuple[Kind, float]] = {
    "two subjects": ("two", 0.0),
    "rare words": ("one", 0.5),
    "two subjects, rare words": ("two", 0.5),
}
RARE = {word for _, words in SUBJECTS.values() for word in words}
RARE |= {word for words in COLOURS.values() for word in words}
TASKS = ("improve", "attack")


def pool(seed: int) -> Iterator[tuple[str, str]]:
    """Prompts of unseen combinations with their kind, all different, kind after kind."""
    rng = np.random.default_rng([seed, 4])
    known: set[str] = set()
    for name, (kind, rare) in cycle(KINDS.items()):
        spec = random_spec(rng, "test", kind)
        text = caption(spec, rng, rare=rare)
        while rare and RARE.isdisjoint(text.split()):
            text = caption(spec, rng, rare=rare)
        if text not in known:
            known.add(text)
            yield text, name


def chosen(lab: Lab, *, below: float, above: float) -> dict[str, list[dict[str, Any]]]:
    """The first prompts of the pool for each task, from no more than `--images` pictures."""
    options = lab.options
    found: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    prompts = pool(options.pool_seed)
    each = max(1, lab.batch // options.noises)
    for _ in range(max(1, options.images // (each * options.noises))):
        some = [next(prompts) for _ in range(each)]
        asked = [Asked(text, (text, ""), 0, index) for text, _ in some for index in lab.own]
        seen = lab.gallery.look(asked)
        for i, (text, kind) in enumerate(some):
            own = seen[i * options.noises : (i + 1) * options.noises]
            score = average(own, REWARD)
            faithful = average(own, "faithful")
            entry = {"prompt": text, "kind": kind, "score": score, "faithful": faithful}
            task = "improve" if score <= below else "attack" if score >= above else None
            if task and len(found[task]) < options.prompts:
                found[task].append(entry)
        if all(len(entries) >= options.prompts for entries in found.values()):
            return found
    counts = {task: len(entries) for task, entries in found.items()}
    raise InvalidInput(
        f"expected {options.prompts} prompts for each task in {options.images} pictures, got "
        f"{counts}; move a threshold, or allow more with --images"
    )


def main() -> None:
    parser = options_of(__doc__, __file__, "improve", images=2400)
    parser.add_argument("--below", type=float, default=-0.18, help="to improve: at most this")
    parser.add_argument("--above", type=float, default=-0.15, help="to attack: at least this")
    parser.add_argument("--pool-seed", type=int, default=0)
    options = parser.parse_args()
    if options.below >= options.above:
        raise InvalidInput(f"expected below < above, got {options.below=}, {options.above=}")
    lab = Lab(options, "dpo_diff")
    found = chosen(lab, below=options.below, above=options.above)
    about = {
        "reward": REWARD,
        "thresholds": {"improve": options.below, "attack": options.above},
        "noises": options.noises,
        "model": options.model,
        "fingerprint": lab.model.fingerprint(),
    }
    options.hard.write_text(written({"about": about, **found}), encoding="utf-8")
    table = {}
    for task, entries in found.items():
        row = {name: estimated([one[name] for one in entries]) for name in ("score", "faithful")}
        for kind in KINDS:
            row[kind] = estimated([float(one["kind"] == kind) for one in entries])
        table[task] = row
    report(
        options,
        table,
        f"{options.prompts} prompts for each task: to improve at most {options.below:g} on "
        f"{REWARD}, to attack at least {options.above:g}.",
    )


def written(tree: dict[str, Any]) -> str:
    """JSON with a line for each prompt."""
    parts = [f' "about": {json.dumps(tree["about"])}']
    for task in TASKS:
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in tree[task])
        parts.append(f' "{task}": [\n{lines}\n ]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
