"""A small real run on the core's loop, for tests: it climbs a quadratic and keeps its folder.

`python toy.py FOLDER STEPS` runs or resumes the run in FOLDER, as a program that can be killed.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.evaluation import Autograd, Estimator, Evaluation
from tiller.core.objective import Objective
from tiller.core.rng import Draw, Stream
from tiller.core.search import Step, search
from tiller.core.solver import Solver
from tiller.core.space import Continuous, Space
from tiller.core.state import pack
from tiller.runs.store import RunStore

SPEC = {"method": {"name": "toy", "settings": {"lr": 0.05}}, "prompt": "a hill", "seed": 3}


class Plane(Continuous[Tensor]):
    """Points [n, 4]."""

    shape = (4,)

    def sample(self, n: int, rng: Stream) -> Tensor:
        return torch.stack([torch.randn(4, generator=rng.next()) for _ in range(n)])

    def decode(self, z: Tensor) -> Tensor:
        return z


class Hill(Objective[Tensor, Tensor]):
    """-(z - 1)^2 with the round's noise added: the resumed run must draw the same noise."""

    differentiable = True

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        return x + 0.1 * torch.randn(4, generator=draw.generator())

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        return -((y - 1) ** 2).sum(-1)


@dataclass(frozen=True)
class ClimbState:
    """Where the climber stands [2, 4] and its momentum."""

    z: Tensor
    momentum: Tensor


@dataclass(frozen=True)
class Climb(Solver[ClimbState]):
    """Ascent with momentum from two points, with a random nudge a round."""

    lr: float = 0.05

    def init(self, space: Space[Any], rng: Stream) -> ClimbState:
        z = space.sample(2, rng)
        return ClimbState(z, torch.zeros_like(z))

    def ask(self, space: Space[Any], state: ClimbState, rng: Stream) -> Tensor:
        return state.z + 0.01 * torch.randn(2, 4, generator=rng.next())

    def tell(
        self, space: Space[Any], state: ClimbState, z: Tensor, evaluation: Evaluation
    ) -> ClimbState:
        momentum = 0.8 * state.momentum + evaluation.grad
        return ClimbState(z + self.lr * momentum, momentum)

    def gradient(self) -> Estimator:
        return Autograd()


def entry_of(step: Step) -> dict[str, Any]:
    """A round's journal line."""
    return {
        "kind": "step",
        "step": step.index,
        "phase": step.phase,
        "score": float(step.evaluation.score.max()),
        "best_score": step.best.score,
        "scores": {"hill": step.best.score},
        "cost": dataclasses.asdict(step.cost),
        "image": f"images/best-{step.index:04d}.png" if step.best.round == step.index else None,
        "stopped": step.stopped,
    }


def picture_of(z: Tensor) -> Tensor:
    """A picture [1, 3, 8, 8] that depends on z [1, 4]."""
    return z.sigmoid().repeat(1, 48).reshape(1, 3, 8, 8)


def run(store: RunStore, steps: int) -> None:
    """Run to the end, from where the folder stands."""
    with store.lock():
        saved = store.load_state()
        if saved is None:
            store.rewind(0)
            if not store.entries():
                store.append({"kind": "baseline", "scores": {"hill": -9.0}, "image": None})
        else:
            store.rewind(saved.tree["round"])
            store.append({"kind": "resumed", "step": saved.tree["round"]})
        for step in search(Plane(), Hill(), Climb(), Budget(steps=steps), seed=3, resume=saved):
            if step.best.round == step.index:
                store.save_image(f"best-{step.index:04d}", picture_of(step.best.z))
                store.save_best({"noise": step.best.z}, {"prompt": "a hill", "step": step.index})
            store.checkpoint(pack(step.state), entry_of(step))


def outcome(folder: Path) -> tuple[list[dict[str, Any]], Any]:
    """What must not depend on interruptions: the journal's rounds and the last state.

    Without time and memory, which no two runs share.
    """
    store = RunStore.open(folder)
    entries = [e for e in store.entries() if e["kind"] in {"baseline", "step"}]
    for found in entries:
        found.pop("cost", None)
    packed = store.load_state()
    assert packed is not None
    tree = {k: v for k, v in packed.tree.items() if k not in {"cost", "phase_cost"}}
    tensors = {name: tensor.tolist() for name, tensor in packed.tensors.items()}
    pictures = {p.name: p.read_bytes() for p in sorted((folder / "images").glob("*.png"))}
    return entries, (tree, tensors, pictures, (folder / "best.safetensors").read_bytes())


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(RunStore.open(sys.argv[1]), int(sys.argv[2]))
