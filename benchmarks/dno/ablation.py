"""k, b and gamma of the probability regulariser (figure 16).

    python benchmarks/dno/ablation.py [--prompts 4] [--seeds 2] [--steps 30] [--json]

One of the three is changed at a time from k = 2, b = 100, gamma = 1, on "a black <animal>" with the
reward brightness.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiller

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, grid, report, summary
from ood import ANIMALS

CHANGES: dict[str, dict[str, Any]] = {
    "k=2, b=100, gamma=1": {},
    **{f"k={k}": {"k": k} for k in (1, 4, 100)},
    **{f"b={b}": {"b": b} for b in (1, 10)},
    **{f"gamma={gamma:g}": {"gamma": gamma} for gamma in (0.0, 0.1, 10.0)},
}


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=4, seeds=2)
    parser.add_argument("--steps", type=int, default=30)
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
                held_out=["clip"],
                budget=f"steps={options.steps}",
                **{"gamma": 1.0, **change},
            ),
            ["brightness", "clip"],
        )
        for name, change in CHANGES.items()
    }
    safest = max(table, key=lambda name: table[name]["P(z)"].value)
    report(options, table, f"P(z) stays highest with {safest}.")


if __name__ == "__main__":
    main()
