"""The held-out loss by cost, with and without the initialization (figure 5 of Fei et al. 2023).

The paper: with it, 5,000 steps are as good as 10,000 without it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cells import Cell, Cells, arguments

from tiller.tasks.statistics import Estimated, estimated

VARIANTS = {"pca": "gfti", "no init": "gfti, no init", "ti": "ti", "ti, no init": "ti, no init"}


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    grid = Cells(options).grid([*VARIANTS])
    curves = {VARIANTS[name]: course(cells) for name, cells in grid.items()}
    claim = halfway(grid["pca"], grid["no init"])
    options.figures.mkdir(parents=True, exist_ok=True)
    figure(options.figures / "convergence.svg", curves)
    found: dict[str, Any] = {
        "curves": curves,
        "claim": "half the steps with the initialization, less all of them without: loss",
        "difference": {"value": claim.value, "low": claim.low, "high": claim.high},
    }
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, points in curves.items():
        print(f"{name:<16}" + "  ".join(f"{calls}: {loss:.3f}" for calls, loss in points[::5]))
    print(f"\n{claim}  {found['claim']} (below 0: at least as good in half the steps)")


def course(cells: Sequence[Cell]) -> list[tuple[int, float]]:
    """The mean of (lowest loss so far / the loss of a plain start), look by look."""
    looks = min(len(cell.curve) for cell in cells)
    return [
        (
            cells[0].curve[i][0],
            sum(cell.curve[i][1] / _unit(cell) for cell in cells) / len(cells),
        )
        for i in range(looks)
    ]


def halfway(with_it: Sequence[Cell], without: Sequence[Cell]) -> Estimated:
    """The loss after half the looks with the initialization, less the last one without it."""
    gains = []
    for a, b in zip(with_it, without, strict=True):
        middle = a.curve[(len(a.curve) - 1) // 2 + 1 if len(a.curve) > 2 else -1][1]
        gains.append(middle - b.curve[-1][1])
    return estimated(gains, groups=[cell.concept for cell in with_it])


def _unit(cell: Cell) -> float:
    """The loss that a concept's curves are divided by, so that concepts can be averaged."""
    return cell.start_loss or cell.curve[0][1]


def figure(path: Any, curves: dict[str, list[tuple[int, float]]]) -> None:
    """Figure 5, as numbers."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4), layout="constrained")
    axis = drawn.subplots()
    for name, points in curves.items():
        axis.plot([x for x, _ in points], [y for _, y in points], label=name)
    axis.set_xlabel("forwards + backwards of the denoiser")
    axis.set_ylabel("held-out loss / the start's")
    axis.legend(frameon=False)
    drawn.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
