"""Section 4 on the toys: ZO-SGD, Hybrid-1 and Hybrid-2 where the reward has no gradient.

    python benchmarks/dno/toy_estimators.py --out benchmarks/dno/figures

The paper compares them on pictures (figure 8); this is the same question where all of it can be
seen. q and mu are the paper's (16, 8, 4 and .01, .01, .02), Adam with lr .01. Two rewards, both
black boxes: that of figure 2 on the ring, defined everywhere, and one on the line that means
something on the line only: 1 + sin(2 pi x) within .01 of it, and 0 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from toy_model import SHAPES, Toy, load, off_line
from toy_problem import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    Ascent,
    Claim,
    Points,
    Reward,
    ascend,
    band,
    canvas,
    mean,
    options,
    report,
    sampler,
    title,
    waves,
)

from tiller.core.evaluation import Autograd, Estimator
from tiller.solvers.estimators import Hybrid1, Hybrid2, ZerothOrder
from tiller.solvers.gradient import Gradient

ESTIMATORS: dict[str, Estimator] = {
    "ZO-SGD": ZerothOrder(),
    "Hybrid-1": Hybrid1(),
    "Hybrid-2": Hybrid2(),
}
COLOURS = {"exact": INK, "ZO-SGD": ORANGE, "Hybrid-1": GREEN, "Hybrid-2": BLUE}


def along(points: Tensor) -> Tensor:
    """1 + sin(2 pi x): the reward that only the line has."""
    return 1 + (2 * math.pi * points[:, 0]).sin()


def along_on_line(points: Tensor) -> Tensor:
    """`along` within .01 of the line, 0 elsewhere."""
    return along(points) * (off_line(points) < 0.01)


def climbed(run: Ascent) -> Tensor:
    """The mean reward over the gradient steps less the first, [n]: how fast a candidate rose."""
    return run.reward[1:].mean(dim=0) - run.reward[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, draw and say whether the claims held."""
    chosen = options(__doc__, argv, candidates=64, steps=100)

    def compare(toy: Toy, exact: Reward, black_box: Reward) -> dict[str, Ascent]:
        path = sampler(toy, eta=1.0)
        known = Points(path, exact)
        unknown = Points(path, black_box, black_box=True)
        arms: dict[str, tuple[Points, Estimator]] = {"exact": (known, Autograd())}
        arms |= {name: (unknown, estimator) for name, estimator in ESTIMATORS.items()}
        return {
            name: ascend(
                path,
                objective,
                Gradient(lr=0.01, population=chosen.candidates, estimator=estimator),
                chosen.steps,
                keep=(0, chosen.steps),
                seed=chosen.seed,
            )
            for name, (objective, estimator) in arms.items()
        }

    toys = {shape: load(replace(chosen.training, shape=shape), chosen.work) for shape in SHAPES}
    runs = {
        "ring": compare(toys["ring"], waves, waves),
        "line": compare(toys["line"], along, along_on_line),
    }
    speed = {place: {n: mean(climbed(run)) for n, run in r.items()} for place, r in runs.items()}
    end = {place: {n: mean(run.reward[-1]) for n, run in r.items()} for place, r in runs.items()}

    def ahead(place: str, first: str, second: str) -> Any:
        return mean(climbed(runs[place][first]) - climbed(runs[place][second]))

    def told(place: str) -> str:
        return "; ".join(
            f"{name}: rose by {speed[place][name]} on average over the steps, "
            f"to {end[place][name]} in the end"
            for name in runs[place]
        )

    claims = [
        Claim(
            "section 4, figure 8",
            "Hybrid-2 is faster than both others",
            told("ring")
            + f"; Hybrid-2 less ZO-SGD {ahead('ring', 'Hybrid-2', 'ZO-SGD')}, less Hybrid-1 "
            f"{ahead('ring', 'Hybrid-2', 'Hybrid-1')}",
            ahead("ring", "Hybrid-2", "ZO-SGD").low > 0
            and ahead("ring", "Hybrid-2", "Hybrid-1").low > 0,
        ),
        Claim(
            "section 5.3",
            "ZO-SGD is the slowest",
            f"Hybrid-1 less ZO-SGD {ahead('ring', 'Hybrid-1', 'ZO-SGD')}, Hybrid-2 less ZO-SGD "
            f"{ahead('ring', 'Hybrid-2', 'ZO-SGD')} on the ring",
            ahead("ring", "Hybrid-1", "ZO-SGD").low > 0
            and ahead("ring", "Hybrid-2", "ZO-SGD").low > 0,
        ),
        Claim(
            "section 4",
            "where the reward is defined on the manifold only, Hybrid-2 is faster than Hybrid-1",
            told("line") + f"; Hybrid-2 less Hybrid-1 {ahead('line', 'Hybrid-2', 'Hybrid-1')}",
            ahead("line", "Hybrid-2", "Hybrid-1").low > 0 and speed["line"]["Hybrid-2"].low > 0,
        ),
    ]
    figure, axes = canvas(1, 2, 8.0, 2.9)
    names = {"ring": "ring, reward of figure 2", "line": "line, reward on the line only"}
    for axis, (place, by_name) in zip(axes, runs.items(), strict=True):
        for name, run in by_name.items():
            band(axis, run.reward, COLOURS[name], name)
        title(axis, names[place], "gradient steps", "reward")
    axes[1].legend(fontsize=8, frameon=False, loc="lower right")
    numbers = {
        "rise_over_the_steps": speed,
        "reward_after_the_last_step": end,
        "seconds": {p: {n: run.seconds for n, run in r.items()} for p, r in runs.items()},
    }
    report("toy_estimators", chosen, claims, numbers, {"toy_estimators.svg": figure})


if __name__ == "__main__":
    main()
