"""Affixes that are longer than the prompt drown it (figure 8).

    python benchmarks/ipgo/drowning.py [--prompts 8] [--seeds 1] [--steps 50] [--json]

Prompts of a noun and its article (the bundled model draws anything of a bare word), the reward
preference: 30 + 30 tokens as in the figure, 10 + 10, and shrunk to the prompt as tiller does by
default; each with the tokens by themselves and on the padding. What the picture still says of the
prompt is the held-out CLIP and the judge's verdict, by the step.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import tiller
from tiller.core.errors import TillerNotice
from tiller.models.bundled.captions import SUBJECT_NAMES
from tiller.words.inflection import article

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, course, grid, report, save, summary
from material import fields, sampling

LONG = {"prefix": 30, "suffix": 30, "shrink": None}
ARMS: dict[str, dict[str, Any]] = {
    "30 + 30, by themselves": {**LONG, "anchor": "none"},
    "10 + 10, by themselves": {"shrink": None, "anchor": "none"},
    "shrunk, by themselves": {"anchor": "none"},
    "30 + 30, on the padding": LONG,
    "10 + 10, on the padding": {"shrink": None},
    "shrunk, on the padding": {},
}


def main() -> None:
    warnings.simplefilter("ignore", TillerNotice)
    parser = arguments(__doc__, __file__, prompts=8, seeds=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--set", nargs="+", default=[], help="fields of all arms, field=value")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    found = {
        name: grid(
            model,
            [f"{article(name)} {name}" for name in SUBJECT_NAMES[: options.prompts]],
            options.seeds,
            options.out,
            method="ipgo",
            reward="preference",
            held_out=["clip_heldout"],
            budget=f"steps={options.steps + 1}",
            at_once=options.at_once,
            **sampling(options),
            **fields(options),
            **ARMS[name],
        )
        for name in options.arms
    }
    if len(found) < len(ARMS):
        return  # another process prints the table
    table = {name: summary(rows, ["preference", "clip_heldout"]) for name, rows in found.items()}
    curves = {
        name: course(rows, lambda line: line["scores"]["clip_heldout"])
        for name, rows in found.items()
    }
    save(options, "drowning", lambda figure: _draw(figure, curves))
    names = ("30 + 30, by themselves", "shrunk, by themselves")
    long, shrunk = (table[name]["clip_heldout"] for name in names)
    held = "held" if long.high < shrunk.low else "is undecided"
    report(
        options,
        table,
        f"Affixes longer than the prompt drown it: {held} (held-out CLIP {long} with 30 + 30, "
        f"{shrunk} shrunk, tokens by themselves).",
        curves=curves,
    )


def _draw(figure: Any, curves: dict[str, list[float]]) -> None:
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(values, label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("held-out CLIP of the best so far")
    axis.legend(fontsize=8)


if __name__ == "__main__":
    main()
