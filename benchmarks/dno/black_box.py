"""Rewards without gradients: ZO-SGD, hybrid 1 and hybrid 2 at equal time (figure 8).

    python benchmarks/dno/black_box.py [--prompts 6] [--seeds 2] [--seconds 30] [--json]

jpeg (the size of the file, negative) and preference treated as a black box; q and mu are the
paper's, which cost about the same time a step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiller
from tiller.models.bundled.captions import prompts as evaluation_prompts
from tiller.rewards import make_reward

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, arguments, grid, report, save, summary

ESTIMATORS = {"ZO-SGD": "zeroth_order", "hybrid 1": "hybrid1", "hybrid 2": "hybrid2"}


class BlackBox:
    """A reward whose gradient is kept from the search: only its scores come back."""

    def __init__(self, name: str) -> None:
        self.reward = make_reward(name)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str]) -> list[float]:
        """The scores as plain numbers."""
        return [float(score) for score in self.reward(images, prompts)]


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=6, seeds=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    prompts = [prompt for prompt, _ in evaluation_prompts("test", options.prompts, seed=13)]
    table: dict[str, Any] = {}
    courses: dict[str, dict[str, list[Row]]] = {}
    for shown, reward in {"jpeg": "jpeg", "preference": BlackBox("preference")}.items():
        courses[shown] = {name: [] for name in ESTIMATORS}
        for prompt in prompts:  # one after another, so that a busy machine is busy for all alike
            for name, estimator in ESTIMATORS.items():
                courses[shown][name] += grid(
                    model,
                    [prompt],
                    options.seeds,
                    options.out,
                    at_once=1,  # equal time is each run's own
                    method="dno",
                    reward=reward,
                    held_out=["clip"],
                    budget=f"seconds={options.seconds:g}",
                    estimator=estimator,
                )
        for name, rows in courses[shown].items():
            key = next(k for k in rows[0].scores if k != "clip")
            table[f"{shown}: {name}"] = summary(rows, [key, "clip"])

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(courses))
        for axis, (title, found) in zip(axes, courses.items(), strict=True):
            for name, rows in found.items():
                for row in rows[: options.seeds]:
                    x = [line["cost"]["seconds"] for line in row.curve]
                    axis.plot(x, [line["best_reward"] for line in row.curve], label=name)
            axis.set_title(title)
            axis.set_xlabel("seconds")
        axes[0].legend()

    save(options, "black_box", draw, figsize=(8, 3))
    leads = {}
    for shown, found in courses.items():
        key = next(k for k in next(iter(found.values()))[0].scores if k != "clip")
        leads[shown] = max(found, key=lambda n: table[f"{shown}: {n}"][key].value)
    text = ", ".join(f"{name} on {shown}" for shown, name in leads.items())
    report(options, table, f"The paper finds hybrid 2 the fastest; here the highest: {text}.")


if __name__ == "__main__":
    main()
