"""Reward hacking out of distribution, with and without PRNO (figures 5, 6 and 14).

    python benchmarks/dno/ood.py [--prompts 16] [--seeds 4] [--steps 50] [--lr 0.01]
        [--steps-without 50] [--lr-without 0.01] [--gamma 1] [--own-order] [--json]

Half of the prompts are "a black <animal>" with the reward brightness, half "a white <animal>" with
darkness: the reward is at odds with the prompt, and gives in where the noise leaves the model's
law. dno with gamma = 0 and gamma = 1 are compared at equal reward: both where they first reach the
lower of the two runs' final rewards. A larger rate takes both farther; without PRNO fewer steps
(`--steps-without`) then reach what is compared. `--own-order` adds the bounds of z's own order.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import tiller
from tiller.models.bundled.captions import SUBJECT_NAMES
from tiller.models.bundled.loaders import load_judge
from tiller.tasks.statistics import Estimated, estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, arguments, course, grid, report, save, to_tensor, verdict

ANIMALS = SUBJECT_NAMES[:21]
HELD_OUT = ["clip", "clip_heldout"]
CASES = {"black": "brightness", "white": "darkness"}
FREE, KEPT = "gamma=0", "with PRNO"


@dataclass(frozen=True)
class Reached:
    """A run where it first reaches a reward: the held-out scores, P(z) and the judge's verdict."""

    clip: float
    clip_heldout: float
    probability: float
    colour_right: bool
    faithful: bool
    round: int


def reached(row: Row, reward: float) -> Reached:
    """The first round whose best is worth at least `reward`, with the picture of that round."""
    lines = row.curve
    at = next(i for i, line in enumerate(lines) if line["best_reward"] >= reward - 1e-9)
    found = max(i for i, line in enumerate(lines[: at + 1]) if line["image"])
    picture = to_tensor(Image.open(Path(row.folder) / lines[found]["image"]))
    judge = load_judge()
    return Reached(
        clip=lines[found]["scores"]["clip"],
        clip_heldout=lines[found]["scores"]["clip_heldout"],
        probability=lines[found]["probability"],
        colour_right=judge.colours_right(picture, [row.prompt])[0],
        faithful=judge.faithful(picture, [row.prompt])[0],
        round=found + 1,
    )


def table_of(rows: dict[str, list[Row]]) -> dict[str, dict[str, Estimated]]:
    """Both settings at equal reward, and the differences run by run."""
    pairs = list(zip(rows[FREE], rows[KEPT], strict=True))
    equal = [min(row.curve[-1]["best_reward"] for row in pair) for pair in pairs]
    groups = [free.prompt for free, _ in pairs]
    at = {
        name: [reached(pair[i], reward) for pair, reward in zip(pairs, equal, strict=True)]
        for i, name in enumerate((FREE, KEPT))
    }
    fields = ("clip", "clip_heldout", "probability", "colour_right", "faithful", "round")

    def column(found: Sequence[Reached], field: str) -> list[float]:
        return [float(getattr(one, field)) for one in found]

    table = {
        name: {f: estimated(column(found, f), groups=groups) for f in fields}
        for name, found in at.items()
    }
    both = (at[KEPT], at[FREE])
    table["difference"] = {
        field: estimated(
            [a - b for a, b in zip(*(column(found, field) for found in both), strict=True)],
            groups=groups,
        )
        for field in fields
    }
    table["equal reward"] = {"reward": estimated(equal, groups=groups)}
    for name, found in rows.items():
        gained = [row.curve[-1]["best_reward"] - row.curve[0]["best_reward"] for row in found]
        table[f"{name}, at the end"] = {
            "gain": estimated(gained, groups=groups),
            "clip": estimated([row.scores["clip"] for row in found], groups=groups),
            "probability": estimated([row.probability for row in found], groups=groups),
        }
    return table


def arms(options: argparse.Namespace) -> dict[str, tuple[int, dict[str, Any]]]:
    """Steps and dno's settings without and with the regulariser."""
    free: dict[str, Any] = {"lr": options.lr_without or options.lr, "gamma": 0.0}
    kept = {"lr": options.lr, "gamma": options.gamma, "own_order": options.own_order}
    steps = options.steps_without or options.steps
    return {FREE: (steps, free), KEPT: (options.steps, kept)}


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=16, seeds=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--steps-without", type=int, help="gamma = 0's [as many]")
    parser.add_argument("--lr-without", type=float, help="gamma = 0's [the same]")
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--own-order", action="store_true")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    rows: dict[str, list[Row]] = {}
    for name, (steps, settings) in arms(options).items():
        rows[name] = []
        for i, (colour, reward) in enumerate(CASES.items()):
            count = (options.prompts + 1 - i) // 2
            prompts = [f"a {colour} {animal}" for animal in ANIMALS[:count]]
            rows[name] += grid(
                model,
                prompts,
                options.seeds,
                options.out,
                method="dno",
                reward=reward,
                held_out=HELD_OUT,
                budget=f"steps={steps}",
                **settings,
            )
    table = table_of(rows)
    gap = table["difference"]["clip"]
    claim = (
        f"The paper's claim that PRNO keeps the held-out score at equal reward {verdict(gap)}: "
        f"CLIP {gap} higher with gamma = {options.gamma:g}."
    )

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 3)
        panels = {
            "reward": lambda line: line["best_reward"],
            "CLIP (held out)": lambda line: line["scores"]["clip"],
            "P(z)": lambda line: line["probability"],
        }
        for axis, (title, value) in zip(axes, panels.items(), strict=True):
            for name, found in rows.items():
                axis.plot(course(found, value), label=name)
            axis.set_title(title)
            axis.set_xlabel("gradient steps")
        axes[0].legend()

    own = "_own_order" if options.own_order else ""
    save(options, f"ood_lr{options.lr:g}{own}", draw, figsize=(9, 2.8))
    rounds = statistics.fmean(len(row.curve) for found in rows.values() for row in found)
    report(options, table, claim, rounds=rounds)


if __name__ == "__main__":
    main()
