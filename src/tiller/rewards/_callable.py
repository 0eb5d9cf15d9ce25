"""A user's function as a reward: how it wants to be called, and whether gradients pass through."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput, RewardError, TillerNotice
from tiller.core.rng import keyed_generator
from tiller.rewards._compose import checked, describe
from tiller.rewards.base import Reward

Prompts = Literal["no", "second", "keyword"]


@dataclass(frozen=True)
class CallableReward(Reward):
    """A Python function of images, or of images and prompts, as a reward.

    Each call gets copies, so a function that works in place changes nobody's pictures.

    Args:
        function: images [n, 3, H, W] in [0, 1] (and n prompts) to scores [n].
        label: its name in scores and messages.
        prompts: whether the function takes prompts, and how.
        differentiable: whether it is given a graph.
    """

    function: Callable[..., Any]
    label: str
    prompts: Prompts
    differentiable: bool

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Whatever the function returns for images [n, 3, H, W] and n prompts."""
        copies = images.clone()
        try:
            if self.prompts == "no":
                scores: Tensor = self.function(copies)
            elif self.prompts == "second":
                scores = self.function(copies, list(prompts))
            else:
                scores = self.function(copies, prompts=list(prompts))
        except (Exception, SystemExit) as error:
            place = line_of(error, _source_file(self.function))
            if place is None:
                raise
            raise RewardError(
                f"reward {self.name!r} raised {describe(error)} ({place}); it was given images "
                f"{list(images.shape)} and {len(prompts)} prompts. Correct the "
                "function, then start a new run"
            ) from error
        return scores


def wrap(
    function: Callable[..., Any],
    label: str | None = None,
    *,
    probe_size: int = 64,
    device: torch.device | str = "cpu",
) -> CallableReward:
    """The function as a reward, with its gradient probed once on two small random pictures.

    Args:
        function: images [n, 3, H, W] in [0, 1] (and n prompts) to scores [n].
        label: its name; None takes the function's own.
        probe_size: sides of the probe's pictures, in pixels.
        device: where the probe's pictures are.

    Raises:
        InvalidInput: it does not take one or two arguments.
        RewardError: it fails on the probe with and without gradients, or its scores are unusable.

    Warns:
        TillerNotice: no gradient passes through it, so it is treated as a black box.
    """
    name = label or _name(function)
    prompts = _how_prompts(function, name)
    white = CallableReward(function, name, prompts, differentiable=True)
    black = CallableReward(function, name, prompts, differentiable=False)
    images = probe(probe_size, device)
    reason = _why_black_box(white, images)
    if reason is None:
        return white
    checked(black, images, PROMPTS)
    warnings.warn(
        f"no gradient passes through reward {name!r} ({reason}), so it is treated as a black box: "
        "methods that sample or evolve can use it, methods that need gradients cannot",
        TillerNotice,
        stacklevel=4,
    )
    return black


PROMPTS = ("a red cat", "a blue dog")  # what the probe's pictures are scored against


def probe(size: int, device: torch.device | str) -> Tensor:
    """Two random pictures [2, 3, size, size], always the same."""
    generator = keyed_generator(0, "reward probe")
    return torch.rand((2, 3, size, size), generator=generator).to(device)


def _why_black_box(reward: CallableReward, images: Tensor) -> str | None:
    """Why no usable gradient of the scores reaches the images, or None if one does."""
    with torch.enable_grad():
        leaf = images.clone().requires_grad_()
        try:
            scores = checked(reward, leaf, PROMPTS)
        except RewardError as error:
            return _cause(error)
        if not scores.requires_grad:
            return "its scores are detached from the images"
        try:
            grad: Tensor | None = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0]
        except RuntimeError as error:
            return describe(error)
    if grad is None:
        return "its scores are detached from the images"
    if not bool(torch.isfinite(grad).all()):
        return "its gradient is not finite on random pictures"
    if not bool(grad.any()):
        return "its gradient is zero everywhere on random pictures"
    return None


def _cause(error: RewardError) -> str:
    return f"with gradients it fails: {describe(error.__cause__ or error)}"


def _how_prompts(function: Callable[..., Any], name: str) -> Prompts:
    """Decide from the signature; a second parameter with a default counts if named prompts."""
    target = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return "no"
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    by_name = [p for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is p.empty]
    starred = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if (
        len(required) > 2
        or not (positional or starred)
        or any(p.name != "prompts" for p in by_name)
    ):
        raise InvalidInput(
            f"reward {name!r} must take images, or images and prompts; its signature is "
            f"{name}{inspect.signature(target)}. Give further parameters default values"
        )
    if by_name:
        return "keyword"
    if len(required) == 2 or (len(positional) >= 2 and positional[1].name == "prompts"):
        return "second"
    if any(p.kind == p.KEYWORD_ONLY and p.name == "prompts" for p in parameters):
        return "keyword"
    return "second" if starred and len(positional) < 2 else "no"


def line_of(error: BaseException, file: str | None) -> str | None:
    """`file, line 7` of the deepest place inside the user's file where the error arose."""
    frames = traceback.extract_tb(error.__traceback__) if file else []
    inside = [frame for frame in frames if frame.filename == file]
    return f"{file}, line {inside[-1].lineno}" if inside else None


def _source_file(function: Callable[..., Any]) -> str | None:
    target: Any = inspect.unwrap(function)
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    code = getattr(target, "__code__", None) or getattr(type(target).__call__, "__code__", None)
    if isinstance(function, torch.nn.Module):
        code = getattr(type(function).forward, "__code__", None)
    return code.co_filename if code is not None else None


def _name(function: Callable[..., Any]) -> str:
    target: Any = function
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    name = getattr(target, "__name__", type(target).__name__)
    return "lambda" if name == "<lambda>" else str(name)
