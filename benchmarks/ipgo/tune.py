"""Which learning rate, on prompts of the training scenes; what it chooses is never judged on them.

    python benchmarks/ipgo/tune.py [--prompts 16] [--steps 50] [--reward preference]
        [--arms "" lr=0.003 lr=0.01 "lr=0.01 anchor=none"] [--json]

An arm is fields of ipgo, field=value with spaces between; the empty one has the defaults. Of each:
how often the reward rose, by how much, what that did to the held-out CLIP, and the judge's verdict.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import tiller
from tiller.core.errors import TillerNotice

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, course, grid, mean, report, save, summary
from material import mixed, sampling

ARMS = ["", "lr=0.003", "lr=0.01", "lr=0.03"]
SHOWN = ("gain", "raised", "held-out gain", "faithful", "seconds")  # as soon as an arm is done


def main() -> None:
    warnings.simplefilter("ignore", TillerNotice)
    parser = arguments(__doc__, __file__, prompts=16, seeds=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--reward", default="preference")
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    name = options.reward
    table: dict[str, Any] = {}
    curves: dict[str, list[float]] = {}
    for arm in options.arms:
        rows = grid(
            model,
            mixed(options.prompts, split="train"),
            options.seeds,
            options.out,
            at_once=options.at_once,
            method="ipgo",
            reward=name,
            held_out="clip_heldout",
            budget=f"steps={options.steps + 1}",
            **sampling(options),
            **dict(pair.split("=", 1) for pair in arm.split()),
        )
        key = arm or "defaults"
        table[key] = summary(rows, [name, "clip_heldout"])
        table[key]["raised"] = mean(rows, lambda r: r.scores[name] > r.baseline[name] + 1e-4)
        table[key]["gain"] = mean(rows, lambda r: r.scores[name] - r.baseline[name])
        table[key]["held-out gain"] = mean(
            rows, lambda r: r.scores["clip_heldout"] - r.baseline["clip_heldout"]
        )
        seen = "; ".join(f"{shown} {table[key][shown]}" for shown in SHOWN)
        print(f"{key}: {seen}", file=sys.stderr, flush=True)
        curves[key] = course(rows, lambda line: line["best_reward"])
    save(options, "tune", lambda figure: _draw(figure, curves))
    best = max(table, key=lambda arm: table[arm]["gain"].value)
    report(options, table, f"The largest gain has {best}.", curves=curves)


def _draw(figure: Any, curves: dict[str, list[float]]) -> None:
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(values, label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("reward of the best so far")
    axis.legend(fontsize=8)


if __name__ == "__main__":
    main()
