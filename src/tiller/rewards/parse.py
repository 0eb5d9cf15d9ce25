"""From what a user writes to a reward: names, weights, settings, functions and files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, get_type_hints

import torch

from tiller.core.discovery import discover
from tiller.core.errors import InvalidInput
from tiller.core.paths import located
from tiller.core.settings import meant
from tiller.rewards._callable import PROMPTS, CallableReward, probe, wrap
from tiller.rewards._compose import Part, RewardSum, checked
from tiller.rewards._file import load_function
from tiller.rewards.base import Reward, settings_of

RewardSpec = str | Reward | Callable[..., Any]

_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<function>[^:]*))?(?::(?P<weight>[^:]*))?")
_FORMS = '"name", "name:weight", "colour:red", or "path/to/file.py:function"'


@dataclass(frozen=True)
class _Context:
    """Where a callable's gradient is probed."""

    probe_size: int
    device: torch.device | str


def available() -> dict[str, type[Reward]]:
    """Every reward found in this folder, by its command line name."""
    return discover("tiller.rewards", Reward)  # type: ignore[type-abstract]


def make_reward(
    spec: RewardSpec | Sequence[RewardSpec],
    *,
    probe_size: int = 64,
    device: torch.device | str = "cpu",
    trial: bool = False,
) -> RewardSum:
    """The reward that `spec` means; several are summed by their weights.

    Args:
        spec: one of these, or a list of them:
            a name of `available()`, with settings and a weight as it needs: `"clip"`,
            `"clip:0.5"`, `"colour:red"`, `"colour:red:0.5"`, `"jpeg:quality=80"`;
            a file and a function in it, `"path/to/file.py:function"`, also with a weight;
            a Python callable, images [n, 3, H, W] in [0, 1] (and n prompts) to scores [n];
            a `Reward`.
        probe_size: sides of the random pictures on which a callable's gradient is probed.
        device: where the probe's pictures are.
        trial: score the probe's pictures with every other reward too, so that one whose model
            cannot be loaded is refused now, and not once a picture has been drawn.

    Raises:
        InvalidInput: an unknown name, a weight that is 0 or not finite, a file that does not run.
        RewardError: a callable, or with `trial` any reward, that fails on the probe.

    Warns:
        TillerNotice: a callable without gradients is treated as a black box.

    Example:
        >>> reward = make_reward(["brightness", "colour:Red:-0.5"])
        >>> reward.spec, reward.differentiable
        (['brightness', 'colour:red:-0.5'], True)
    """
    several = isinstance(spec, Sequence) and not isinstance(spec, str)
    context = _Context(probe_size, device)
    ones: Sequence[RewardSpec] = spec if several else (spec,)  # type: ignore[assignment]
    parts: list[Part] = []
    for one in ones:  # no comprehension: a notice names the caller's line, three frames up
        parts.append(_part(one, context))
    found = RewardSum(tuple(parts))
    if trial:
        _try(found, context)
    return found


def check_names(*specs: RewardSpec | Sequence[RewardSpec] | None) -> None:
    """Refuse a typing error in a reward's name or settings, before anything is loaded for it.

    Raises:
        InvalidInput: as `make_reward`, for what is no file and no function.
    """
    for spec in specs:
        several = isinstance(spec, Sequence) and not isinstance(spec, str)
        for one in spec if several else (spec,):  # type: ignore[union-attr]
            if isinstance(one, str) and not _FILE.fullmatch(one.strip()):
                _from_name(one.strip())


@torch.no_grad()
def _try(reward: RewardSum, context: _Context) -> None:
    """Score the probe's pictures with every part that was not probed as it was made."""
    for part in reward.parts:
        if not isinstance(part.reward, CallableReward):
            checked(part.reward, probe(context.probe_size, context.device), PROMPTS)


def _part(spec: Any, context: _Context) -> Part:
    if isinstance(spec, RewardSum):
        raise InvalidInput("a sum of rewards cannot be part of another; list its parts instead")
    if isinstance(spec, Reward):
        return Part(spec, 1.0, spec.name if _ours(type(spec)) else None)
    if isinstance(spec, str):
        match = _FILE.fullmatch(spec.strip())
        return _from_file(match, context) if match else _from_name(spec.strip())
    if not callable(spec) or isinstance(spec, type):
        raise InvalidInput(f"expected a reward as {_FORMS}, or a callable; got {spec!r}")
    return Part(wrap(spec, probe_size=context.probe_size, device=context.device))


def _ours(kind: type[Reward]) -> bool:
    return kind in available().values()


def _from_name(text: str) -> Part:
    head, *rest = (piece.strip() for piece in text.split(":"))
    known = available()
    kind = known.get(head.lower().replace("-", "_"))
    if kind is None:
        raise InvalidInput(
            f"unknown reward {head!r}; expected one of {', '.join(known)}, or "
            f"path/to/file.py:function.{meant(head.lower(), known)}"
        )
    weight = 1.0
    if rest and (number := _number(rest[-1])) is not None:
        weight = number
        rest.pop()
    reward = _build(kind, text, rest)
    return Part(reward, weight, _with_weight(reward.name, weight))


def _build(kind: type[Reward], text: str, pieces: list[str]) -> Reward:
    """The reward with the settings in `pieces`: `field=value`, or its argument's bare value."""
    settable = {field.name: field for field in settings_of(kind)}
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for piece in pieces:
        key, equals, value = piece.partition("=")
        if not (equals and key.isidentifier()):
            key, value = kind.argument or "", piece if _number(piece) is None else ""
        if key not in settable or key in values or not value:
            takes = ", ".join(f"{name}=..." for name in settable) or "no settings"
            raise InvalidInput(
                f"cannot read {piece!r} in reward {text!r}: expected a weight, a number, at the "
                f"end; before it this reward takes {takes}"
            )
        values[key] = _convert(value, hints[key], f"{key} of reward {text!r}")
    for name, field in settable.items():
        if field.default is MISSING and name not in values:
            raise InvalidInput(f'reward {text!r} needs its {name}, as in "colour:red"')
    return kind(**values)


def _convert(value: str, hint: Any, where: str) -> Any:
    if hint not in (int, float):
        return value
    try:
        return hint(value)
    except ValueError:
        kind = "a whole number" if hint is int else "a number"
        raise InvalidInput(f"{where} must be {kind}, got {value!r}") from None


def _from_file(match: re.Match[str], context: _Context) -> Part:
    text, function = match[0], match["function"]
    if not function or not function.isidentifier():
        raise InvalidInput(f"expected path/to/file.py:function, got {text!r}; name the function")
    weight = 1.0
    if match["weight"] is not None:
        number = _number(match["weight"])
        if number is None:
            raise InvalidInput(f"the weight in {text!r} must be a number")
        weight = number
    path = located(match["path"]).absolute()
    found = load_function(path, function)
    label = f"{path.name}:{function}"
    if isinstance(found, type) and issubclass(found, Reward):
        found = found()
    if isinstance(found, Reward):
        reward = found
    else:
        reward = wrap(found, label, probe_size=context.probe_size, device=context.device)
    return Part(reward, weight, _with_weight(f"{path}:{function}", weight), path)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _with_weight(name: str, weight: float) -> str:
    return name if weight == 1 else f"{name}:{weight!r}"
