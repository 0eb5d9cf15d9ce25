"""What a method is: a frozen dataclass whose fields are its settings, and the phases it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.objective import Regulariser
from tiller.core.paths import located
from tiller.core.rng import Stream
from tiller.core.search import Phase
from tiller.methods._affix_files import absolute_affixes, affix_digests, load_affixes
from tiller.methods._pictures import Pictures
from tiller.models.base import Conditioning, FrozenModel, SamplerSettings
from tiller.models.checkpointing import Checkpoint
from tiller.models.inputs import Inputs
from tiller.models.trajectory import Gradient, Trajectory
from tiller.rewards.base import Reward
from tiller.spaces.insertion import Words
from tiller.spaces.noise import Noise

MOST_NOISES = 1024  # of one candidate, or of a round's: they are all held at once


@dataclass(frozen=True)
class Task:
    """What the user asked for, in the engine's terms.

    Attributes:
        model: the frozen model.
        prompt: the user's words; the reward compares the picture with them.
        negative_prompt: what guidance steers away from.
        reward: what to raise.
        seed: the run's, for what a method draws once and shares among its candidates.
    """

    model: FrozenModel
    prompt: str
    negative_prompt: str
    reward: Reward
    seed: int = 0

    def conditioning(self) -> Conditioning:
        """The encoded prompts, one row."""
        return self.model.encode([self.prompt], [self.negative_prompt])


@dataclass(frozen=True)
class Method(ABC):
    """A way to search a frozen model's inputs. One file, one frozen dataclass, one `build`.

    The fields below override the model's own sampling; None keeps what the model declares.

    Attributes:
        num_inference_steps: denoising steps T.
        guidance_scale: classifier-free guidance, diffusers' convention (1 + w of the papers).
        scheduler: ddim, lms, euler, pndm, dpmsolver++, euler_a or lcm.
        checkpoint: which steps keep their activations: auto, keep, recompute or a number of steps.
        stop_below: end the run where P(z), the probability of its noise, falls below this (a
            typical noise has about .25, .001 is far off); 0 for never. Where noises are drawn and
            not moved, those below it are passed over.
        patience: keep only what is better by its score and by the (first) held-out reward, and end
            the run when for so many rounds nothing was; 0 for not looking at the held-out reward.
        affix: files of learned affixes that go around the prompt, FILE or FILE:WEIGHT, several
            with commas between them, the first next to the prompt.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    checkpoint: str = "auto"
    stop_below: float = 0.0
    patience: int = 0
    affix: str = ""

    citation: ClassVar[str] = ""
    redrawable: ClassVar[bool] = True  # plain sampling redraws the picture from its noise and words
    needs_gradient: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...]] = ()  # fields that may name a file or a folder
    takes_affix: ClassVar[bool] = True  # what it draws is told through `conditioning`
    lowers: ClassVar[bool] = False  # it searches for low rewards (an attack)
    default_budget: ClassVar[Budget] = Budget(steps=30)

    def __post_init__(self) -> None:
        if not 0 <= self.stop_below < 1:
            raise InvalidInput(f"stop_below must lie in [0, 1), got stop_below={self.stop_below}")
        if self.patience < 0:
            raise InvalidInput(f"patience must be at least 0, got patience={self.patience}")
        for name, noises in (("noises", self.repeats), ("unseen", self.unseen)):
            if noises > MOST_NOISES:
                raise InvalidInput(f"{name} must be at most {MOST_NOISES}, got {noises}")
        if self.affix and not self.takes_affix:
            raise InvalidInput(
                f"{type(self).__name__} encodes prompts of its own and takes no affix, got "
                f"affix={self.affix!r}; leave it out, or use ipgo, dno or raw"
            )

    @abstractmethod
    def build(self, task: Task) -> list[Phase]:
        """The searches to run in turn, each starting from the last one's result."""

    def check_batch(self, batch: int) -> None:
        """Refuse a round whose noises would not fit into memory, whatever the budget leaves."""
        if not 1 <= batch <= MOST_NOISES:
            raise InvalidInput(f"batch must lie in [1, {MOST_NOISES}], got {batch}")

    @property
    def repeats(self) -> int:
        """S, how many noises a candidate is drawn from; its score is the mean over them.

        They are those of the run's first S candidates, in every method.
        """
        return 1

    @property
    def unseen(self) -> int:
        """From how many other noises the best and the user's own words are drawn at the end.

        For methods whose result does not belong to one noise; 0 for the others.
        """
        return 0

    def notes(self) -> tuple[str, ...]:
        """What to know of a run by this method: shown as it begins, and kept in its journal."""
        return ()

    def begun(self, task: Task) -> Self:
        """These settings as a run of the task begins with them, for its record.

        What depends on more than the arguments (a server's being there, the current folder) is
        settled here once, so that a resumed run is the same run.
        """
        named = {name: located(getattr(self, name) or "").absolute() for name in self.paths}
        there: dict[str, Any] = {
            k: str(v) for k, v in named.items() if getattr(self, k) and v.exists()
        }
        return replace(self, affix=absolute_affixes(self.affix), **there)

    def contents(self) -> dict[str, Any]:
        """What the files that these settings name hold, for a run's record, by a name each.

        Plain data that differs where they do: a run goes on with the same contents only.
        """
        return {"affixes": affix_digests(self.affix)} if self.affix else {}

    def sampler(self, model: FrozenModel) -> SamplerSettings:
        """The model's own sampling with this method's overrides."""
        own = model.defaults
        steps, guidance = self.num_inference_steps, self.guidance_scale
        return replace(
            own,
            num_inference_steps=own.num_inference_steps if steps is None else steps,
            guidance_scale=own.guidance_scale if guidance is None else guidance,
            scheduler=self.scheduler or own.scheduler,
        )

    def trajectory(self, model: FrozenModel) -> Trajectory:
        """The sampler that this method searches."""
        return Trajectory(model, self.sampler(model))

    def words(self, task: Task) -> Words:
        """The prompt without its padding, within the affixes of files if there are any."""
        counts = task.model.token_counts([task.prompt, task.negative_prompt])
        words = Words.of(task.conditioning(), *counts)
        for affix in load_affixes(self.affix, task.model):
            words = words.within(affix)
        return words

    def conditioning(self, task: Task) -> Conditioning:
        """What the denoiser is told to begin with, one row: the prompt, within its affixes."""
        return self.words(task).conditioning() if self.affix else task.conditioning()

    def noise(self, task: Task, trust: float | None = None) -> Noise:
        """The space of this method's noises at the task's prompt."""
        return Noise(self.trajectory(task.model).noise_shape, self.conditioning(task), trust)

    def pictures(
        self,
        task: Task,
        gradient: Gradient | None = None,
        regularisers: tuple[Regulariser, ...] = (),
        batch_size: int | None = None,
    ) -> Pictures:
        """The task's reward over this method's sampler, less penalties over z."""
        return Pictures(
            self.trajectory(task.model),
            task.reward,
            task.prompt,
            gradient=gradient,
            checkpoint=self._checkpoint(),
            batch_size=batch_size,
            regularisers=regularisers,
            repeats=self.repeats,
        )

    def _checkpoint(self) -> Checkpoint:
        text = self.checkpoint
        if text.isdecimal():
            return int(text)
        if text not in ("auto", "keep", "recompute"):
            raise InvalidInput(
                f"checkpoint must be auto, keep, recompute or a number of steps, got {text!r}"
            )
        return cast(Checkpoint, text)

    def baseline(self, task: Task, seed: int) -> Inputs:
        """What is drawn without steering: the prompt, and the run's first noise (or S of them).

        Without affixes too: what they change is seen beside it.
        """
        space = Noise(self.trajectory(task.model).noise_shape, task.conditioning())
        return space.decode(space.sample(self.repeats, Stream(seed)))
