"""What the picture benchmarks share: their options, a grid of runs, judged; a table; a figure.

Runs go through `tiller.steer_many`, so a script that was interrupted continues, and what is
finished is not computed again (give the same `--out`). The scripts stand in folders beside this
file, one for each method, and put this folder on Python's path.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import tiller
from tiller.models.bundled.judge import Judge
from tiller.models.bundled.loaders import load_judge
from tiller.runs.record import read_run
from tiller.tasks.statistics import Estimated, estimated, wins

AT_ONCE = {"cpu": 8, "cuda": 128}
"""Runs side by side: a GPU draws a hundred small pictures in the time of one."""


@dataclass(frozen=True)
class Row:
    """One run, as the tables need it.

    Attributes:
        prompt, seed: of the run.
        scores, baseline: every reward of the best and of the unsteered picture.
        faithful: the judge's verdict on the best picture.
        probability: P(z) of its noise.
        model_calls: forwards plus backwards.
        seconds: of the search.
        curve: a line of the journal for each round.
        folder: of the run.
    """

    prompt: str
    seed: int
    scores: dict[str, float]
    baseline: dict[str, float]
    faithful: bool
    baseline_faithful: bool
    probability: float
    model_calls: int
    seconds: float
    curve: list[dict[str, Any]]
    folder: str


def arguments(about: str, script: str, *, prompts: int, seeds: int) -> argparse.ArgumentParser:
    """The options that every script has; runs and figures go where the script's folder says."""
    home = Path(script).resolve().parent
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--seeds", type=int, default=seeds)
    out = Path("runs") / home.name
    parser.add_argument("--out", type=Path, default=out, help="folder of the runs")
    parser.add_argument("--figures", type=Path, default=home / "figures")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--at-once", type=int, help="runs side by side [8; on a GPU 128]")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def grid(
    model: Any,
    prompts: Sequence[str],
    seeds: int,
    out: Path,
    *,
    at_once: int | None = None,
    **settings: Any,
) -> list[Row]:
    """A run for each prompt and seed, some at once; `settings` as for `tiller.steer_many`."""
    judge = load_judge()
    rows = []
    each = max(1, (at_once or AT_ONCE[model.device.type]) // seeds)
    for first in range(0, len(prompts), each):
        part = list(prompts[first : first + each])
        results = tiller.steer_many(model, part, seeds=range(seeds), out=out, **settings)
        keys = [(prompt, seed) for prompt in part for seed in range(seeds)]
        rows += [_row(*key, result, judge) for key, result in zip(keys, results, strict=True)]
        print(f"{len(rows)} of {len(prompts) * seeds} runs", file=sys.stderr, flush=True)
    return rows


def _row(prompt: str, seed: int, result: tiller.Result, judge: Judge) -> Row:
    pictures = torch.cat([to_tensor(p.image) for p in (result.best, result.baseline)])
    best, before = judge.faithful(pictures, [prompt, prompt])
    return Row(
        prompt=prompt,
        seed=seed,
        scores=result.best.scores,
        baseline=result.baseline.scores,
        faithful=bool(best),
        baseline_faithful=bool(before),
        probability=result.probability,
        model_calls=result.cost.model_calls,
        seconds=result.cost.seconds,
        curve=list(read_run(result.run_dir).steps),
        folder=str(result.run_dir),
    )


def to_tensor(picture: Image.Image) -> Tensor:
    """[1, 3, H, W] in [0, 1] of a PIL picture."""
    array = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
    return array.permute(2, 0, 1)[None].float() / 255


def mean(rows: Sequence[Row], value: Callable[[Row], float]) -> Estimated:
    """The mean over the runs; the interval is over prompts."""
    return estimated([float(value(row)) for row in rows], groups=[row.prompt for row in rows])


def against(mine: Sequence[Row], others: Sequence[Row], value: Callable[[Row], float]) -> Estimated:
    """How often mine is higher, prompt by prompt and seed by seed."""
    found = wins([value(row) for row in mine], [value(row) for row in others])
    return estimated(found, groups=[row.prompt for row in mine])


def summary(rows: Sequence[Row], rewards: Sequence[str]) -> dict[str, Estimated]:
    """What a table says of one method."""
    found = {name: mean(rows, lambda row, n=name: row.scores[n]) for name in rewards}
    found["faithful"] = mean(rows, lambda row: row.faithful)
    found["P(z)"] = mean(rows, lambda row: row.probability)
    found["model_calls"] = mean(rows, lambda row: row.model_calls)
    found["seconds"] = mean(rows, lambda row: row.seconds)
    return found


def course(rows: Sequence[Row], value: Callable[[dict[str, Any]], float]) -> list[float]:
    """The mean of a journal line's value, round by round; a run that is over keeps its last."""
    longest = max(len(row.curve) for row in rows)
    return [
        statistics.fmean(value(row.curve[min(i, len(row.curve) - 1)]) for row in rows)
        for i in range(longest)
    ]


def verdict(found: Estimated, above: float = 0.0) -> str:
    """Whether a claim that something is above a number held: what its interval says."""
    if found.low > above:
        return "held"
    return "did not hold" if found.high < above else "is undecided"


def report(options: argparse.Namespace, table: dict[str, Any], claim: str, **more: Any) -> None:
    """Print the table and whether the paper's claim held, or all of it as one JSON object."""
    if options.json:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "options": {k: str(v) for k, v in vars(options).items()},
            "claim": claim,
        }
        print(json.dumps({"about": about, "table": _plain(table), **_plain(more)}, indent=1))
        return
    for name, row in table.items():
        cells = "  ".join(f"{key} {value}" for key, value in row.items())
        print(f"{name}: {cells}")
    print(f"\n{claim}")


def machine() -> str:
    """Where the numbers come from, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _plain(value: Any) -> Any:
    if isinstance(value, Estimated):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def save(options: argparse.Namespace, name: str, draw: Callable[[Any], None], **size: Any) -> None:
    """Draw a figure into the folder of figures."""
    from matplotlib.figure import Figure

    options.figures.mkdir(parents=True, exist_ok=True)
    figure = Figure(layout="constrained", **size)
    draw(figure)
    figure.savefig(options.figures / f"{name}.svg", metadata={"Date": None})
