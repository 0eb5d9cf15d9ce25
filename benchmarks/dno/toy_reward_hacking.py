"""Figures 4a, 4b and 13a: a reward that pulls off the ring, P(z) that sees it, PRNO that holds it.

    python benchmarks/dno/toy_reward_hacking.py --out benchmarks/dno/figures

The reward is best at (1.4, 1.4), off the ring. 1000 steps of Adam (lr .01) on the noise of DDIM
with eta = 1, without and with the probability regulariser (gamma 1, k 2, b 100). The paper draws
the first two panels and their P(z); the regularised run and the comparison at equal reward, which
is what early stopping would give, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from toy_model import load, off_ring
from toy_problem import (
    BLUE,
    ORANGE,
    Ascent,
    Claim,
    Points,
    ascend,
    band,
    canvas,
    corner,
    dots,
    mean,
    options,
    plane,
    report,
    sampler,
    title,
)

from tiller.core.rng import keyed_generator
from tiller.solvers.gradient import Gradient
from tiller.spaces.probability import Prno, probability

OFF = 0.05  # a sample farther than this from the ring is out of distribution
EVERY = 20  # gradient steps between two looks at points and P(z)
GAMMA = 1.0  # of the paper's brightness experiments
ON_RING = -2 * (1.4 - 1.2 / 2**0.5) ** 2  # the best reward that the ring has


def separation(higher: Tensor, lower: Tensor) -> float:
    """The chance that one of higher [n] is above one of lower [m]: the area under the ROC curve."""
    difference = higher[:, None] - lower[None, :]
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def paper_probability(z: Tensor) -> Tensor:
    """P(z) [n] over random orders alone, as the paper defines it; ours tries z's own order too."""
    flat = z.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=keyed_generator(0, "shuffle"))
    return probability(flat[:, shuffle])


def stacked(run: Ascent) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """The steps looked at, and for each: P(z), being off the ring, and the reward, [looks, n]."""
    looks = sorted(run.noise)
    likely = torch.stack([probability(run.noise[k]) for k in looks])
    off = torch.stack([(off_ring(run.points[k]) > OFF).float() for k in looks])
    return looks, likely, off, run.reward[looks]


