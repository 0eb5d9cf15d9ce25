"""What the methods that learn affixes have in common: their fields, and their first phase."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from tiller.core.errors import InvalidInput, TillerNotice
from tiller.core.objective import Regulariser
from tiller.core.search import Phase, Problem
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.schedules import Constant, Exponential, Schedule
from tiller.spaces.affixes import Affixes
from tiller.spaces.insertion import AffixedPrompt, Conformity, Prompts, Words

ANCHORS = ("padding", "none")


@dataclass(frozen=True)
class AffixMethod(Method):
    """A method that searches the tokens before and after a prompt, in the encoder's output space.

    Attributes:
        prefix: tokens before the prompt, M_pre (IPGO, table 3: 10).
        suffix: tokens after it, M_suf (IPGO, table 3: 10).
        rank: columns of each basis, N, at most the width of the encoder's states (IPGO, table 3:
            30).
        form: rotated, the paper's; plain, free tokens; release, the authors' code.
        orthonormal: keep the bases' columns orthonormal (IPGO, equation 8).
        bounded: keep the coefficients in [-1, 1], the value constraint (IPGO, equation 10).
        rotate: turn the tokens by two angles a side (IPGO, equations 3 to 7).
        anchor: padding, the tokens are added to the state of the prompt's own padding, in whose
            place they stand, so that the search begins near the unsteered picture (ours); none,
            they stand by themselves (IPGO).
        start: words whose states the tokens begin as, after the prompt and free to move (ours).
            They say how many there are; prefix, suffix, rank, form, anchor and shrink say nothing
            then. None for a random start (IPGO).
        gamma: weight of the conformity penalty (IPGO, appendix B: 1e-3; 0 leaves it out).
        shrink: a side is at most so many times as long as the prompt with its ends (IPGO, appendix
            D, advises short affixes for short prompts; the rule is ours); none for as long as
            asked.
        lr: Adam's learning rate of the affixes (ours; IPGO, appendix B: 1e-3, which does not bring
            every random start above the unsteered picture within the budget).
        decay: what multiplies it every `decay_every` steps (IPGO, appendix B: .9; 1 for constant).
        decay_every: steps between (IPGO, appendix B: 10).
        clip_norm: largest norm of the affixes' gradient (IPGO, section 4.1: 1).
    """

    prefix: int = 10
    suffix: int = 10
    rank: int = 30
    form: str = "rotated"
    orthonormal: bool = True
    bounded: bool = True
    rotate: bool = True
    anchor: str = "padding"
    start: str | None = None
    gamma: float = 1e-3
    shrink: float | None = 2.0
    lr: float = 3e-3
    decay: float = 0.9
    decay_every: int = 10
    clip_norm: float | None = 1.0

    citation: ClassVar[str] = (
        "Ye et al., IPGO: indirect prompt gradient optimization on text-to-image generative models "
        "with high data efficiency, 2025"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrink is not None and not 0 < self.shrink < float("inf"):
            raise InvalidInput(
                f"shrink must be positive and finite, or none; got shrink={self.shrink}"
            )
        if not 0 < self.decay <= 1 or self.decay_every < 1:
            raise InvalidInput(
                "expected 0 < decay <= 1 (1 for a constant lr) and decay_every >= 1, got "
                f"decay={self.decay:g} and decay_every={self.decay_every}"
            )
        if self.anchor not in ANCHORS:
            raise InvalidInput(f"anchor must be {' or '.join(ANCHORS)}, got {self.anchor!r}")

    @abstractmethod
    def build(self, task: Task) -> list[Phase]:
        """The searches to run in turn."""

    def schedule(self) -> Schedule:
        """What multiplies the learning rate."""
        return Constant() if self.decay == 1 else Exponential(self.decay, self.decay_every)

    def affixes(
        self, model: FrozenModel, *, longest: int | None = None, moves: str = "all"
    ) -> Affixes:
        """The space of the tokens, each side at most `longest` of them."""
        if moves == "coefficients" and (self.form != "rotated" or self.start is not None):
            raise InvalidInput(
                "solvers that compare scores search the coefficients and angles of form=rotated "
                f"from a random start, got form={self.form!r} and start={self.start!r}; leave them "
                "out, or take a reward with a gradient"
            )
        if self.start is not None:
            start = _states(model, self.start)
            count, width = start.shape
            return Affixes(width, prefix=0, suffix=count, rank=1, form="plain", start=start)
        width = model.encode([""], [""]).prompt_embeds.shape[2]
        most = max(self.prefix, self.suffix) if longest is None else longest
        if self.rank > width and self.rank != type(self).rank:
            warnings.warn(
                f"rank={self.rank} is more than the width of {model.name}'s text states, so the "
                f"bases have {width} columns; set rank to at most that",
                TillerNotice,
                stacklevel=3,
            )
        return Affixes(
            width,
            min(self.prefix, most),
            min(self.suffix, most),
            rank=min(self.rank, width),
            form=self.form,
            orthonormal=self.orthonormal,
            bounded=self.bounded,
            rotate=self.rotate,
            anchored=self.anchor == "padding",
            moves=moves,
        )

    def space(self, task: Task, *, moves: str = "all", noise_moves: bool = False) -> AffixedPrompt:
        """Affixes around the task's prompt, at a noise of zeros; `at` gives it the run's own.

        Warns (`TillerNotice`) where the affixes are shortened for a short prompt.
        """
        words = self.words(task)
        affixes = self.affixes(task.model, longest=self._longest(task), moves=moves)
        asked = (self.prefix, self.suffix)
        if self.start is None and (affixes.prefix, affixes.suffix) != asked:
            (count,) = task.model.token_counts([task.prompt])
            warnings.warn(
                f"the prompt has {count} tokens with its ends, so it gets {affixes.prefix} + "
                f"{affixes.suffix} of its own instead of {self.prefix} + {self.suffix}, as the "
                "paper advises for short prompts (--set shrink=none keeps them long)",
                TillerNotice,
                stacklevel=4,
            )
        noise = self.noise(task)
        return AffixedPrompt(
            affixes, words, torch.zeros(1, *noise.shape), moving=noise if noise_moves else None
        )

    def conformity(self, space: AffixedPrompt) -> tuple[Regulariser, ...]:
        """The penalty on the mean token, if it has a weight."""
        batch = Prompts.of([space.words])
        penalty = Conformity(space.affix, lambda draw: batch, weight=self.gamma)
        return (penalty,) if self.gamma else ()

    def unsteered(self, task: Task) -> Phase:
        """The run's own noise, drawn without new tokens; what follows goes on from that noise.

        So the best is never worse than what the model draws by itself.
        """
        problem = Problem(self.noise(task), self.pictures(task), BestOfN(batch=1, n=1))
        return Phase("unsteered", lambda _: problem)

    def _longest(self, task: Task) -> int | None:
        if self.shrink is None:
            return None
        (count,) = task.model.token_counts([task.prompt])
        return max(1, int(self.shrink * count))


def _states(model: FrozenModel, text: str) -> torch.Tensor:
    """What the encoder makes of some words, without their beginning [count, width]."""
    (count,) = model.token_counts([text])
    if count < 3:
        raise InvalidInput(f"expected words as start, got {text!r}; leave it out for a random one")
    encoded = model.encode([text], [""])
    words = Words.of(encoded, min(count, encoded.prompt_embeds.shape[1]))
    return words.states[0, 1:].detach().float().cpu()


def at(space: AffixedPrompt, noise: torch.Tensor) -> AffixedPrompt:
    """The same space at another noise [1, slots, C, h, w]."""
    return AffixedPrompt(space.affixes, space.words, noise, space.moving)
