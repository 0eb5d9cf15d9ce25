"""Figure 3, left: the noise of the SDE sampler is optimized faster than that of the ODE sampler.

    python benchmarks/dno/toy_ode_sde.py --out benchmarks/dno/figures

DDIM in 50 steps on the ring, eta = 0 (2 numbers) against eta = 1 (100 numbers), Adam, the reward
of section 2.1. A step of Adam moves each number by up to lr, so at one lr the larger noise moves
sqrt(50) times as far. The paper compares at one lr; both samplers are therefore also given a grid
of rates, and each its best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from toy_model import load, off_ring
from toy_problem import (
    BLUE,
    ORANGE,
    Ascent,
    Claim,
    Mean,
    Points,
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

from tiller.solvers.gradient import Gradient

PAPER = 0.01  # Adam's lr in the paper's experiments
RATES = (0.003, PAPER, 0.03, 0.1, 0.3, 1.0)
ETAS = {"ODE": 0.0, "SDE": 1.0}
COLOURS = {"ODE": ORANGE, "SDE": BLUE}
OFF = 0.05  # a sample farther than this from the ring counts as off it
MOST_OFF = 0.2  # the reward grows without bound far off the ring: such rates are no comparison


def gap(first: Tensor, second: Tensor) -> Mean:
    """The mean of first [n] less second [n]; candidate i has the same x_T in both samplers."""
    return mean(first - second)


def area(run: Ascent) -> Tensor:
    """The mean reward over the gradient steps, [n]: one number for how fast a candidate rose."""
    return run.reward[1:].mean(dim=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, draw and say whether the claim held."""
    chosen = options(__doc__, argv, candidates=256, steps=100)
    toy = load(chosen.training, chosen.work)
    runs: dict[str, dict[float, Ascent]] = {}
    for name, eta in ETAS.items():
        path = sampler(toy, eta)
        runs[name] = {
            rate: ascend(
                path,
                Points(path, waves),
                Gradient(lr=rate, population=chosen.candidates),
                chosen.steps,
                keep=(0, chosen.steps),
                seed=chosen.seed,
            )
            for rate in RATES
        }
    off = {
        name: {
            rate: mean((off_ring(run.points[chosen.steps]) > OFF).float())
            for rate, run in r.items()
        }
        for name, r in runs.items()
    }

    def fastest(name: str) -> float:
        """The rate with the highest rewards of those that leave most samples on the ring."""
        fair = [rate for rate in RATES if off[name][rate].mean <= MOST_OFF] or [PAPER]
        return max(fair, key=lambda rate: float(area(runs[name][rate]).mean()))

    best = {name: fastest(name) for name in ETAS}
    marks = sorted({min(k, chosen.steps) for k in (10, 50, 100)})
    at_paper = {k: gap(runs["SDE"][PAPER].reward[k], runs["ODE"][PAPER].reward[k]) for k in marks}
    top = {name: runs[name][best[name]] for name in ETAS}
    at_best = {k: gap(top["SDE"].reward[k], top["ODE"].reward[k]) for k in marks}
    over_all = gap(area(top["SDE"]), area(top["ODE"]))
    claims = [
        Claim(
            "figure 3, left",
            "at the same lr (.01) the SDE's noise is optimized faster than the ODE's",
            "mean reward of the SDE less the ODE's: "
            + ", ".join(f"{value} after {k} steps" for k, value in at_paper.items()),
            all(value.low > 0 for value in at_paper.values()),
        ),
        Claim(
            "figure 3, left, ours",
            "the SDE is faster too when each sampler has its best lr",
            f"best lr by the mean over all steps, of those that leave at most {MOST_OFF:.0%} off "
            f"the ring: ODE {best['ODE']:g}, SDE {best['SDE']:g}; SDE "
            f"less ODE: {over_all} over all steps, "
            + ", ".join(f"{value} after {k}" for k, value in at_best.items())
            + f"; off the ring at the end: ODE {off['ODE'][best['ODE']]}, "
            f"SDE {off['SDE'][best['SDE']]}",
            over_all.low > 0,
        ),
    ]
    figure, axes = canvas(1, 2, 8.0, 2.9)
    for name in ETAS:
        band(axes[0], runs[name][PAPER].reward, COLOURS[name], name)
        band(axes[1], top[name].reward, COLOURS[name], f"{name}, lr {best[name]:g}")
    title(axes[0], f"both with lr {PAPER:g}, as in the paper", "gradient steps", "reward")
    title(axes[1], "each with its best lr", "gradient steps")
    axes[1].set_ylim(axes[0].get_ylim())
    for axis in axes:
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    numbers: dict[str, Any] = {
        "reward_after_the_last_step": {
            name: {rate: mean(run.reward[-1]) for rate, run in r.items()}
            for name, r in runs.items()
        },
        "reward_over_all_steps": {
            name: {rate: mean(area(run)) for rate, run in r.items()} for name, r in runs.items()
        },
        "off_the_ring": off,
        "best_lr": best,
        "sde_less_ode": {"lr_0.01": at_paper, "best_lr": at_best, "best_lr_over_all": over_all},
        "seconds": {name: sum(run.seconds for run in r.values()) for name, r in runs.items()},
    }
    report("toy_ode_sde", chosen, claims, numbers, {"toy_ode_sde.svg": figure})


if __name__ == "__main__":
    main()
