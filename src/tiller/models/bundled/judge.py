"""The judge: says what a picture shows, to measure faithfulness. It is never a reward.

A small convolutional network with one head per label: how many subjects, which subject in which
colour in each place (left, right), which background. It answers under inference mode and in Python
values, so that nothing can be differentiated through it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tiller.core.errors import InvalidInput

from .captions import BACKGROUNDS, COLOUR_NAMES, NATURAL, SUBJECT_NAMES, Spec, parse

HEADS = (2, *(len(SUBJECT_NAMES), len(COLOUR_NAMES)) * 2, len(BACKGROUNDS))


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip, the first with the stride."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.norm_one = nn.BatchNorm2d(outward)
        self.two = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.norm_two = nn.BatchNorm2d(outward)
        self.skip = nn.Conv2d(inward, outward, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inward, h, w] -> [n, outward, h / stride, w / stride]."""
        y = F.relu(self.norm_one(self.one(x)))
        return F.relu(self.norm_two(self.two(y)) + self.skip(x))


class JudgeNet(nn.Module):
    """Pictures [n, 3, 64, 64] in [-1, 1] -> logits of all heads, side by side [n, sum(HEADS)].

    The last features are pooled over the left half, the right half and the whole picture, which is
    where the labels' places are.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 48, 80, 128)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.stem = nn.Conv2d(3, widths[0], 4, 2, 1)
        blocks = [Residual(widths[0], widths[0], 1)]
        blocks += [Residual(a, b, 2) for a, b in pairwise(widths)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Linear(6 * widths[-1], 256), nn.ReLU(), nn.Linear(256, sum(HEADS))
        )

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        features = self.blocks(F.relu(self.stem(images)))
        half = features.shape[-1] // 2
        views = (features[..., :half], features[..., half:], features)
        pooled = [p for v in views for p in (v.mean((2, 3)), v.amax((2, 3)))]
        logits: Tensor = self.head(torch.cat(pooled, dim=-1))
        return logits


@dataclass(frozen=True)
class Verdict:
    """What the judge sees: subjects with colours from left to right, and the background."""

    spec: Spec
    confidence: float  # product of the heads' probabilities for this answer

    def subjects_right(self, asked: Spec) -> bool:
        """Whether it shows exactly the subjects asked for, in any order."""
        return sorted(s for s, _ in self.spec.subjects) == sorted(s for s, _ in asked.subjects)

    def colours_right(self, asked: Spec) -> bool:
        """Whether the colours are those asked for, whatever the subjects, in any order.

        A colour that is not named ("a cat") means the natural one.
        """
        seen = sorted(c or NATURAL for _, c in self.spec.subjects)
        return seen == sorted(c or NATURAL for _, c in asked.subjects)

    def background_right(self, asked: Spec) -> bool:
        """Whether the background is the one asked for; any is right if none was."""
        return asked.background in (None, self.spec.background)

    def faithful(self, asked: Spec) -> bool:
        """Whether all that was asked for is there, each subject in its own colour, and no more."""
        key = _order
        same = sorted(self.spec.subjects, key=key) == sorted(asked.subjects, key=key)
        return same and self.background_right(asked)


class Judge:
    """Evaluates pictures against prompts; gives no gradient.

    Example:
        >>> from tiller.models.bundled import load_judge
        >>> judge = load_judge()
        >>> judge.faithful(torch.zeros(1, 3, 64, 64), ["a red cat on a blue background"])
        [False]
    """

    def __init__(self, net: JudgeNet) -> None:
        self._net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: Path, config: Path) -> Judge:
        """Read the network from its two files."""
        net = JudgeNet(tuple(json.loads(config.read_text())["widths"]))
        net.load_state_dict({k: v.float() for k, v in load_file(str(weights)).items()})
        return cls(net)

    def to(self, device: torch.device | str) -> Judge:
        """The same judge, at work on another device."""
        self._net.to(device)
        return self

    @torch.inference_mode()
    def verdict(self, images: Tensor) -> list[Verdict]:
        """What each picture of `images` [n, 3, H, W] in [0, 1] shows.

        Raises:
            InvalidInput: the tensor has another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise InvalidInput(
                f"expected images of shape [n, 3, H, W] in [0, 1], got {list(images.shape)}"
            )
        pixels = images.detach().float().to(next(self._net.parameters()).device)
        if pixels.shape[-2:] != (64, 64):
            pixels = F.interpolate(pixels, (64, 64), mode="bicubic", antialias=True)
        batches = torch.split(pixels.clamp(0, 1) * 2 - 1, 256)
        logits = torch.cat([self._net(batch) for batch in batches])
        best = [part.softmax(-1).max(-1) for part in torch.split(logits, list(HEADS), dim=-1)]
        sure = torch.stack([b.values for b in best], 1).tolist()
        which = torch.stack([b.indices for b in best], 1).tolist()
        return [_verdict(row, chances) for row, chances in zip(which, sure, strict=True)]

    def faithful(self, images: Tensor, prompts: list[str]) -> list[bool]:
        """Whether each picture shows all that its prompt names, rightly coloured."""
        verdicts = self.verdict(images)
        return [v.faithful(parse(p)) for v, p in zip(verdicts, prompts, strict=True)]

    def subjects_right(self, images: Tensor, prompts: list[str]) -> list[bool]:
        """Whether each picture shows the subjects that its prompt names, in any colour."""
        verdicts = self.verdict(images)
        return [v.subjects_right(parse(p)) for v, p in zip(verdicts, prompts, strict=True)]

    def colours_right(self, images: Tensor, prompts: list[str]) -> list[bool]:
        """Whether each picture shows the subject colours that its prompt names."""
        verdicts = self.verdict(images)
        return [v.colours_right(parse(p)) for v, p in zip(verdicts, prompts, strict=True)]


def _order(item: tuple[str, str | None]) -> tuple[str, str]:
    return item[0], item[1] or NATURAL


def _verdict(which: list[int], chances: list[float]) -> Verdict:
    two, background = which[0], which[-1]
    subjects = []
    for slot in range(two + 1):
        colour = COLOUR_NAMES[which[2 + 2 * slot]]
        subject = SUBJECT_NAMES[which[1 + 2 * slot]]
        subjects.append((subject, None if colour == NATURAL else colour))
    confidence = 1.0
    for chance in (*chances[: 3 + 2 * two], chances[-1]):
        confidence *= chance
    return Verdict(Spec(tuple(subjects), BACKGROUNDS[background]), confidence)
