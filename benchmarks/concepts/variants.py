"""Reconstruction against editability of every variant of textual inversion, at equal cost.

Figure 4 of Fei et al. 2023 and what its section 4.3 says of it: subspaces, their dimension, the
number of pseudo-words, the initialization, gradients beside it; and what a plain word does. Equal
are the searches; what choosing the start and looking at drawings took stands as `aside`.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from cells import VARIANTS, WORD, Cell, Cells, arguments

from tiller.tasks.statistics import Estimated, estimated

SHOWN = [WORD, *VARIANTS]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--variants", nargs="*", default=SHOWN, choices=SHOWN)
    options = parser.parse_args()
    grid = Cells(options).grid(options.variants)
    table = {name: row(cells) for name, cells in grid.items()}
    claims = {text: found for text, found in judged(grid).items() if found is not None}
    figure(options, table)
    if options.json:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "options": {k: str(v) for k, v in vars(options).items()},
        }
        plain = {n: {k: asdict(v) for k, v in cells.items()} for n, cells in table.items()}
        said = {text: asdict(found) for text, found in claims.items()}
        print(json.dumps({"about": about, "table": plain, "claims": said}, indent=1))
        return
    for name, cells in table.items():
        print(f"{name:<14}" + "  ".join(f"{key} {value}" for key, value in cells.items()))
    print("\ndifferences, concept by concept and seed by seed (above 0: the claim's way)")
    for text, found in claims.items():
        print(f"{found}  {text}")


def row(cells: Sequence[Cell]) -> dict[str, Estimated]:
    """What the table says of a variant; intervals are over concepts."""
    values: dict[str, Callable[[Cell], float | None]] = {
        "reconstruction": lambda c: c.reconstruction,
        "editability": lambda c: c.editability,
        "same_subject": lambda c: c.judge.get("same_subject"),
        "same_colour": lambda c: c.judge.get("same_colour"),
        "edits_right": lambda c: c.judge.get("edited"),
        "loss": lambda c: None if c.loss is None or not c.start_loss else c.loss / c.start_loss,
        "model_calls": lambda c: c.model_calls,
        "aside": lambda c: c.aside,
        "seconds": lambda c: c.seconds,
    }
    found = {}
    for name, value in values.items():
        known = [(v, c.concept) for c in cells if (v := value(c)) is not None]
        if known:
            found[name] = estimated([v for v, _ in known], groups=[g for _, g in known])
    return found


def difference(
    mine: Sequence[Cell], others: Sequence[Cell], value: Callable[[Cell], float]
) -> Estimated:
    """The mean of mine less theirs, of the same concept and seed, where both are there."""
    theirs = {(cell.concept, cell.seed): cell for cell in others}
    pairs = [(c, theirs[c.concept, c.seed]) for c in mine if (c.concept, c.seed) in theirs]
    gains = [value(a) - value(b) for a, b in pairs]
    return estimated(gains, groups=[cell.concept for cell, _ in pairs])


def judged(grid: dict[str, list[Cell]]) -> dict[str, Estimated | None]:
    """The paper's claims as differences; None where a variant was not asked for."""

    def more(a: str, b: str, what: str) -> Estimated | None:
        if a not in grid or b not in grid:
            return None
        return difference(grid[a], grid[b], lambda cell: float(getattr(cell, what)))

    return {
        "the default reconstructs better than the best plain word": more(
            "default", WORD, "reconstruction"
        ),
        "the default edits as the best plain word does": more("default", WORD, "editability"),
        "a phrase's three tokens reconstruct better than a word's one": more(
            "default", "pca", "reconstruction"
        ),
        "the default edits as the best plain word does, by the judge": more(
            "default", WORD, "edited"
        ),
        "pca reconstructs better than the best plain word": more("pca", WORD, "reconstruction"),
        "pca edits as the best plain word does": more("pca", WORD, "editability"),
        "the drawn loss reconstructs better than the denoising loss": more(
            "pca", "denoising", "reconstruction"
        ),
        "the same near the words": more("pca", "denoising, near", "reconstruction"),
        "pca reconstructs as ti with the drawn loss does": more(
            "pca", "ti, drawn", "reconstruction"
        ),
        "pca reconstructs as ti does": more("pca", "ti", "reconstruction"),
        "pca edits as ti does": more("pca", "ti", "editability"),
        "prior reconstructs as pca does": more("prior", "pca", "reconstruction"),
        "pca reconstructs better than a random projection": more("pca", "random", "reconstruction"),
        "pca reconstructs better than the full space": more("pca", "full", "reconstruction"),
        "one word edits better than two": more("pca", "2 tokens", "editability"),
        "one word edits better than three": more("pca", "default", "editability"),
        "one word edits better than two, by the judge": more("pca", "2 tokens", "edited"),
        "one word edits better than three, by the judge": more("pca", "default", "edited"),
        "one word reconstructs as two do": more("pca", "2 tokens", "reconstruction"),
        "more dimensions reconstruct better (128, 16)": more("d=128", "pca", "reconstruction"),
        "a middle dimension edits best (64, 16)": more("d=64", "pca", "editability"),
        "a middle dimension edits best (64, 128)": more("d=64", "d=128", "editability"),
        "the initialization reconstructs better": more("pca", "no init", "reconstruction"),
        "the best word is a better start than CLIP's mix": more(
            "pca", "clip init", "reconstruction"
        ),
    }


def figure(options: argparse.Namespace, table: dict[str, dict[str, Estimated]]) -> None:
    """Figure 4: a point a variant, with its intervals."""
    from matplotlib.figure import Figure

    options.figures.mkdir(parents=True, exist_ok=True)
    drawn = Figure(figsize=(8, 5), layout="constrained")
    axis = drawn.subplots()
    for i, (name, cells) in enumerate(table.items()):
        x, y = cells["reconstruction"], cells["editability"]
        spread: dict[str, Any] = {
            "xerr": [[x.value - x.low], [x.high - x.value]],
            "yerr": [[y.value - y.low], [y.high - y.value]],
        }
        look = {"fmt": "os"[i // 10], "color": f"C{i % 10}", "elinewidth": 0.5}
        axis.errorbar(x.value, y.value, label=name, **look, **spread)
    axis.set_xlabel("reconstruction (held-out CLIP)")
    axis.set_ylabel("editability (held-out CLIP)")
    drawn.legend(loc="outside right center", frameon=False)
    drawn.savefig(options.figures / "variants.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
