"""`llm_rewrite`: a language model rewrites the prompt, round after round, told the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.search import Phase
from tiller.llm import open_chat, rewrite
from tiller.methods._rewrites import Rewrites, Scored
from tiller.methods.base import Task


@dataclass(frozen=True)
class LlmRewrite(Rewrites):
    """Optimization by prompting: a language model proposes prompts, the reward judges them.

    Round 1 draws the user's prompt. In each later round the model reads what is wanted and the best
    prompts so far with their scores, the best last, and proposes `n` new ones. `iterations=1` is a
    plain rewrite by an LLM. The server is the environment's: OPENAI_BASE_URL, OPENAI_API_KEY,
    OPENAI_MODEL (docs/llm.md). Its replies are kept on disk, so a resumed run pays for none twice.

    Attributes:
        n: proposals a round (OPT2I: 5).
        iterations: rounds of proposals; the budget may end the run before.
        llm: the model's name on the server; empty for OPENAI_MODEL.
        history: how many of the best prompts the model is told of (ours: 5).
        temperature: of its sampling (ours: 1).
        timeout: seconds that one reply may take.
    """

    n: int = 5
    iterations: int = 3
    llm: str = ""
    history: int = 5
    temperature: float = 1.0
    timeout: float = 120.0

    citation: ClassVar[str] = (
        "Mañas et al., Improving text-to-image consistency via automatic prompt optimization, 2024"
    )
    default_budget: ClassVar[Budget] = Budget(images=48)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n, self.iterations, self.history) < 1:
            raise InvalidInput(
                f"n, iterations and history must be at least 1, got n={self.n!r}, "
                f"iterations={self.iterations!r}, history={self.history!r}"
            )
        if not 0 <= self.temperature <= 2:
            raise InvalidInput(f"temperature must lie in [0, 2], got {self.temperature!r}")

    def build(self, task: Task) -> list[Phase]:
        """The rounds; a server that is not configured is said before anything is drawn."""
        chat = open_chat(self.llm, timeout=self.timeout)

        def write(history: Sequence[Scored], seed: int) -> Sequence[str]:
            return rewrite(
                task.prompt,
                history,
                self.n,
                chat,
                kept=self.history,
                temperature=self.temperature,
                seed=seed,
            )

        return self.rewrites(task, write, iterations=self.iterations)
