"""What a reward is: pictures and prompts in, one score a picture out. Higher is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any, ClassVar

from torch import Tensor


class Reward(ABC):
    """A judge of pictures. A subclass is one frozen dataclass in one file named after it.

    Its fields are its settings. Called by itself a reward neither checks nor counts anything:
    `RewardSum` does both, once, for every reward.

    Attributes:
        differentiable: the scores carry gradients to the images. A reward that is not is given
            detached float32 images on the CPU, and runs without a graph.
        argument: the field that a name's second part sets, as in `colour:red`; None for no such
            field.

    Example:
        >>> import torch
        >>> from tiller.rewards.brightness import Brightness
        >>> reward = Brightness()
        >>> reward.name, reward(torch.full((1, 3, 8, 8), 0.25), ["a grey square"]).tolist()
        ('brightness', [0.25])
    """

    differentiable: bool = True
    argument: ClassVar[str | None] = None

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1] for the n prompts."""

    @property
    def bundled(self) -> bool:
        """Whether it was trained on the bundled model's scenes, and knows no other pictures."""
        return False

    @property
    def name(self) -> str:
        """The name on the command line: the file's name, then the settings that are not default."""
        parts = [type(self).__module__.rpartition(".")[2]]
        for field in settings_of(type(self)):
            value = getattr(self, field.name)
            if value != field.default:
                plain = field.name == self.argument
                parts.append(str(value) if plain else f"{field.name}={value}")
        return ":".join(parts)


def settings_of(kind: type[Reward]) -> list[Field[Any]]:
    """The fields that a user may set, none for a class that is no dataclass."""
    return [field for field in fields(kind) if field.init] if is_dataclass(kind) else []
