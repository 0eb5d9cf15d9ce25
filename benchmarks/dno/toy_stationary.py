"""Figure 12: why an ascent stops. Noises of type I, II and III on the ring and on the line.

    python benchmarks/dno/toy_stationary.py --out benchmarks/dno/figures

With G1 = dr/dx at the sample and G2 = dM/dz, an ascent on r(M(z)) stops where G1 G2 = 0:

    type I    G1 = 0           the sample is at a stationary point of the reward
    type II   G2 = 0           the sample no longer follows the noise
    type III  G1 G2 = 0 only   the reward grows across the directions in which the sample can move

"Zero" is: less than a tenth of the unsteered samples' median for |G1| and |G2| (its largest
singular value), and |G1 G2| < |G1| |G2| / 10 for type III.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from toy_model import load, off_line, off_ring
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
    canvas,
    dots,
    height,
    mean,
    options,
    plane,
    report,
    sampler,
    title,
    waves,
)

from tiller.models.trajectory import Gradient as Mode
from tiller.models.trajectory import Trajectory
from tiller.solvers.gradient import Gradient
from tiller.solvers.rules import Adam, Sgd

SMALL = 0.1
TYPES = ("still rising", "type I", "type II", "type III")
COLOURS = (INK, BLUE, ORANGE, GREEN)


@dataclass(frozen=True)
class Slopes:
    """|G1|, |G2| and |G1 G2| of n candidates, [n] each."""

    reward: Tensor
    sampler: Tensor
    whole: Tensor


def slopes(path: Trajectory, reward: Reward, noise: Tensor) -> Slopes:
    """Both gradients at noise [n, slots, 2, 1, 1]."""
    leaf = noise.detach().requires_grad_()
    conditioning = path.model.encode([""])
    latents = path.run(leaf, conditioning, gradient=Mode.full(), checkpoint="keep")
    points = path.model.decode(latents)
    rows = [
        torch.autograd.grad(points[:, i].sum(), leaf, retain_graph=i == 0)[0].flatten(1)
        for i in range(2)
    ]
    g2 = torch.stack(rows, dim=1)  # [n, 2, d]
    at = points.detach().requires_grad_()
    (g1,) = torch.autograd.grad(reward(at).sum(), at)
    whole = (g1[:, None, :] @ g2)[:, 0]
    return Slopes(g1.norm(dim=1), torch.linalg.matrix_norm(g2, ord=2), whole.norm(dim=1))


def types(now: Slopes, unsteered: Slopes) -> Tensor:
    """0 to 3 for each candidate, as in `TYPES`, [n]; the first that fits."""
    flat = now.reward < SMALL * unsteered.reward.median()
    stuck = now.sampler < SMALL * unsteered.sampler.median()
    across = now.whole < SMALL * now.reward * now.sampler
    kind = torch.where(across, 3, 0)
    kind = torch.where(stuck, 2, kind)
    return torch.where(flat, 1, kind)


def shares(kind: Tensor) -> dict[str, float]:
    """The share of each type among kind [n]."""
    return {name: float((kind == i).float().mean()) for i, name in enumerate(TYPES)}


def said(parts: dict[str, float]) -> str:
    """Shares as a sentence."""
    return ", ".join(f"{share:.0%} {name}" for name, share in parts.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, draw and say whether the claims held."""
    chosen = options(__doc__, argv, candidates=256, steps=500)
    last, small = chosen.steps, min(chosen.steps, 100)
    looks = sorted({0, small, last})

    ring = sampler(load(chosen.training, chosen.work), eta=1.0)
    solver = Gradient(rule=Adam(), lr=0.01, population=chosen.candidates)
    risen = ascend(ring, Points(ring, waves), solver, last, keep=looks, seed=chosen.seed)
    found = {k: slopes(ring, waves, risen.noise[k]) for k in looks}
    kinds = {k: types(one, found[0]) for k, one in found.items()}
    on_ring = {k: shares(kind) for k, kind in kinds.items()}

    line = sampler(load(replace(chosen.training, shape="line"), chosen.work), eta=1.0)
    rules = {"plain": Sgd(), "adam": Adam()}
    across: dict[str, Ascent] = {
        name: ascend(
            line,
            Points(line, height),
            Gradient(rule=rule, lr=0.01, population=chosen.candidates),
            small,
            keep=(0, small),
            seed=chosen.seed,
        )
        for name, rule in rules.items()
    }
    flat = slopes(line, height, across["plain"].noise[0])
    on_line = shares(types(flat, flat))
    alignment = flat.whole / (flat.reward * flat.sampler)
    rises = {name: mean(run.reward[-1] - run.reward[0]) for name, run in across.items()}
    width = float(off_line(across["plain"].points[0]).median())

    claims = [
        Claim(
            "figure 12a",
            "an ascent on the ring ends in noises of type I and of type II",
            "; ".join(f"after {k} steps: {said(on_ring[k])}" for k in looks),
            on_ring[last]["type I"] > 0 and on_ring[last]["type II"] > 0,
        ),
        Claim(
            "figure 12a, ours",
            "where an ascent has stopped, one of the three types explains it: hardly any candidate "
            f"is still rising after {last} steps",
            f"{on_ring[last]['still rising']:.0%} are still rising; mean reward gained in the last "
            f"{last - small} steps: {mean(risen.reward[-1] - risen.reward[small])}",
            on_ring[last]["still rising"] < 0.05,
        ),
        Claim(
            "figure 12b",
            "on the line with the reward y every noise is of type III",
            f"unsteered: {said(on_line)}; |G1 G2| / (|G1| |G2|) is {mean(alignment)}",
            on_line["type III"] > 0.95,
        ),
        Claim(
            "appendix B",
            "so plain gradient ascent does not improve the line's rewards",
            f"{small} steps of size .01 raise y by {rises['plain']} (the median distance from the "
            f"line of an unsteered sample is {width:.2g}); Adam, which rescales small gradients, "
            f"raises it by {rises['adam']}",
            abs(rises["plain"].mean) < 0.05,
        ),
    ]
    figure, axes = canvas(1, 3, 9.5, 3.1)
    for axis, k in zip(axes, (small, last), strict=False):
        plane(axis, waves)
        for i, (name, colour) in enumerate(zip(TYPES, COLOURS, strict=True)):
            chosen_points = risen.points[k][kinds[k] == i]
            if len(chosen_points):
                dots(axis, chosen_points, colour, label=f"{name}: {on_ring[k][name]:.0%}")
        axis.legend(fontsize=7, loc="center", frameon=True)
        title(axis, f"ring, {k} steps of Adam")
    steered = {
        "unsteered": across["plain"].points[0],
        "plain ascent": across["plain"].points[small],
    }
    steered[f"Adam, {small} steps"] = across["adam"].points[small]
    for (name, points), colour in zip(steered.items(), (INK, GREEN, ORANGE), strict=True):
        dots(axes[2], points, colour, label=name)
    axes[2].legend(fontsize=7, frameon=False)
    title(axes[2], "line, reward y")
    numbers: dict[str, Any] = {
        "ring": on_ring,
        "ring_off": {k: mean((off_ring(risen.points[k]) > 0.05).float()) for k in looks},
        "median_slopes": {
            k: {name: float(getattr(one, name).median()) for name in ("reward", "sampler", "whole")}
            for k, one in found.items()
        },
        "line": on_line,
        "line_alignment": mean(alignment),
        "line_rise": rises,
        "seconds": {"ring": risen.seconds, **{n: run.seconds for n, run in across.items()}},
    }
    report("toy_stationary", chosen, claims, numbers, {"toy_stationary.png": figure})


if __name__ == "__main__":
    main()
