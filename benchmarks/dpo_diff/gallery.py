"""Pictures of any words from numbered noises: drawn once, scored by every reward, judged.

Their scores are kept in a file, so nothing is drawn twice, by whichever script. Scripts that run
side by side may share it: each batch's lines are written in one go.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tiller.core.rng import Stream
from tiller.methods.base import Method
from tiller.models import Trajectory
from tiller.models.base import FrozenModel
from tiller.models.bundled.loaders import load_judge
from tiller.rewards import make_reward
from tiller.spaces.noise import Noise

REWARD = "spherical_clip"
HELD_OUT = "clip_heldout"
REWARDS = [REWARD, HELD_OUT, "clip"]

Words = tuple[str, str]
"""A prompt and a negative prompt."""


@dataclass(frozen=True)
class Seen:
    """One picture: every reward's score, and whether the judge sees all that the user asked for."""

    scores: dict[str, float]
    faithful: bool

    def value(self, name: str) -> float:
        """A reward's score, or the judge's verdict as a number."""
        return float(self.faithful) if name == "faithful" else self.scores[name]


@dataclass(frozen=True)
class Asked:
    """A picture to look at: the user's prompt, the words that draw it, and its noise.

    The noise is that of candidate `index` in a run with this seed.
    """

    prompt: str
    words: Words
    seed: int
    index: int


class Gallery:
    """Draws what is asked for, in batches, and remembers what it was worth.

    Args:
        model: draws.
        method: whose sampler settings are used.
        folder: keeps `pictures.jsonl`, a line a picture.
        batch: pictures drawn at once, fewer where the free memory takes fewer.
    """

    def __init__(
        self, model: FrozenModel, method: Method, folder: Path, *, batch: int = 32
    ) -> None:
        self.model = model
        self.path = Trajectory(model, method.sampler(model))
        self.rewards = make_reward(REWARDS)
        self.judge = load_judge()
        self.batch = batch
        self.drawn = 0
        self._file = folder / "pictures.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(asdict(self.path.settings), sort_keys=True)
        self._about = f"{model.fingerprint()} {settings}"
        self._known = dict(self._read())

    @property
    def calls_per_picture(self) -> int:
        """Denoiser forwards of one picture."""
        return self.path.forwards_per_image

    def look(self, asked: Sequence[Asked]) -> list[Seen]:
        """What each picture is worth, in the order asked."""
        new = [one for one in dict.fromkeys(asked) if self._key(one) not in self._known]
        size = min(self.batch, self.path.room(self.model.encode([""], [""]))) if new else 1
        for first in range(0, len(new), size):
            some = new[first : first + size]
            seen = dict(zip(map(self._key, some), self._draw(some), strict=True))
            self._known |= seen
            lines = [json.dumps({"key": key, **asdict(one)}) for key, one in seen.items()]
            with self._file.open("ab", buffering=0) as file:
                file.write("".join(f"{line}\n" for line in lines).encode())
            self.drawn += len(some)
        return [self._known[self._key(one)] for one in asked]

    def of(self, prompt: str, words: Words, noises: range, seed: int = 0) -> list[Seen]:
        """The pictures of some words from several noises."""
        return self.look([Asked(prompt, words, seed, index) for index in noises])

    @torch.no_grad()
    def _draw(self, asked: Sequence[Asked]) -> list[Seen]:
        words = [one.words for one in asked]
        with warnings.catch_warnings():  # that words are cut; the run that found them has said it
            warnings.simplefilter("ignore", UserWarning)
            told = self.model.encode([p for p, _ in words], [n for _, n in words])
        space = Noise(self.path.noise_shape, told)
        noise = torch.cat([space.sample(1, Stream(one.seed, position=one.index)) for one in asked])
        pictures = self.model.decode(self.path.run(noise, told)).float()
        prompts = [one.prompt for one in asked]
        scores = {k: v.tolist() for k, v in self.rewards.parts_scores(pictures, prompts).items()}
        right = self.judge.faithful(pictures, prompts)
        return [Seen({k: v[i] for k, v in scores.items()}, right[i]) for i in range(len(asked))]

    def _key(self, one: Asked) -> str:
        return json.dumps([self._about, one.prompt, *one.words, one.seed, one.index])

    def _read(self) -> list[tuple[str, Seen]]:
        lines = self._file.read_text(encoding="utf-8").split("\n") if self._file.exists() else []
        if lines and lines[-1]:  # an interrupted line has no end; what comes next begins a new one
            with self._file.open("ab", buffering=0) as file:
                file.write(b"\n")
        whole = [one for one in map(_parsed, lines) if one]
        return [(one["key"], Seen(one["scores"], one["faithful"])) for one in whole]


def _parsed(line: str) -> dict[str, Any]:
    """A line's object; nothing of a line that was interrupted."""
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return found
