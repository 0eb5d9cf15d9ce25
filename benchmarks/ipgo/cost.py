"""Time and memory of one step, beside a plain picture and DRaFT-1, and of the tokens alone.

    python benchmarks/ipgo/cost.py [--rounds 5] [--clock cpu] [--model emoji] [--json]

One candidate, guidance on. A step is all that a round does: decode, sample, score, back-propagate,
penalize, move, retract. The unit is a plain picture with its score and without a gradient; all rows
take turns in every round, so that a slow minute hits all of them, and ratios are medians. The
tokens' row is decode, its gradient and retraction together, as a share of the step; the three
retractions that were weighed against each other stand below, in microseconds. Memory is the most
that a step's tensors hold at one time, the weights not counted, and what the last sampling step
keeps for its backward pass.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiller
from tiller.core.budget import Budget
from tiller.core.rng import Stream
from tiller.core.search import search_phases
from tiller.methods.base import Task
from tiller.methods.draft import Draft
from tiller.methods.ipgo import Ipgo
from tiller.methods.ipgo_dno import IpgoDno
from tiller.models.checkpointing import saved_bytes
from tiller.models.guidance import guided
from tiller.rewards import make_reward
from tiller.spaces._rotations import nearest_orthonormal
from tiller.spaces.affixes import Affixes
from tiller.tasks.statistics import Estimated
from tiller.testing.allocated import Allocated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, report

PROMPT = "a red cat and a blue dog on a green background"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TOKENS = 0.02  # of a step: what building and retracting the tokens may take


class Steps:
    """A method's search, a round at a time."""

    def __init__(self, method: Any, task: Task) -> None:
        self.steps = search_phases(method.build(task), Budget(steps=10**9))
        next(self.steps)
        next(self.steps)  # what is measured once and kept is measured now

    def __call__(self) -> None:
        next(self.steps)


