"""k, b and gamma of the probability regulariser (figure 16).

    python benchmarks/dno/ablation.py [--prompts 8] [--seeds 4] [--steps 20] [--lr 0.05]
        [--rows k=1 ...] [--json]

One of the three is changed at a time from k = 2, b = 100, gamma = 1, on "a black <animal>" with the
reward brightness, at the rate where `ood.py` finds that the regulariser matters. k = 100 costs the
most: `--rows` lets a process of its own have it, and one more process prints the whole table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiller
from tiller.tasks.statistics import Estimated, estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, arguments, course, grid, mean, report, save, summary, verdict
from ode_sde import gained
from ood import ANIMALS, HELD_OUT

PAPER = "k=2, b=100, gamma=1"
CHANGES: dict[str, dict[str, Any]] = {
    PAPER: {},
    **{f"k={k}": {"k": k} for k in (1, 4, 100)},
    **{f"b={b}": {"b": b} for b in (1, 10)},
    **{f"gamma={gamma:g}": {"gamma": gamma} for gamma in (0.0, 0.1, 10.0)},
}

CLAIMS = {  # what the paper says of an arm beside k = 2, b = 100, gamma = 1
    "k=1": "k = 1 keeps the held-out score less well",
    "k=100": "k = 100 keeps it less well",
    "b=1": "one order is not enough",
    "gamma=0": "gamma keeps it",
}

PANELS: dict[str, Any] = {
    "reward": lambda line: line["best_reward"],
    "CLIP (held out)": lambda line: line["scores"]["clip"],
    "P(z)": lambda line: line["probability"],
}


def kept_less(mine: list[Row], paper: list[Row]) -> Estimated:
    """How much lower the held-out CLIP ended than with the paper's three numbers, run by run."""
    pairs = zip(mine, paper, strict=True)
    lost = [other.scores["clip"] - row.scores["clip"] for row, other in pairs]
    return estimated(lost, groups=[row.prompt for row in paper])


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=8, seeds=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--rows", nargs="+", choices=CHANGES, help="only these", metavar="ROW")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    prompts = [f"a black {animal}" for animal in ANIMALS[: options.prompts]]
    rows = {
        name: grid(
            model,
            prompts,
            options.seeds,
            options.out,
            at_once=options.at_once,
            method="dno",
            reward="brightness",
            held_out=HELD_OUT,
            budget=f"steps={options.steps}",
            **{"lr": options.lr, "gamma": 1.0, **CHANGES[name]},
        )
        for name in options.rows or CHANGES
    }
    table: dict[str, Any] = {}
    for name, found in rows.items():
        table[name] = {"gain": mean(found, gained), **summary(found, ["brightness", *HELD_OUT])}
        del table[name]["seconds"]  # shared with the runs beside it
        if PAPER in rows and name != PAPER:
            table[name]["clip, the paper's less this"] = kept_less(found, rows[PAPER])

    def draw(figure: Any) -> None:
        axes = figure.subplots(3, 3, sharex=True)
        for line, letter in zip(axes, ("k", "b", "gamma"), strict=True):
            for name, found in rows.items():
                if not (name == PAPER or name.startswith(f"{letter}=")):
                    continue
                own = PAPER.split(", ")[("k", "b", "gamma").index(letter)]
                for axis, value in zip(line, PANELS.values(), strict=True):
                    axis.plot(course(found, value), label=own if name == PAPER else name)
            if line[0].lines:  # --rows may leave a letter out
                line[0].legend(fontsize=7)
        for axis, title in zip(axes[0], PANELS, strict=True):
            axis.set_title(title)
        for axis in axes[-1]:
            axis.set_xlabel("gradient steps")

    save(options, "ablation", draw, figsize=(9, 7))
    column = "clip, the paper's less this"
    gaps = {name: row[column] for name, row in table.items() if column in row}
    said = [
        f"That {CLAIMS[name]} {verdict(gaps[name])}: {gaps[name]}."
        for name in CLAIMS
        if name in gaps
    ]
    report(options, table, " ".join(said) or f"The claims are about {PAPER} and another row.")


if __name__ == "__main__":
    main()
