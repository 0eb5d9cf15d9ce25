"""What an affix is trained on: the plan, the prompts that are held back, and the run's record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.methods._catalog import make_method
from tiller.methods.ipgo import Ipgo
from tiller.models.base import FrozenModel
from tiller.models.loader import is_emoji
from tiller.rewards import RewardSum
from tiller.rewards._held_out import held_out_of, notice_bundled
from tiller.runs.affix_report import AFFIX
from tiller.runs.store import versions


@dataclass(frozen=True)
class Plan:
    """What to train, and on what.

    Attributes:
        prompts: the training set.
        unseen: prompts that are only looked at; none for no look.
        reward: what to raise, as `steer` takes it.
        held_out: rewards to look at and not to raise; None chooses one that is not raised.
        negative_prompt: what guidance steers away from.
        batch: prompts a round (IPGO, section 5.4: 4 or 10).
        epochs: how often each prompt comes (IPGO, appendix B: 20).
        budget: a limit besides the epochs, such as "images=1000" (IPGO, section 5.4); a `Budget`
            or text.
        seed: of everything random.
        settings: fields of `ipgo`; the learning rate is constant unless `decay` is given.

    Source of the defaults: Ye et al. 2025, "IPGO", section 5.4 and appendix B.
    """

    prompts: Sequence[str]
    unseen: Sequence[str] = ()
    reward: Any = "clip"
    held_out: str | Sequence[str] | None = None
    negative_prompt: str = ""
    batch: int = 4
    epochs: int = 20
    budget: Budget | str | None = None
    seed: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompts", "unseen"):
            if isinstance(given := getattr(self, name), str):
                raise InvalidInput(f"expected a list of texts as {name}, got {given!r}")
            texts = [text.strip() for text in getattr(self, name) if text.strip()]
            object.__setattr__(self, name, texts)
        if not self.prompts or self.batch < 1 or self.epochs < 1:
            raise InvalidInput(
                f"expected prompts, batch >= 1 and epochs >= 1, got {len(self.prompts)} prompts, "
                f"batch={self.batch}, epochs={self.epochs}"
            )
        if both := set(self.prompts) & set(self.unseen):
            raise InvalidInput(
                f"unseen prompts are not learned from, and {min(both)!r} is among both "
                f"({len(both)} in all); leave it out of one of them"
            )

    @property
    def limits(self) -> Budget:
        """The budget, the epochs among its limits."""
        rounds = self.epochs * -(-len(self.prompts) // min(self.batch, len(self.prompts)))
        if self.budget is None:
            return Budget(steps=rounds)
        own = Budget.parse(self.budget) if isinstance(self.budget, str) else self.budget
        return dataclasses.replace(own, steps=min(own.steps or rounds, rounds))


def split(prompts: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """The prompts, and a share of them held back, chosen by the seed; both in the order given.

    A prompt that is there more than once is on one side only, and held back once.

    Raises:
        InvalidInput: a share outside [0, 1), or one that leaves nothing to learn from.

    Example:
        >>> split(["a", "b", "c", "d"], 0.25, seed=0)
        (['b', 'c', 'd'], ['a'])
    """
    if not 0 <= share < 1:
        raise InvalidInput(f"the share of prompts to hold back must lie in [0, 1), got {share}")
    distinct = list(dict.fromkeys(prompts))
    generator = torch.Generator().manual_seed(seed % 2**64)
    order = torch.randperm(len(distinct), generator=generator).tolist()
    back = {distinct[i] for i in order[: round(share * len(distinct))]}
    if len(back) == len(distinct):
        raise InvalidInput(f"expected prompts to learn from, got {len(prompts)}, all held back")
    return (
        [prompt for prompt in prompts if prompt not in back],
        [prompt for prompt in distinct if prompt in back],
    )


def ipgo_of(plan: Plan) -> Ipgo:
    """The method with the plan's settings.

    Raises:
        InvalidInput: a setting that is none, or says nothing of a training.
    """
    _, method = make_method("ipgo", {"decay": 1.0, **plan.settings})
    assert isinstance(method, Ipgo), "that is its name"
    _check_used(method)
    return method


def spec_of(plan: Plan, model: FrozenModel, reward: RewardSum, file: Path) -> dict[str, Any]:
    """All that repeats the training, for its record.

    Raises:
        InvalidInput: a setting that says nothing of a training, or no such held-out reward.
    """
    method, size = ipgo_of(plan), model.defaults.height
    watched = held_out_of(plan.held_out, reward, probe_size=size, device=model.device)
    if not is_emoji(model):
        notice_bundled(reward, watched)
    return {
        "kind": AFFIX,
        "prompt": f"{len(plan.prompts)} prompts",
        "prompts": plan.prompts,
        "unseen": plan.unseen,
        "file": str(file),
        "batch": plan.batch,
        "epochs": plan.epochs,
        "method": {"name": "ipgo", "settings": dataclasses.asdict(method)},
        "citation": method.citation,
        "model": model.source,
        "model_options": model.options,
        "model_fingerprint": model.fingerprint(),
        "negative_prompt": plan.negative_prompt,
        "reward": reward.spec,
        "held_out": watched.spec,
        "budget": str(plan.limits),
        "seed": plan.seed,
        "sampler": dataclasses.asdict(method.sampler(model)),
        "versions": versions(),
    }


def _check_used(method: Ipgo) -> None:
    """Refuse fields that say nothing of a training."""
    if method.affix:
        raise InvalidInput(
            f"an affix is trained on plain prompts, got affix={method.affix!r}; leave it out"
        )
    for name, why in _UNUSED.items():
        got = getattr(method, name)
        if got is not None and got != getattr(Ipgo(), name):
            raise InvalidInput(f"{why}, got {name}={got!r}; leave it out")


_UNUSED = {
    "patience": "unseen prompts are looked at when the training is over",
    "stop_below": "a training moves no noise whose probability could fall",
    "shrink": "an affix for many prompts is as long as asked, whatever their lengths",
}
