"""The weighted sum of rewards: the one place where scores are checked and pictures counted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiller.core.budget import count
from tiller.core.errors import InvalidInput, RewardError, TillerError
from tiller.rewards.base import Reward

AT_ONCE = 256  # pictures that a reward is given in one call, so that its memory is bounded


@dataclass(frozen=True)
class Part:
    """One reward of a sum.

    Args:
        reward: what is called.
        weight: of its score in the sum; any finite number but 0.
        spec: the text from which `make_reward` makes this part again; None if there is none.
        file: the Python file that the reward comes from; None if it comes from no such text.

    Raises:
        InvalidInput: the weight is 0, infinite or not a number.
    """

    reward: Reward
    weight: float = 1.0
    spec: str | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight != 0):
            raise InvalidInput(
                f"the weight of reward {self.name!r} must be a finite number other than 0, got "
                f"{self.weight!r}; leave the reward out if it should not count"
            )

    @property
    def name(self) -> str:
        """The reward's own name: the key of its score."""
        return self.reward.name


@dataclass(frozen=True)
class RewardSum(Reward):
    """r = sum_k w_k r_k: what a run optimizes or reports, with every part's own score.

    It differentiates only if all parts do; otherwise no part keeps a graph, so that nobody climbs
    the gradient of half a sum.

    Args:
        parts: the rewards and their weights.

    Raises:
        InvalidInput: there is no part, or two have the same name.

    Example:
        >>> import torch
        >>> from tiller.rewards.brightness import Brightness
        >>> from tiller.rewards.colour import Colour
        >>> both = RewardSum((Part(Brightness(), 2.0), Part(Colour("white"))))
        >>> both(torch.ones(1, 3, 8, 8), ["snow"]).item()
        2.0
        >>> both.parts_scores(torch.ones(1, 3, 8, 8), ["snow"])["brightness"].item()
        1.0
    """

    parts: tuple[Part, ...]
    differentiable: bool = field(init=False)

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names:
            raise InvalidInput('expected at least one reward, such as "clip"; got none')
        for name in names:
            if names.count(name) > 1:
                raise InvalidInput(
                    f"two rewards are called {name!r}; name each once, with a weight, and give "
                    "functions names of their own"
                )
        all_parts = all(part.reward.differentiable for part in self.parts)
        object.__setattr__(self, "differentiable", all_parts)

    @property
    def name(self) -> str:
        """The parts' names with their weights, joined by " + "."""
        return " + ".join(
            part.name if part.weight == 1 else f"{part.weight:g} {part.name}" for part in self.parts
        )

    @property
    def files(self) -> dict[str, str]:
        """The Python files that the parts come from, and the SHA-256 of what each holds."""
        found = [part.file for part in self.parts if part.file is not None]
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}

    @property
    def spec(self) -> list[str] | None:
        """What `make_reward` makes this sum from again; None if a part is a Python object."""
        specs = [part.spec for part in self.parts if part.spec is not None]
        return specs if len(specs) == len(self.parts) else None

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The weighted sums [n] for images [n, 3, H, W] in [0, 1] and n prompts.

        Raises:
            InvalidInput: images or prompts of a wrong shape or number.
            RewardError: a reward raised, or returned other than n finite scores.
        """
        return self.total(self.parts_scores(images, prompts))

    def total(self, scores: dict[str, Tensor]) -> Tensor:
        """The weighted sum [n] of what `parts_scores` returned."""
        weighted = [part.weight * scores[part.name] for part in self.parts]
        return torch.stack(weighted).sum(dim=0)

    def parts_scores(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Every part's own score [n], before its weight, by name. Counts n reward calls.

        Raises:
            InvalidInput: images or prompts of a wrong shape or number.
            RewardError: a reward raised, or returned other than n finite scores.
        """
        _check_inputs(images, prompts)
        count(reward_calls=len(images))
        graph = self.differentiable and torch.is_grad_enabled()
        found: dict[str, list[Tensor]] = {part.name: [] for part in self.parts}
        with torch.set_grad_enabled(graph):
            for first in range(0, max(1, len(images)), AT_ONCE):
                some = images[first : first + AT_ONCE]
                pictures, told = some if graph else some.detach(), prompts[first : first + AT_ONCE]
                for part in self.parts:
                    found[part.name].append(checked(part.reward, pictures, told))
        return {name: s[0] if len(s) == 1 else torch.cat(s) for name, s in found.items()}


def checked(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The reward's scores [n], in float32 (float64 for float64 images) on the images' device.

    A reward without gradients gets float32 copies of the images on the CPU, and no graph.

    Raises:
        RewardError: it raised, or returned other than n finite scores.
    """
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    try:
        if reward.differentiable:
            raw: Any = reward(images.to(dtype), prompts)
        else:
            with torch.no_grad():
                raw = reward(images.detach().to("cpu", torch.float32), prompts)
    except TillerError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward {reward.name!r} raised {describe(error)}; it was given images "
            f"{list(images.shape)} and {len(prompts)} prompts. Correct the reward or choose "
            "another one, then start a new run"
        ) from error
    scores = _as_scores(reward.name, raw, len(images))
    if not bool(torch.isfinite(scores).all()):
        raise RewardError(_not_finite(reward.name, scores, images))
    return scores.to(device=images.device, dtype=dtype)


def describe(error: BaseException) -> str:
    """`Type: message` on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _as_scores(name: str, raw: Any, n: int) -> Tensor:
    """The reward's answer as a tensor [n]; arrays and lists of numbers are taken too."""
    try:
        scores = torch.as_tensor(raw)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r} must return a tensor of {n} scores, got {type(raw).__name__}; return "
            "one number for each of the images [n, 3, H, W]"
        ) from error
    if scores.is_complex():
        raise RewardError(f"reward {name!r} must return real scores, got {scores.dtype}")
    if scores.shape != (n,):
        remedy = (
            "Reduce every dimension but the first, for example by scores.flatten(1).mean(1)"
            if scores.ndim > 1 and len(scores) == n
            else "It is given all n images at once, [n, 3, H, W]: return a score for each, for "
            "example torch.tensor([score(image) for image in images])"
        )
        raise RewardError(
            f"reward {name!r} must return one score an image, shape [{n}]; got shape "
            f"{list(scores.shape)}. {remedy}"
        )
    return scores


def _not_finite(name: str, scores: Tensor, images: Tensor) -> str:
    got = ", ".join(f"{score:g}" for score in scores.detach().tolist())
    if not bool(torch.isfinite(images).all()):
        return (
            f"reward {name!r} was given images that are not finite and scored them [{got}]; the "
            "model or the step made them: try a smaller step (lr) or a higher precision (dtype)"
        )
    return (
        f"reward {name!r} must return finite scores, got [{got}]; look for a division by zero, the "
        "logarithm or the root of zero, or an overflow in half precision"
    )


def _check_inputs(images: Tensor, prompts: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InvalidInput(
            f"a reward takes images [n, 3, H, W] of floats in [0, 1], got {list(images.shape)} of "
            f"{images.dtype}"
        )
    if isinstance(prompts, str) or len(prompts) != len(images):
        got = "one string" if isinstance(prompts, str) else f"{len(prompts)}"
        raise InvalidInput(f"a reward takes one prompt an image, {len(images)} of them; got {got}")
