"""A run read back: its settings, its journal in order, its pictures; for reports and exports."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiller.core.errors import RunError
from tiller.runs.files import explained
from tiller.runs.journal import Entry
from tiller.runs.spec import flattened, texts
from tiller.runs.store import BEST, RunStore

ATTACK = "attack"
"""The command that lowers a score, and its method."""


@dataclass(frozen=True)
class Record:
    """One run, as its folder tells it.

    Attributes:
        path: the folder.
        spec: all that repeats the run.
        created: when, ISO text in UTC.
        entries: the journal's lines.
    """

    path: Path
    spec: dict[str, Any]
    created: str
    entries: tuple[Entry, ...]

    @property
    def method(self) -> str:
        """The method's name."""
        return str(flattened(self.spec).get("method") or "")

    @property
    def fields(self) -> dict[str, Any]:
        """The method's settings."""
        method = self.spec.get("method")
        return dict(method.get("settings") or {}) if isinstance(method, dict) else {}

    @property
    def citation(self) -> str:
        """The paper that the method comes from, or an empty text."""
        return str(self.spec.get("citation") or "")

    @property
    def lowers(self) -> bool:
        """Whether the search lowered the score: an attack."""
        return bool(self.spec.get("lowers", self.method == ATTACK))

    @property
    def prompt(self) -> str:
        """What was asked for."""
        return str(self.spec.get("prompt") or "")

    @property
    def negative_prompt(self) -> str:
        """What was to be avoided."""
        return str(self.spec.get("negative_prompt") or "")

    @property
    def held_out(self) -> tuple[str, ...]:
        """The names of the rewards that were only watched: the keys of their scores."""
        names = self.baseline.get("held_out")
        if isinstance(names, list):  # of a concept's run it is a loss
            return tuple(names)
        return tuple(weighted(name)[0] for name in self._watched)

    @property
    def rewards(self) -> list[str]:
        """The rewards that were optimized, as they were given, weights included."""
        return texts(self.spec.get("rewards") or self.spec.get("reward"))

    @property
    def optimized(self) -> list[str]:
        """Their names as the scores have them, which Python objects have too."""
        names = self.baseline.get("scores") or {}
        return [name for name in names if name not in self.held_out]

    @property
    def weights(self) -> dict[str, float]:
        """What each of them counts in the sum that was optimized, by its name; empty if unknown."""
        if kept := self.baseline.get("weights"):
            return dict(kept)
        names, given = self.optimized, dict(map(weighted, self.rewards))
        if not given:  # older runs say nothing of Python objects
            return dict.fromkeys(names, 1.0)
        if given.keys() <= set(names):
            return given
        known = len(given) == len(names)  # a file's function has a shorter name in the scores
        return dict(zip(names, given.values(), strict=True)) if known else {}

    def label(self, name: str) -> str:
        """A reward's name behind its weight, where that is not 1."""
        weight = self.weights.get(name, 1.0)
        return name if weight == 1 else f"{weight:g} {name}"

    def lowered(self, name: str) -> bool:
        """Whether the search wants this reward's score low: by an attack or by its weight."""
        return self.lowers != (self.weights.get(name, 1.0) < 0)

    @property
    def summed(self) -> bool:
        """Whether what was optimized is another number than one reward's score."""
        return bool(self.weights) and list(self.weights.values()) != [1.0]

    def total(self, scores: Mapping[str, float]) -> float | None:
        """The weighted sum of a picture's scores; None where one of them is not known."""
        if not self.weights or any(scores.get(name) is None for name in self.weights):
            return None
        return float(sum(weight * scores[name] for name, weight in self.weights.items()))

    @property
    def _watched(self) -> list[str]:
        return texts(self.spec.get("held_out"))

    @property
    def baseline(self) -> Entry:
        """The journal's line about the unsteered picture, or an empty one."""
        return next((e for e in self.entries if e.get("kind") == "baseline"), {})

    @property
    def steps(self) -> list[Entry]:
        """The rounds, in order."""
        return [e for e in self.entries if e.get("kind") == "step"]

    @property
    def result(self) -> Entry:
        """A concept's losses and last drawings; empty where rounds came after them, or none yet."""
        ends = (e for e in reversed(self.entries) if e.get("kind") in ("step", "result"))
        end = next(ends, {})
        return end if end.get("kind") == "result" else {}

    @property
    def last(self) -> Entry:
        """The latest round, or an empty entry."""
        return next((e for e in reversed(self.entries) if e.get("kind") == "step"), {})

    @property
    def unseen(self) -> Entry:
        """What the best was worth on noises that the search did not see, or an empty entry."""
        return next((e for e in reversed(self.entries) if e.get("kind") == "unseen"), {})

    @property
    def best_entry(self) -> Entry:
        """The round in which the best was found, or an empty entry."""
        found: Entry = {}
        for entry in self.steps:
            if not found or entry["best_score"] > found["best_score"]:
                found = entry
        return found

    @property
    def best_step(self) -> int:
        """Its number, 0 if there is none."""
        return int(self.best_entry.get("step", 0))

    @property
    def stopped(self) -> str | None:
        """Why the search ended, None while it has not."""
        stopped = self.last.get("stopped")
        return None if stopped is None else str(stopped)

    @property
    def error(self) -> str | None:
        """What the run failed with, if that was the last thing to happen."""
        kinds = [e for e in self.entries if e.get("kind") in {"step", "error", "resumed"}]
        return str(kinds[-1].get("text")) if kinds and kinds[-1]["kind"] == "error" else None

    @property
    def remarks(self) -> list[tuple[str, str]]:
        """Notices and errors, as (kind, text)."""
        wanted = ("notice", "error")
        return [(e["kind"], str(e["text"])) for e in self.entries if e.get("kind") in wanted]

    @property
    def best_image(self) -> Path | None:
        """The best picture so far."""
        named = [str(e["image"]) for e in self.steps if e.get("image")]
        for name in ("images/best.png", *reversed(named)):
            if (self.path / name).is_file():
                return self.path / name
        return None

    @property
    def baseline_image(self) -> Path | None:
        """The unsteered picture."""
        path = self.path / str(self.baseline.get("image") or "images/baseline.png")
        return path if path.is_file() else None

    def frames(self) -> list[tuple[Entry, Path]]:
        """The rounds that found a better picture, with it."""
        found = [(e, self.path / e["image"]) for e in self.steps if e.get("image")]
        return [(entry, path) for entry, path in found if path.is_file()]

    def inputs(self) -> tuple[dict[str, Any], bytes] | None:
        """The metadata and the bytes of `best.safetensors`, None where there is none.

        Raises:
            RunError: it cannot be read.
        """
        path = self.path / BEST
        if not path.is_file():
            return None
        with explained(path, "read the best picture's inputs"):
            data = path.read_bytes()
        try:
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])["__metadata__"]
            return flattened(json.loads(header["tiller"])), data
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({error!r}). Resume or repeat the run to write it again"
            ) from error

    def command(self) -> str:
        """The command that repeats the run, quoted for a shell.

        A spec may carry it as `command`, a list of arguments; otherwise it is put together.
        """
        return shlex.join(self.arguments())

    def arguments(self) -> list[str]:
        """The same command, word by word."""
        given = self.spec.get("command")
        return texts(given) if given else self._arguments()

    @property
    def unsaid(self) -> list[str]:
        """What the command leaves out, because only Python can say it."""
        spec, options = self.spec, self.spec.get("model_options") or {}
        objects = [what for what in ("model", "reward") if what in spec and spec[what] is None]
        given = [f"{n}={v}" for n, v in options.items() if v is not None and n != "concepts"]
        return [
            *(f"the {what}, a Python object" for what in objects),
            *(["a concept, a Python object"] if None in self._concepts else []),
            *(f"{option}, given to load_model" for option in given),
        ]

    @property
    def _concepts(self) -> list[str | None]:
        """The files of the words that the model was taught; None for one that is no file."""
        return list((self.spec.get("model_options") or {}).get("concepts") or [])

    def _arguments(self) -> list[str]:
        spec = self.spec
        attack = self.method == ATTACK  # a command of its own
        words: list[str] = ["tiller", ATTACK if attack else "steer"]
        if not self.prompt.startswith("-"):
            words.append(self.prompt)
        method = None if attack else self.method
        single = (("--method", method), ("--model", spec.get("model")))
        words += [w for flag, value in single if value for w in (flag, str(value))]
        words += [w for file in self._concepts if file for w in ("--concept", str(file))]
        words += [w for name in self.rewards for w in ("--reward", name)]
        words += [w for name in self._watched for w in ("--held-out", name)]
        if self.negative_prompt:
            words += ["--negative-prompt", self.negative_prompt]
        if spec.get("seed") is not None:
            words += ["--seed", str(spec["seed"])]
        if spec.get("budget"):
            words += ["--budget", str(spec["budget"])]
        for name, value in self.fields.items():
            plain = value if isinstance(value, str) else json.dumps(value)
            words += ["--set", f"{name}={'none' if value is None else plain}"]
        return [*words, "--", self.prompt] if self.prompt.startswith("-") else words


def read_run(path: str | Path) -> Record:
    """The run in folder `path`; nothing is changed, and a run under way can be read.

    Raises:
        RunError: there is no run, or it is damaged.
    """
    store = RunStore.open(path)
    return Record(store.path, store.spec, store.created, tuple(store.journal.read()))


def weighted(reward: str) -> tuple[str, float]:
    """A reward's name and its weight.

    Example:
        >>> weighted("clip:0.5"), weighted("colour:red")
        (('clip', 0.5), ('colour:red', 1.0))
    """
    name, _, weight = reward.rpartition(":")
    try:
        return (name, float(weight)) if name else (reward, 1.0)
    except ValueError:
        return reward, 1.0
