"""The held-out loss by cost, with and without the initialization (figure 5 of Fei et al. 2023).

The paper: with it, 5,000 steps are as good as 10,000 without it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cells import Cell, Cells, arguments

from tiller.tasks.statistics import Estimated, estimated

# All of the drawn loss, so that their curves have one scale.
VARIANTS = {
    "pca": "gfti, from the best word",
    "clip init": "gfti, from CLIP's mix",
    "no init": "gfti, from any word",
    "ti, drawn": "gradients, from the best word",
}


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    grid = Cells(options).grid([*VARIANTS])
    curves = {VARIANTS[name]: course(cells) for name, cells in grid.items()}
    claim = halfway(grid["pca"], grid["no init"])
    options.figures.mkdir(parents=True, exist_ok=True)
    figure(options.figures / "convergence.svg", curves)
    found: dict[str, Any] = {
        "curves": curves,
        "claim": "half the cost with the initialization, less all of it without: loss",
        "difference": {"value": claim.value, "low": claim.low, "high": claim.high},
    }
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, points in curves.items():
        print(f"{name:<16}" + "  ".join(f"{calls}: {loss:.3f}" for calls, loss in points))
    print(f"\n{claim}  {found['claim']} (below 0: at least as good at half the cost)")


def course(cells: Sequence[Cell]) -> list[tuple[int, float]]:
    """The mean of the lowest loss so far, look by look."""
    curves = [cell.curve for cell in cells]
    looks = min(len(curve) for curve in curves)
    return [(curves[0][i][0], sum(c[i][1] for c in curves) / len(curves)) for i in range(looks)]


def halfway(with_it: Sequence[Cell], without: Sequence[Cell]) -> Estimated:
    """The loss at half the cost with the initialization, less the last one without it.

    Choosing the start is counted: the forwards aside that the other has not.
    """
    others = {(cell.concept, cell.seed): cell for cell in without}
    pairs = [(c, others[c.concept, c.seed]) for c in with_it if (c.concept, c.seed) in others]
    gains = []
    for cell, other in pairs:
        left = other.curve[-1][0] / 2 - max(0, cell.aside - other.aside)
        reached = [loss for calls, loss in cell.curve if calls <= left] or [cell.curve[0][1]]
        gains.append(reached[-1] - other.curve[-1][1])
    return estimated(gains, groups=[cell.concept for cell, _ in pairs])


def figure(path: Any, curves: dict[str, list[tuple[int, float]]]) -> None:
    """Figure 5, as numbers."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4), layout="constrained")
    axis = drawn.subplots()
    for name, points in curves.items():
        axis.plot([x for x, _ in points], [y for _, y in points], label=name)
    axis.set_xlabel("forwards + backwards of the search")
    axis.set_ylabel("held-out loss, 1 - cosine")
    axis.legend(frameon=False)
    drawn.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
