"""`random`: random local search over the noise. No gradient, no model of the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiller.core.budget import Budget
from tiller.core.search import Phase, Problem
from tiller.methods.base import Method, Task
from tiller.solvers.random import Random as RandomSolver


@dataclass(frozen=True)
class Random(Method):
    """Perturb the best noise so far, keep what improves: zero-order search.

    Attributes:
        batch: perturbations a round.
        radius: their size; z' = sqrt(1 - radius^2) z + radius e keeps z's distribution.
    """

    batch: int = 4
    radius: float = 0.3

    citation: ClassVar[str] = (
        "Ma et al., Inference-time scaling for diffusion models beyond scaling denoising steps, "
        "2025"
    )
    default_budget: ClassVar[Budget] = Budget(images=32)

    def build(self, task: Task) -> list[Phase]:
        """One phase over the noise."""
        self.check_batch(self.batch)
        solver = RandomSolver(batch=self.batch, radius=self.radius)
        problem = Problem(self.noise(task), self.pictures(task), solver)
        return [Phase("local search", lambda _: problem)]
