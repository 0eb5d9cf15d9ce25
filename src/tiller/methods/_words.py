"""Searches for words: what `dpo_diff` and `attack` have in common, after one paper.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.rng import Stream
from tiller.core.search import Handover, Phase, Problem
from tiller.core.solver import Solver
from tiller.core.space import Space, starting_at
from tiller.methods._pictures import Pictures
from tiller.methods._soft_pictures import Shortcuts, SoftPictures
from tiller.methods._wording import answered, wording_of
from tiller.methods.base import Method, Task
from tiller.rewards._tower import EMOJI
from tiller.rewards.base import Reward
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.evolution import Evolution
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.solvers.random import Random
from tiller.solvers.rules import RmsProp
from tiller.spaces.put_back import PutBack, put_back
from tiller.spaces.relaxed_words import LARGEST, RelaxedWords, SimilarityPenalty
from tiller.spaces.words import LearnedWords, Words

SOLVERS = ("epo", "gpo+es", "gpo", "random")
Parts = Literal["positive", "negative", "both"]
SPACES = ("auto", "positive", "negative", "both")
_LEAST = {"n": 1, "library": 0, "noises": 1, "iterations": 1, "unseen": 0, "batch": 1}


@dataclass(frozen=True)
class WordSearch(Method):
    """Words for the picture: substitutes for the prompt's words, and a negative prompt.

    The phases of a run: the user's own words; if `solver` says so, a gradient ascent of the
    distribution over words (GPO), through the token embeddings and the whole text encoder; a search
    over whole prompts, drawn or bred from that distribution; and the winner with each of its words
    put back, which says what the word is worth. Every prompt is drawn from the same noises.

    Attributes:
        solver: epo is an evolution that begins near the user's words; gpo+es begins it with draws
            from a distribution over words that a gradient ascent has learned (GPO), gpo only
            draws from that one, random from one that knows nothing.
        space: which words may change: positive (synonyms in the prompt), negative (antonyms and
            generic words in the negative prompt), both; auto is the method's own.
        n: substitutes a word, at most.
        library: slots of the negative prompt that are filled from the library of generic ones.
        choices: a JSON file with words to veto, pin or add (docs/words.md).
        llm: ask a language model for substitutes too (docs/llm.md).
        noises: from how many noises each prompt is drawn; its score is the mean.
        min_similarity: how similar a prompt must stay to the user's, as the cosine of sentence
            embeddings; 0 for any.
        encoder: what embeds sentences: emoji (the bundled CLIP), the hub id or folder of a CLIP,
            or of a sentence encoder.
        similarity_weight: of the penalty on a distribution whose prompts are not similar enough.
        iterations: steps of the gradient ascent.
        lr: its learning rate (RMSprop).
        momentum: its momentum.
        clip_value: the gradient's numbers are cut to this, up and down.
        tau: temperature of the Gumbel-softmax.
        start: logit of the user's own words at the start, the others' being 0; at most 3. A word
            is kept with probability 1 / (1 + exp(-start)), whatever the number of its substitutes.
        t_first: where the shortcut gradient of the first step starts, as a part of the trajectory.
        t_end: where that of the last step would, one step further; in between it moves evenly.
        k: sampling steps that carry the gradient.
        population: prompts of the first generation.
        keep: how many of a generation live on.
        mutants: prompts made by mutation, a generation.
        crossovers: prompts made by crossover, a generation.
        mutation_rate: a word's probability to change in a mutant.
        gradient_share: the part of the budget at whose use the gradient ascent ends; its estimates
            count as images.
        leave_one_out: the most that is kept of the budget for putting words back; 0 for not.
        unseen: noises that the search did not see, from which the best and the user's own words
            are drawn at the end, outside the budget; 0 for none.
        batch: pictures drawn at once; the result does not depend on it.
    """

    solver: str = "epo"
    space: str = "auto"
    n: int = 5
    library: int = 4
    choices: str | None = None
    llm: bool = False
    noises: int = 3
    min_similarity: float = 0.0
    encoder: str = EMOJI
    similarity_weight: float = 1.0
    iterations: int = 20
    lr: float = 0.1
    momentum: float = 0.5
    clip_value: float = 0.025
    tau: float = 1.0
    start: float = 1.0
    t_first: float = 0.3
    t_end: float = 0.5
    k: int = 1
    population: int = 20
    keep: int = 10
    mutants: int = 10
    crossovers: int = 10
    mutation_rate: float = 0.1
    gradient_share: float = 0.5
    leave_one_out: float = 0.15
    unseen: int = 8
    batch: int = 32

    paths: ClassVar[tuple[str, ...]] = ("choices", "encoder")
    takes_affix: ClassVar[bool] = False
    default_budget: ClassVar[Budget] = Budget(images=96)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("solver", SOLVERS), ("space", SPACES)):
            if getattr(self, name) not in known:
                raise InvalidInput(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be at least {least}, got {getattr(self, name)!r}")
        if not 0 <= self.min_similarity <= 1:
            raise InvalidInput(f"min_similarity must lie in [0, 1], got {self.min_similarity!r}")
        if not (0 < self.gradient_share <= 1 and 0 <= self.leave_one_out < 1):
            raise InvalidInput(
                "expected 0 < gradient_share <= 1 and 0 <= leave_one_out < 1, parts of the budget; "
                f"got gradient_share={self.gradient_share}, leave_one_out={self.leave_one_out}"
            )
        # What only some solvers read is refused whichever is chosen.
        if not 0 <= self.start <= LARGEST:
            raise InvalidInput(f"start must lie in [0, {LARGEST:g}], got {self.start!r}")
        if not 0 < self.tau < math.inf:
            raise InvalidInput(f"tau must be positive and finite, got {self.tau!r}")
        if not 0 <= self.similarity_weight < math.inf:
            raise InvalidInput(
                f"similarity_weight must be finite and not negative, got {self.similarity_weight!r}"
            )
        Shortcuts(self.t_first, self.t_end, self.k, self.iterations)
        self._evolution()
        self._gradient()

    @abstractmethod
    def parts(self, guided: bool) -> Parts:
        """Which words may change where `space` is auto, for a sampler with guidance or without."""

    @property
    def repeats(self) -> int:
        """`noises`."""
        return self.noises

    def build(self, task: Task) -> list[Phase]:
        """The user's own words, the ascent, the search, and the winner's words put back.

        Raises:
            InvalidInput: a field is out of its range, or fits neither the words nor the sampler.
            Incompatible: gpo with a reward that has no gradient.
        """
        words = self.words_of(task)
        reward = Lowered(task.reward) if self.lowers else task.reward
        pictures = self.pictures(
            replace(task, reward=reward), batch_size=max(1, self.batch // self.noises)
        )
        user = starting_at(words, torch.zeros(1, len(words.choices), dtype=torch.int64))
        if words.size == 1:
            only = Problem(user, pictures, Random(batch=1))
            return [Phase("prompt", lambda _: only)]
        own = Problem(user, pictures, BestOfN(batch=1, n=1))
        phases = [Phase("prompt", lambda _: own)]
        if self.solver.startswith("gpo"):
            if not reward.differentiable:  # refused now, not after the first pictures
                raise Incompatible(
                    f"solver={self.solver} learns from the reward's gradient, and "
                    f"{task.reward.name} has none; set solver=epo (--set solver=epo), or choose "
                    "another reward"
                )
            ascent = self._ascent(words, pictures)
            part = self.gradient_share
            phases.append(Phase("gradient", lambda _: ascent, until=part, relaxed=True))
        phases.append(self._search_phase(words, pictures))
        if self.leave_one_out:
            phases.append(_put_back_phase(words, pictures))
        return phases

    def begun(self, task: Task) -> Self:
        """Without the language model where it does not answer: a run keeps its words."""
        own = super().begun(task)
        if self.llm and not answered(task.prompt, self._parts(task), self.n):
            return replace(own, llm=False)
        return own

    def _parts(self, task: Task) -> str:
        guided = task.model.branches(self.sampler(task.model).guidance_scale) == 2
        parts = self.parts(guided) if self.space == "auto" else self.space
        if parts != "positive" and not guided:
            raise InvalidInput(
                f"a negative prompt acts through guidance, and this sampler has none; got "
                f"space={self.space!r}: set space=positive, or a guidance_scale above 1"
            )
        return parts

    def words_of(self, task: Task) -> Words:
        """The space of words for a prompt, with the noises that all candidates share."""
        parts = self._parts(task)
        wording = wording_of(
            task,
            positive=parts != "negative",
            negative=parts != "positive",
            n=self.n,
            library=self.library,
            choices=self.choices,
            llm=self.llm,
            least=self.min_similarity,
            encoder=self.encoder,
        )
        return Words(task.model, wording, self.noise(task).sample(self.noises, Stream(task.seed)))

    def _ascent(self, words: Words, pictures: Pictures) -> Problem:
        """GPO: the ascent of the distribution over words."""
        limited = words.wording.least > 0 and self.similarity_weight > 0
        penalty = SimilarityPenalty(words, self.similarity_weight) if limited else None
        objective = SoftPictures(
            pictures,
            Shortcuts(self.t_first, self.t_end, self.k, self.iterations, first_round=1),
            tau=self.tau,
            regularisers=(penalty,) if penalty else (),
        )
        return Problem(RelaxedWords(words, self.start), objective, self._gradient())

    def _gradient(self) -> GradientSolver:
        return GradientSolver(
            rule=RmsProp(momentum=self.momentum),
            lr=self.lr,
            clip_value=self.clip_value,
            steps=self.iterations,
        )

    def _evolution(self) -> Evolution:
        return Evolution(
            self.population, self.keep, self.mutants, self.crossovers, self.mutation_rate
        )

    def _search_phase(self, words: Words, pictures: Pictures) -> Phase:
        """The search over whole prompts, drawn from what was learned or from where that starts."""
        learns = self.solver.startswith("gpo")
        start = RelaxedWords(words, self.start).logits

        def build(before: Handover | None) -> Problem:
            assert before is not None, "the user's own words come first"
            learned = LearnedWords(words, before.last[0] if learns else start)
            space: Space[Any] = starting_at(learned, learned.mode) if learns else learned
            known = ((tuple(before.best.z[0].tolist()), before.best.score),)
            solvers: dict[str, Solver[Any]] = {
                "epo": replace(self._evolution(), known=known),
                "gpo+es": replace(self._evolution(), known=known),
            }
            solver = solvers.get(self.solver, Random(batch=self.population, known=known))
            return Problem(space, pictures, solver)

        return Phase("search", build, until=1 - self.leave_one_out)


def _put_back_phase(words: Words, pictures: Pictures) -> Phase:
    """The winner with each of its words put back, in one round."""

    def build(before: Handover | None) -> Problem:
        assert before is not None, "something was searched before"
        space = PutBack(words, before.best.z, before.best.score)
        n = len(space.start)
        return Problem(space, pictures, BestOfN(batch=n, n=n))

    def asks(before: Handover) -> int:
        return len(put_back(words, before.best.z)[0])

    done = "the words of the best were put back"
    return Phase("words put back", build, asks=asks, done=done)


@dataclass(frozen=True)
class Lowered(Reward):
    """A reward upside down: what lowers it scores higher.

    Attributes:
        reward: what is to be lowered.
    """

    reward: Reward
    differentiable: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "differentiable", self.reward.differentiable)

    @property
    def name(self) -> str:
        """The reward's, negated."""
        return f"-({self.reward.name})"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The negated scores [n]."""
        return -self.reward(images, prompts)
