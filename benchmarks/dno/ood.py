"""Reward hacking out of distribution, with and without PRNO (figures 5, 6 and 14).

    python benchmarks/dno/ood.py [--prompts 16] [--seeds 4] [--steps 50] [--lr 0.01]
        [--steps-without 50] [--lr-without 0.01] [--gamma 1] [--own-order] [--json]

Half of the prompts are "a black <animal>" with the reward brightness, half "a white <animal>" with
darkness: the reward is at odds with the prompt, and gives in where the noise leaves the model's
law. dno with gamma = 0 and gamma = 1 are compared at equal reward: both where they pass the lower
of the two runs' final rewards, on the line between the rounds before and after. A larger rate takes
both farther; without PRNO fewer steps (`--steps-without`) then reach what is compared.
`--own-order` adds the bounds of z's own order.
A second figure has the pictures: unsteered, both at equal reward, and those without at the end.
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
from tiller.tasks.statistics import Estimated, estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, arguments, course, grid, report, save, verdict
from kept import Kept, kept

ANIMALS = SUBJECT_NAMES[:21]
HELD_OUT = ["clip", "clip_heldout"]
CASES = {"black": "brightness", "white": "darkness"}
FREE, KEPT = "gamma=0", "with PRNO"


@dataclass(frozen=True)
class Between:
    """Where a run passes a reward: between what it kept before (share 1 - part) and after (part).

    A round's step may go far past the reward; comparing what is there would count the rest of the
    step against the run.
    """

    before: Kept
    after: Kept
    part: float

    def __getitem__(self, field: str) -> float:
        """A score, P(z), verdict or number of steps, on the line between the two."""

        def of(one: Kept) -> float:
            return float(one.scores.get(field, getattr(one, field, 0.0)))

        return (1 - self.part) * of(self.before) + self.part * of(self.after)

    @property
    def picture(self) -> Path:
        """The nearer one's."""
        return (self.before if self.part < 0.5 else self.after).picture


def reached(row: Row, reward: float) -> Between:
    """Where the run's best was worth `reward`."""
    rises = [line["best_reward"] for line in row.curve]
    first = next(i for i, found in enumerate(rises) if found >= reward - 1e-9)
    after = kept(row, first + 1)
    if first == 0:
        return Between(after, after, 1.0)
    low, high = rises[first - 1], rises[first]
    part = (reward - low) / (high - low)
    return Between(kept(row, first), after, min(1.0, max(0.0, part)))


def equal_rewards(rows: dict[str, list[Row]]) -> list[float]:
    """The lower of each pair's two final rewards."""
    pairs = zip(rows[FREE], rows[KEPT], strict=True)
    return [min(row.curve[-1]["best_reward"] for row in pair) for pair in pairs]


def at_equal_reward(rows: dict[str, list[Row]]) -> dict[str, list[Between]]:
    """What each run of a pair kept where it first had the pair's lower final reward."""
    equal = equal_rewards(rows)
    return {
        name: [reached(row, reward) for row, reward in zip(rows[name], equal, strict=True)]
        for name in (FREE, KEPT)
    }


def table_of(
    rows: dict[str, list[Row]], at: dict[str, list[Between]]
) -> dict[str, dict[str, Estimated]]:
    """Both settings at equal reward, and the differences run by run."""
    groups = [row.prompt for row in rows[FREE]]
    fields = (*HELD_OUT, "probability", "colour_right", "faithful", "round")

    def column(found: Sequence[Between], field: str) -> list[float]:
        return [one[field] for one in found]

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
    table["equal reward"] = {"reward": estimated(equal_rewards(rows), groups=groups)}
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


def pictures(figure: Any, rows: dict[str, list[Row]], at: dict[str, list[Between]]) -> None:
    """The first seed of some prompts: unsteered, both at equal reward, and what was kept last."""
    first = {row.prompt: i for i, row in reversed(list(enumerate(rows[FREE])))}
    cases = [[i for prompt, i in first.items() if f" {colour} " in prompt] for colour in CASES]
    shown = sorted(i for case in cases for i in sorted(case)[:4])
    folders = [Path(rows[FREE][i].folder) / "images" for i in shown]
    lines = {"unsteered": [folder / "baseline.png" for folder in folders]}
    lines |= {name: [at[name][i].picture for i in shown] for name in at}
    lines[f"{FREE}, end"] = [folder / "best.png" for folder in folders]
    axes = figure.subplots(len(lines), len(shown), squeeze=False)
    for line, (name, files) in zip(axes, lines.items(), strict=True):
        for axis, file, i in zip(line, files, shown, strict=True):
            axis.imshow(Image.open(file), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if axis in axes[0]:
                axis.set_title(rows[FREE][i].prompt, fontsize=8)
        line[0].set_ylabel(name)


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
                at_once=options.at_once,
                method="dno",
                reward=reward,
                held_out=HELD_OUT,
                budget=f"steps={steps}",
                **settings,
            )
    at = at_equal_reward(rows)
    table = table_of(rows, at)
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

    name = f"ood_lr{options.lr:g}{'_own_order' if options.own_order else ''}"
    save(options, name, draw, figsize=(9, 2.8))
    save(options, f"{name}_pictures", lambda figure: pictures(figure, rows, at), figsize=(9, 4.5))
    rounds = statistics.fmean(len(row.curve) for found in rows.values() for row in found)
    report(options, table, claim, rounds=rounds)


if __name__ == "__main__":
    main()
