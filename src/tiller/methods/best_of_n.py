"""`best_of_n`: draw n pictures, keep the best. The baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiller.core.budget import Budget
from tiller.core.search import Phase, Problem
from tiller.methods.base import Method, Task
from tiller.solvers.best_of_n import BestOfN as BestOfNSolver


@dataclass(frozen=True)
class BestOfN(Method):
    """Independent noises, one budget: argmax_i r(picture(z_i)), z_i ~ N(0, I).

    Attributes:
        batch: pictures drawn at once; the result does not depend on it.
    """

    batch: int = 8

    default_budget: ClassVar[Budget] = Budget(images=16)

    def build(self, task: Task) -> list[Phase]:
        """One phase over the noise."""
        self.check_batch(self.batch)
        problem = Problem(self.noise(task), self.pictures(task), BestOfNSolver(batch=self.batch))
        return [Phase("sampling", lambda _: problem)]
