"""`dpo_diff`: discrete prompt optimization, a better prompt or negative prompt in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiller.methods._words import Parts, WordSearch


@dataclass(frozen=True)
class DpoDiff(WordSearch):
    """Find the words that a picture is better with: by default what the negative prompt should say.

        max_s  mean_i r(M(x_i, s), user's prompt)

    over texts s made of substitutes, for the noises x_1 .. x_S. What is found is text: it works
    from other noises too, and in any program that draws with this model. The fields are those of
    every search for words; see `attack` for the opposite.

    Example:
        >>> result = tiller.steer("emoji", "a red cat", method="dpo_diff")        # doctest: +SKIP
        >>> result.best_negative_prompt                                           # doctest: +SKIP
        'green, dog, blurry'

    Source: Wang et al. 2024, "On discrete prompt optimization for diffusion models" (DPO-Diff).
    """

    citation: ClassVar[str] = (
        "Wang et al., On discrete prompt optimization for diffusion models, 2024"
    )

    def parts(self, guided: bool) -> Parts:
        """The negative prompt (table 2); the prompt where there is no guidance to act through."""
        return "negative" if guided else "positive"