def retractions(width: int, rank: int) -> dict[str, Callable[[], Tensor]]:
    """Three ways to orthonormal columns, for a basis one Adam step away from them."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(width, rank, generator=generator))[0]
    move = 1e-3 * torch.randn(width, rank, generator=generator).sign()
    moved, eye = basis + move, torch.eye(2 * rank)

    def qr() -> Tensor:
        q, r = torch.linalg.qr(moved)
        return q * r.diagonal().sign()

    def cayley() -> Tensor:
        """(I - W/2)^-1 (I + W/2) E for the skew W = move E^T - E move^T, by its 2N columns."""
        u, v = torch.cat([move, basis], dim=1), torch.cat([basis, -move], dim=1)
        solved: Tensor = torch.linalg.solve(eye - v.mT @ u / 2, v.mT @ basis)
        return basis + u @ solved

    return {"polar": lambda: nearest_orthonormal(moved), "qr": qr, "cayley": cayley}


def median_time(function: Callable[[], Any], clock: Callable[[], float], repeat: int) -> float:
    """Seconds a call."""
    found = []
    for _ in range(repeat):
        start = clock()
        for _ in range(20):
            function()
        found.append((clock() - start) / 20)
    return statistics.median(found)


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=1, seeds=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--sampling-steps", type=int, default=None)
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    model = tiller.load_model(options.model)
    task = Task(
        model, PROMPT, "", make_reward("brightness" if options.model != "emoji" else "clip")
    )
    steps = options.sampling_steps
    usual = Ipgo(num_inference_steps=steps)
    rows: dict[str, Callable[[], None]] = {
        "plain picture": _plain(usual, task),
        "ipgo, last(1)": Steps(usual, task),
        "ipgo, last(2)": Steps(Ipgo(num_inference_steps=steps, gradient="last(2)"), task),
        "ipgo, full": Steps(Ipgo(num_inference_steps=steps, gradient="full"), task),
        "ipgo_dno, full": Steps(IpgoDno(num_inference_steps=steps), task),
        "DRaFT-1": Steps(Draft(num_inference_steps=steps), task),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(options.rounds):
        for name, function in rows.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    ratios = {
        name: [t / plain for t, plain in zip(found, times["plain picture"], strict=True)]
        for name, found in times.items()
    }
    table: dict[str, Any] = {
        name: {"plain pictures": _spread(found)} for name, found in ratios.items()
    }
    affixes = usual.affixes(model)
    z = affixes.sample(1, Stream(0))
    tokens = median_time(lambda: affixes.project(_leaf(affixes, z)), clock, options.rounds)
    share = tokens / statistics.median(times["ipgo, last(1)"])
    table["tokens, of a last(1) step"] = {"share": _one(share)}
    for width in sorted({affixes.width, 768, 2048}):
        for name, function in retractions(width, affixes.rank).items():
            micro = 1e6 * median_time(function, clock, options.rounds)
            table[f"{name}, {width} x {affixes.rank}"] = {"microseconds": _one(micro)}
    table |= _memory(usual, task)
    peaks = {name: _peak(rows[name]) for name in rows}
    for name, peak in peaks.items():
        ratio = peak / peaks["plain picture"]
        table[f"{name}, memory"] = {"MB": _one(peak / 1e6), "plain pictures": _one(ratio)}
    held = "held" if share < TOKENS else "did not hold"
    last, draft = (statistics.median(ratios[name]) for name in ("ipgo, last(1)", "DRaFT-1"))
    report(
        options,
        table,
        f"A step of ipgo costs {last:.2f} plain pictures, one of DRaFT-1 {draft:.2f}; the tokens "
        f"take {share:.2%} of it (under {TOKENS:.0%}: {held}).",
    )


def _plain(method: Ipgo, task: Task) -> Callable[[], None]:
    pictures, inputs = method.pictures(task), method.baseline(task, 0)

    def draw() -> None:
        with torch.no_grad():
            pictures.score(pictures.render(inputs, None), None)  # type: ignore[arg-type]

    draw()
    return draw


def _leaf(affixes: Affixes, z: Tensor) -> Tensor:
    """z, after its tokens were built and their gradient taken."""
    leaf = z.requires_grad_()
    affix = affixes.decode(leaf)
    (grad,) = torch.autograd.grad(affix.prefix.sum() + affix.suffix.sum(), leaf)
    return leaf.detach() + 1e-3 * grad.sign()


def _peak(step: Callable[[], None]) -> int:
    """The most bytes that the tensors of a step held at one time, the weights not counted."""
    with Allocated() as allocated:
        step()
    return allocated.peak


def _memory(method: Ipgo, task: Task) -> dict[str, Any]:
    """What the last step keeps for its backward pass, through the words and through weights."""
    space, path = method.space(task), method.trajectory(task.model)
    told = space.decode(space.sample(1, Stream(0))).conditioning
    denoiser = guided(task.model, told, path.settings.guidance_scale)
    t = path.timesteps[-1].to(task.model.device)
    latents = torch.zeros(1, *path.noise_shape[1:]).to(task.model.device, task.model.dtype)
    leaves = [states.requires_grad_() for states in denoiser.inputs]
    words = saved_bytes(lambda: denoiser(latents, t, *leaves))
    draft = Draft(num_inference_steps=method.num_inference_steps).build(task)[0].build(None)
    weights = draft.space.sample(1, Stream(0))[0].requires_grad_()
    copy = draft.objective.adaptable.drawing_with(weights)
    adapted = guided(copy, task.conditioning(), path.settings.guidance_scale)
    trained = saved_bytes(lambda: adapted(latents, t, *adapted.inputs))
    return {
        "kept of the last step for its gradient, words": {"MB": _one(words / 1e6)},
        "kept of the last step for its gradient, DRaFT's weights": {"MB": _one(trained / 1e6)},
    }


def _one(value: float) -> Estimated:
    return Estimated(value, value, value, 1)


def _spread(values: list[float]) -> Estimated:
    """The median, between the lowest and the highest."""
    return Estimated(statistics.median(values), min(values), max(values), len(values))


if __name__ == "__main__":
    main()
