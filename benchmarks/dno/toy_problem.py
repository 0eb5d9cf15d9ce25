"""What the toy scripts share: rewards, the objective, the ascent, intervals, and the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor
from toy_model import INNER, OUTER, Training

from tiller.core.budget import Budget, count
from tiller.core.objective import Objective, Regulariser
from tiller.core.rng import Draw, keyed_generator
from tiller.core.search import search
from tiller.models.inputs import Inputs
from tiller.models.trajectory import Gradient as Mode
from tiller.models.trajectory import Trajectory
from tiller.solvers.gradient import Gradient
from tiller.spaces.noise import Noise

Reward = Callable[[Tensor], Tensor]  # points [n, 2] to rewards [n]

INK, BLUE, ORANGE, GREEN, VIOLET = "#333333", "#1f6fb4", "#d9601a", "#2a8f5b", "#8455b8"


def waves(points: Tensor) -> Tensor:
    """sin(4 pi x) + sin(4 pi y) - ((x - 1)^2 - y^2) / 5, with many maxima (DNO, section 2.1)."""
    x, y = points.unbind(dim=1)
    bumps = (4 * torch.pi * x).sin() + (4 * torch.pi * y).sin()
    return bumps - ((x - 1) ** 2 - y**2) / 5


def corner(points: Tensor) -> Tensor:
    """-(x - 1.4)^2 - (y - 1.4)^2: best at a point off the ring (DNO, section 3)."""
    return -(points - 1.4).square().sum(dim=1)


def height(points: Tensor) -> Tensor:
    """y: across the line, along which the line cannot move (DNO, appendix B)."""
    return points[:, 1]


class Points(Objective[Inputs, Tensor]):
    """score(x) = reward(sample(x)) over the points of a toy.

    Args:
        path: the toy's sampler.
        reward: of points [n, 2].
        black_box: keep the reward's gradient from the solver; the sampler's stays.
        regularisers: penalties over the noise.
    """

    render_differentiable = True

    def __init__(
        self,
        path: Trajectory,
        reward: Reward,
        *,
        black_box: bool = False,
        regularisers: tuple[Regulariser, ...] = (),
    ) -> None:
        self.path, self.reward, self.regularisers = path, reward, regularisers
        self.differentiable = not black_box

    def render(self, x: Inputs, draw: Draw) -> Tensor:
        """Points [n, 2], holding a graph where gradients are enabled."""
        mode = Mode.full() if torch.is_grad_enabled() else Mode.none()
        latents = self.path.run(x.noise, x.conditioning, gradient=mode, checkpoint="keep")
        return self.path.model.decode(latents)

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """The reward [n] of points [n, 2]."""
        count(reward_calls=len(y))
        return self.reward(y if self.differentiable else y.detach())


def sampler(toy: Any, eta: float) -> Trajectory:
    """The toy's DDIM in 50 steps with this eta."""
    return Trajectory(toy, replace(toy.defaults, eta=eta))


@dataclass(frozen=True)
class Ascent:
    """What n candidates did, by gradient steps done.

    Attributes:
        reward: [steps + 1, n].
        points: [n, 2] after each of the wanted numbers of steps.
        noise: z [n, slots, 2, 1, 1], likewise.
        grad: d score / dz, likewise.
        seconds: processor time of the search.
    """

    reward: Tensor
    points: dict[int, Tensor]
    noise: dict[int, Tensor]
    grad: dict[int, Tensor]
    seconds: float


def ascend(
    path: Trajectory,
    objective: Points,
    solver: Gradient,
    steps: int,
    *,
    keep: Collection[int],
    seed: int = 0,
) -> Ascent:
    """`steps` gradient steps from the space's first samples, through the shipped search.

    A step is evaluated where it begins, so the state after the last one takes one round more.
    """
    space = Noise(path.noise_shape, path.model.encode([""]))
    started = time.process_time()
    rewards: list[Tensor] = []
    noise: dict[int, Tensor] = {}
    grad: dict[int, Tensor] = {}
    for step in search(space, objective, solver, Budget(steps=steps + 1), seed=seed):
        done = step.index - 1
        rewards.append(step.evaluation.reward.float())
        if done in keep:
            assert step.evaluation.grad is not None
            noise[done], grad[done] = step.z, step.evaluation.grad
    seconds = time.process_time() - started
    with torch.no_grad():
        points = {k: objective.render(space.decode(z), Draw(seed, 0)) for k, z in noise.items()}
    return Ascent(torch.stack(rewards), points, noise, grad, seconds)


