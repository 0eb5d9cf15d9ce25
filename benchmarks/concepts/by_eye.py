"""A row of pictures for each run of `tiller concept learn`: given, drawn at the start, learned.

tiller concept learn examples/strawberry/*.png --token "<berry>"
python benchmarks/concepts/by_eye.py RUN [RUN ...] [--out by_eye.png] [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from tiller.concepts.learn import open_concept
from tiller.runs.record import read_run

KINDS = ("input-*.png", "sample-0000-*.png", "final-*.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=Path("by_eye.png"), help="the picture")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    found = [about(run) for run in options.runs]
    draw(found, options.runs, options.out)
    if options.json:
        print(json.dumps({"runs": found, "picture": str(options.out)}, indent=1))
        return
    for line in found:
        print(f"from {line['start']}: the loss {line['losses'][0]:.3f} -> {line['losses'][1]:.3f}")
    print(options.out)


def about(run: Path) -> dict[str, Any]:
    """Where the run began, and the losses of the start and of what it learned."""
    found = open_concept(run)
    began = ", ".join(read_run(run).spec["init"]) or "any word"
    return {"run": run.name, "start": began, "losses": [found.start_loss, found.loss]}


def draw(found: list[dict[str, Any]], runs: list[Path], out: Path) -> None:
    """The rows, and above each column what it shows."""
    rows = [[sorted((run / "images").glob(kind)) for kind in KINDS] for run in runs]
    widths = [max(len(files) for files in column) for column in zip(*rows, strict=True)]
    figure = Figure(figsize=(sum(widths), 1.25 * len(rows)), layout="constrained")
    looks: dict[str, Any] = {"squeeze": False, "width_ratios": widths, "wspace": 0.05}
    parts = figure.subfigures(len(rows), len(KINDS), **looks)
    for line, row, run in zip(parts, rows, found, strict=True):
        start, end = run["losses"]
        titles = ("given", f"start: {run['start']}", f"learned: the loss {start:.3f} -> {end:.3f}")
        for part, files, width, title in zip(line, row, widths, titles, strict=True):
            part.suptitle(title, fontsize=8)
            axes = part.subplots(1, width, squeeze=False)[0]
            for i, axis in enumerate(axes):
                axis.set_axis_off()
                if i < len(files):
                    axis.imshow(Image.open(files[i]), interpolation="nearest")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main()
