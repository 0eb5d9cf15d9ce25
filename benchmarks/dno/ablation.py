"""k, b and gamma of the probability regulariser (figure 16).

    python benchmarks/dno/ablation.py [--prompts 8] [--seeds 4] [--steps 50] [--rows k=1 ...]
        [--json]

One of the three is changed at a time from k = 2, b = 100, gamma = 1, on "a black <animal>" with the
reward brightness. With the defaults, gamma = 0 and gamma = 1 are runs of `ood.py`, and are taken
from the same `--out`. k = 100 costs the most: `--rows` lets a process of its own have it, and one
more process prints the whole table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiller

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, grid, report, summary
from ood import ANIMALS, HELD_OUT

CHANGES: dict[str, dict[str, Any]] = {
    "k=2, b=100, gamma=1": {},
    **{f"k={k}": {"k": k} for k in (1, 4, 100)},
    **{f"b={b}": {"b": b} for b in (1, 10)},
    **{f"gamma={gamma:g}": {"gamma": gamma} for gamma in (0.0, 0.1, 10.0)},
}


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=8, seeds=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", nargs="+", choices=CHANGES, help="only these", metavar="ROW")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    prompts = [f"a black {animal}" for animal in ANIMALS[: options.prompts]]
    table = {
        name: summary(
            grid(
                model,
                prompts,
                options.seeds,
                options.out,
                method="dno",
                reward="brightness",
                at_once=options.at_once,
                held_out=HELD_OUT,
                budget=f"steps={options.steps}",
                **{"lr": 0.01, "gamma": 1.0, **change},
            ),
            ["brightness", *HELD_OUT],
        )
        for name, change in CHANGES.items()
        if not options.rows or name in options.rows
    }
    safest = max(table, key=lambda name: table[name]["P(z)"].value)
    report(options, table, f"P(z) stays highest with {safest}.")


if __name__ == "__main__":
    main()