@dataclass(frozen=True)
class Mean:
    """A mean over candidates with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean(values: Tensor) -> Mean:
    """The mean of values [n], resampled 2000 times; differences of pairs make a paired interval."""
    values = values.double()
    picks = torch.randint(
        len(values), (2000, len(values)), generator=keyed_generator(0, "bootstrap")
    )
    low, high = values[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return Mean(float(values.mean()), low, high)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, what was measured of it, and whether that bears it out."""

    source: str
    claim: str
    measured: str
    held: bool


@dataclass(frozen=True)
class Options:
    """A toy script's options, the same for all of them."""

    candidates: int
    steps: int
    seed: int
    training: Training
    work: Path
    out: Path | None
    json: bool


def options(
    about: str | None, argv: Sequence[str] | None, *, candidates: int, steps: int
) -> Options:
    """Read the command line; `candidates` and `steps` are the script's own full sizes."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--candidates", type=int, default=candidates, help="seeds, as one batch")
    parser.add_argument("--steps", type=int, default=steps, help="gradient steps")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--train-seed", type=int, default=0, help="of the toy model")
    parser.add_argument("--work", type=Path, default=Path("runs/dno_toys"), help="keeps the models")
    parser.add_argument("--out", type=Path, help="folder for the figures")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny, and no evidence")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    training = Training(seed=given.train_seed)
    if given.quick:
        training = replace(training, steps=300)
        given.candidates, given.steps = min(given.candidates, 8), min(given.steps, 4)
    return Options(
        given.candidates, given.steps, given.seed, training, given.work, given.out, given.json
    )


def report(
    name: str,
    options: Options,
    claims: Sequence[Claim],
    numbers: Mapping[str, Any],
    figures: Mapping[str, Figure],
) -> None:
    """Write the figures, and print what was measured: as text, or as one JSON object."""
    drawn: list[str] = []
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for file, figure in figures.items():
            metadata = {"Date": None} if file.endswith(".svg") else None
            with rc_context({"svg.hashsalt": file}):  # the same file for the same numbers
                figure.savefig(options.out / file, dpi=90, metadata=metadata)
            drawn.append(file)
    if options.json:
        found = {
            "benchmark": name,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, 1 thread, "
            f"torch {torch.__version__}",
            "candidates": options.candidates,
            "steps": options.steps,
            "seed": options.seed,
            "training": asdict(options.training),
            "claims": [asdict(claim) for claim in claims],
            "numbers": plain(numbers),
            "figures": drawn,
        }
        print(json.dumps(found, indent=1))
        return
    for claim in claims:
        print(f"{claim.source}: {claim.claim}")
        print(f"  {'held' if claim.held else 'DID NOT HOLD'}: {claim.measured}")
    if drawn:
        print(f"figures in {options.out}: {', '.join(drawn)}")


def plain(value: Any) -> Any:
    """What JSON can say of numbers, tensors and intervals in nested dictionaries."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Mean):
        return asdict(value)
    if isinstance(value, Tensor):
        return [float(f"{number:.5g}") for number in value.flatten().tolist()]
    return value


def canvas(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of rows * columns axes, row by row; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
    return figure, axes


def title(axis: Axes, text: str, x: str = "", y: str = "") -> None:
    """Name a panel and its axes."""
    axis.set_title(text, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=8, color=INK)
    axis.set_ylabel(y, fontsize=8, color=INK)


def plane(axis: Axes, reward: Reward | None = None, reach: float = 1.6) -> None:
    """The square [-reach, reach]^2 with the ring's edges, over the reward's levels."""
    if reward is not None:
        ticks = torch.linspace(-reach, reach, 161)
        levels = reward(torch.cartesian_prod(ticks, ticks)).view(161, 161).T
        axis.contourf(ticks.numpy(), ticks.numpy(), levels.numpy(), 7, cmap="Greys_r", alpha=0.45)
    for radius in (INNER, OUTER):
        axis.add_patch(Circle((0, 0), radius, fill=False, color=INK, linewidth=0.8))
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axis.set_xticks([-1, 0, 1])
    axis.set_yticks([-1, 0, 1])


def dots(axis: Axes, points: Tensor, colour: str = "#c21d1d", **styles: Any) -> Any:
    """One small dot a point of points [n, 2]."""
    x, y = points.T.tolist()
    if "c" not in styles:
        styles["color"] = colour
    return axis.scatter(x, y, s=6, linewidths=0, **styles)


def band(axis: Axes, values: Tensor, colour: str, label: str, x: Sequence[float] = ()) -> None:
    """The mean of values [steps, n] over candidates, and their middle half."""
    steps = list(x) or list(range(len(values)))
    low, high = values.float().quantile(torch.tensor([0.25, 0.75]), dim=1).tolist()
    axis.plot(steps, values.mean(dim=1).tolist(), color=colour, label=label, linewidth=1.6)
    axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