def drawn(runs: dict[float, Ascent], seen: dict[float, Any], last: int) -> Figure:
    """The unsteered and both steered samples coloured by P(z), and both runs' curves."""
    figure, axes = canvas(1, 5, 13.5, 2.8)
    panels = [(0.0, 0, "unsteered"), (0.0, last, f"{last} steps"), (GAMMA, last, f"{last} steps")]
    for axis, (gamma, k, name) in zip(axes, panels, strict=False):
        run = runs[gamma]
        plane(axis, corner)
        shown = dots(
            axis,
            run.points[k],
            c=probability(run.noise[k]).tolist(),
            cmap="plasma",
            vmin=0,
            vmax=0.8,
        )
        axis.plot([1.4], [1.4], "+", color="black", markersize=7)
        title(axis, name + (f", gamma {gamma:g}" if k else ""))
    bar = figure.colorbar(shown, ax=axes[2], fraction=0.046)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("P(z)", fontsize=8)
    for gamma, colour in ((0.0, ORANGE), (GAMMA, BLUE)):
        looks, likely, off, _ = seen[gamma]
        axes[3].plot(looks, off.mean(dim=1).tolist(), color=colour, label=f"gamma {gamma:g}")
        band(axes[4], likely, colour, f"gamma {gamma:g}", looks)
    title(axes[3], "share off the ring", "gradient steps")
    title(axes[4], "P(z), middle half shaded", "gradient steps")
    for axis in axes[3:]:
        axis.set_ylim(-0.03, 1.03)
        axis.legend(fontsize=7, frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, draw and say whether the claims held."""
    chosen = options(__doc__, argv, candidates=64, steps=1000)
    path = sampler(load(chosen.training, chosen.work), eta=1.0)
    last = chosen.steps
    looks = sorted({*range(0, last, EVERY), last})
    runs = {
        gamma: ascend(
            path,
            Points(path, corner, regularisers=(Prno(weight=gamma),) if gamma else ()),
            Gradient(lr=0.01, population=chosen.candidates),
            last,
            keep=looks,
            seed=chosen.seed,
        )
        for gamma in (0.0, GAMMA)
    }
    seen = {gamma: stacked(run) for gamma, run in runs.items()}
    _, likely, off, reward = seen[0.0]
    _, kept_likely, kept_off, kept_reward = seen[GAMMA]
    target = min(ON_RING, float(reward[-1].mean()), float(kept_reward[-1].mean()))
    first, kept_first = (
        int((r.mean(dim=1) >= target).float().argmax()) for r in (reward, kept_reward)
    )
    saved = mean(off[first] - kept_off[kept_first])
    separated = separation(likely[0], likely[-1])
    random = torch.stack([paper_probability(runs[0.0].noise[k]) for k in (0, last)])
    kept_random = paper_probability(runs[GAMMA].noise[last])
    auc = {
        "unsteered_from_steered": separated,
        "unsteered_from_steered_random_orders": separation(random[0], random[1]),
        "on_from_off_the_ring_within_the_run": separation(likely[off == 0], likely[off == 1])
        if bool((off == 0).any() and (off == 1).any())
        else None,
    }
    start, end, kept = mean(off[0]), mean(off[-1]), mean(kept_off[-1])
    claims = [
        Claim(
            "figures 4a, 4b",
            f"unsteered samples lie on the ring; after {last} gradient steps none does",
            f"share more than {OFF} off the ring: {start} before, {end} after; mean reward "
            f"{mean(reward[0])} before, {mean(reward[-1])} after (the ring's best: {ON_RING:.3g})",
            start.high < 0.1 and float(off[-1].mean()) == 1.0,
        ),
        Claim(
            "figure 13a",
            "P(z) is high for the unsteered and near 0 for the steered samples, and separates them",
            f"over random orders, as in the paper: P(z) {mean(random[0])} before, "
            f"{mean(random[1])} after, area under the ROC curve "
            f"{auc['unsteered_from_steered_random_orders']:.3f}; with z's own order, as shipped: "
            f"{mean(likely[0])} before, {mean(likely[-1])} after, area {separated:.3f}",
            separation(random[0], random[1]) > 0.95 and mean(random[1]).high < 0.05,
        ),
        Claim(
            "section 3.2",
            f"the probability regulariser (gamma {GAMMA:g}) keeps the samples on the ring",
            f"after {last} steps {kept} are off the ring (unsteered {start}), with mean reward "
            f"{mean(kept_reward[-1])}; P(z) over random orders is {mean(kept_random)}, and with "
            f"z's own order {mean(kept_likely[-1])}",
            kept.low <= start.high,
        ),
        Claim(
            "section 5.1",
            "early stopping without the regulariser does not give the same at equal reward",
            f"when the mean reward reaches {target:.3g}, the ring's best: without it "
            f"{mean(off[first])} are off the ring, after {looks[first]} steps, with it "
            f"{mean(kept_off[kept_first])}, after {looks[kept_first]}; {saved} fewer",
            saved.low > 0,
        ),
    ]
    numbers: dict[str, Any] = {
        "off_the_ring": {f"gamma_{g:g}": seen[g][2].mean(dim=1) for g in runs},
        "P": {f"gamma_{g:g}": seen[g][1].mean(dim=1) for g in runs},
        "P_random_orders": {
            "before": mean(random[0]),
            "after_gamma_0": mean(random[1]),
            f"after_gamma_{GAMMA:g}": mean(kept_random),
        },
        "reward": {f"gamma_{g:g}": seen[g][3].mean(dim=1) for g in runs},
        "looks": looks,
        "auc": auc,
        "equal_reward_steps": [looks[first], looks[kept_first]],
        "seconds": {f"gamma_{g:g}": run.seconds for g, run in runs.items()},
    }
    figure = drawn(runs, seen, last)
    report("toy_reward_hacking", chosen, claims, numbers, {"toy_reward_hacking.png": figure})


if __name__ == "__main__":
    main()
