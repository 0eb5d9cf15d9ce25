"""`raw`: one picture, as the model draws it. The baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiller.core.budget import Budget
from tiller.core.search import Phase, Problem
from tiller.methods.base import Method, Task
from tiller.solvers.best_of_n import BestOfN


@dataclass(frozen=True)
class Raw(Method):
    """Draw the prompt once with the run's seed, and search nothing."""

    default_budget: ClassVar[Budget] = Budget(images=1)

    def build(self, task: Task) -> list[Phase]:
        """One round of one picture, whatever the budget."""
        problem = Problem(self.noise(task), self.pictures(task), BestOfN(batch=1, n=1))
        return [Phase("draw", lambda _: problem)]
