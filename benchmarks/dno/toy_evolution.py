"""Figure 2 and theorem 1: gradient steps on the noise move a whole distribution to better places.

    python benchmarks/dno/toy_evolution.py --out benchmarks/dno/figures

The ring, the reward with many maxima, DDIM with eta = 1 in 50 steps. Figure 2 is drawn with the
paper's Adam (lr .01). Theorem 1 is about plain gradient ascent: the expected reward rises at every
step as long as the step size is below 2 / L; the largest L that the run itself shows, the change
of a candidate's gradient over its move, is reported beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad
from toy_model import INNER, OUTER, load, off_ring
from toy_problem import (
    BLUE,
    GREEN,
    ORANGE,
    Ascent,
    Claim,
    Points,
    ascend,
    band,
    canvas,
    dots,
    mean,
    options,
    plane,
    report,
    sampler,
    title,
    waves,
)

from tiller.solvers.gradient import Gradient
from tiller.solvers.rules import Sgd

SHOWN = (0, 10, 50, 100)  # gradient steps, the panels of figure 2
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of plain gradient ascent, for theorem 1
NEAR = 0.1  # a sample this close to a local maximum counts as there
OFF = 0.05  # a sample farther than this from the ring counts as off it


def maxima() -> Tensor:
    """The local maxima [k, 2] of the reward on the ring, edges included, on a fine polar grid."""
    radius = torch.linspace(INNER, OUTER, 161, dtype=torch.float64)
    angle = torch.arange(2880, dtype=torch.float64) * (2 * torch.pi / 2880)
    grid = torch.stack(
        [radius[:, None] * angle.cos(), radius[:, None] * angle.sin()], dim=-1
    )  # [161, 2880, 2]
    values = waves(grid.view(-1, 2)).view(1, 1, 161, 2880)
    around = pad(pad(values, (1, 1, 0, 0), "circular"), (0, 0, 1, 1), value=-torch.inf)
    best = max_pool2d(around, 3, stride=1)
    return grid[(values == best)[0, 0]].float()


def at_maxima(points: Tensor) -> Tensor:
    """1 for each of points [n, 2] that is near a local maximum, else 0."""
    distance = torch.cdist(points, maxima()).min(dim=1).values
    return (distance < NEAR).float()


def smoothness(run: Ascent) -> Tensor:
    """Each candidate's largest |g' - g| / |z' - z| between successive steps, [n]."""
    ratios = [
        (run.grad[b] - run.grad[a]).flatten(1).norm(dim=1)
        / (run.noise[b] - run.noise[a]).flatten(1).norm(dim=1).clamp(min=1e-12)
        for a, b in pairwise(sorted(run.noise))
    ]
    return torch.stack(ratios).amax(dim=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, draw and say whether the claims held."""
    chosen = options(__doc__, argv, candidates=256, steps=100)
    path = sampler(load(chosen.training, chosen.work), eta=1.0)
    objective = Points(path, waves)
    shown = sorted({min(step, chosen.steps) for step in SHOWN})
    adam = ascend(
        path,
        objective,
        Gradient(lr=0.01, population=chosen.candidates),
        chosen.steps,
        keep=shown,
        seed=chosen.seed,
    )
    gains = {k: mean(adam.reward[k] - adam.reward[0]) for k in shown[1:]}
    there = {k: mean(at_maxima(adam.points[k])) for k in shown}
    off = {k: mean((off_ring(adam.points[k]) > OFF).float()) for k in shown}
    plain = {
        rate: ascend(
            path,
            objective,
            Gradient(rule=Sgd(), lr=rate, population=chosen.candidates),
            chosen.steps,
            keep=range(chosen.steps + 1),
            seed=chosen.seed,
        )
        for rate in RATES
    }
    falls = {rate: int((run.reward.mean(dim=1).diff() < 0).sum()) for rate, run in plain.items()}
    gained = {rate: float((run.reward[-1] - run.reward[0]).mean()) for rate, run in plain.items()}
    seen = torch.stack([smoothness(run) for run in plain.values()]).amax(dim=0)  # L, [n]
    steepest, usual = float(seen.max()), float(seen.median())
    last = shown[-1]
    moved = mean(at_maxima(adam.points[last]) - at_maxima(adam.points[0]))
    claims = [
        Claim(
            "figure 2",
            "the optimized samples have better rewards, ever better with more steps",
            f"mean reward {mean(adam.reward[0])} before; gained "
            + ", ".join(f"{gain} after {k} steps" for k, gain in gains.items()),
            all(gain.low > 0 for gain in gains.values())
            and sorted(gains.values(), key=lambda gain: gain.mean) == list(gains.values()),
        ),
        Claim(
            "figure 2",
            "the distribution shifts to the local maxima of the reward",
            f"share of samples within {NEAR} of a local maximum on the ring: "
            + ", ".join(f"{share} at {k}" for k, share in there.items())
            + f"; change {moved}",
            moved.low > 0,
        ),
        Claim(
            "figure 2, ours",
            "the optimized samples stay on the ring as the unsteered ones do",
            f"share of samples more than {OFF} off the ring: "
            + ", ".join(f"{share} at {k}" for k, share in off.items()),
            off[last].low <= off[0].high,
        ),
        Claim(
            "theorem 1",
            "with a small enough step size, each step of plain ascent raises the expected reward",
            f"largest L seen {steepest:.3g}, so 2 / L = {2 / steepest:.2g} (of the median "
            f"candidate {2 / usual:.2g}); of {chosen.steps} steps, the mean fell in "
            + ", ".join(f"{falls[rate]} with step size {rate:g}" for rate in RATES)
            + "; gained in all: "
            + ", ".join(f"{value:.2g} with {rate:g}" for rate, value in gained.items()),
            falls[min(RATES)] == 0,
        ),
    ]
    figure, axes = canvas(1, 5, 13.5, 2.8)
    for axis, k in zip(axes, shown, strict=False):
        plane(axis, waves)
        dots(axis, adam.points[k])
        title(axis, f"{k} steps, mean reward {float(adam.reward[k].mean()):.2f}")
    band(axes[4], adam.reward, BLUE, "Adam, lr 0.01")
    for rate, colour in ((1e-2, GREEN), (1e-1, ORANGE)):
        band(axes[4], plain[rate].reward, colour, f"plain ascent, {rate:g}")
    axes[4].legend(fontsize=7, frameon=False)
    title(axes[4], "mean reward, middle half shaded", "gradient steps")
    numbers: dict[str, Any] = {
        "reward": {k: mean(adam.reward[k]) for k in shown},
        "near_a_maximum": there,
        "off_the_ring": off,
        "L": {"largest": steepest, "median": usual},
        "plain_ascent": {
            rate: {
                "falls": falls[rate],
                "last_reward": mean(plain[rate].reward[-1]),
            }
            for rate in RATES
        },
        "seconds": {"adam": adam.seconds, **{f"{r:g}": run.seconds for r, run in plain.items()}},
    }
    report("toy_evolution", chosen, claims, numbers, {"toy_evolution.png": figure})


if __name__ == "__main__":
    main()
