"""`attack`: words that mean the same to a reader and break the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiller.methods._words import Parts, WordSearch


@dataclass(frozen=True)
class Attack(WordSearch):
    """Find a prompt that says what the user's does, whose pictures the reward likes least.

        min_s  mean_i r(M(x_i, s), user's prompt)     with  similarity(s, user's prompt) >= lambda

    A test of a model: where it fails, the words are a finding. Substitutes that are less similar
    are never drawn; the distribution that is learned first is kept near by a penalty.

    Attributes:
        min_similarity: lambda (the paper's attacks keep about .9).

    Example:
        >>> tiller.steer("emoji", "a green car", method="attack").best_prompt     # doctest: +SKIP
        'a jade motorcar'

    Source: Wang et al. 2024, "On discrete prompt optimization for diffusion models" (DPO-Diff),
    definition 4.1 and equation 5.
    """

    min_similarity: float = 0.9

    citation: ClassVar[str] = (
        "Wang et al., On discrete prompt optimization for diffusion models, 2024"
    )
    lowers: ClassVar[bool] = True

    def parts(self, guided: bool) -> Parts:
        """Synonyms in the prompt (section 4.2.1)."""
        return "positive"
