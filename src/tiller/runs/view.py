"""What a page shows of a run: texts ready to print, pictures ready to embed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiller.runs.advice import advice
from tiller.runs.embedded import PictureView, RowView, picture, rows, thumbnail
from tiller.runs.files import size_text
from tiller.runs.record import Record
from tiller.runs.templating import changed, direction, number
from tiller.runs.words_view import UnseenView, WordsView, picture_width, unseen_view, words_view

FRAMES = 12  # of the filmstrip, at most: evenly chosen, so that the file stays small


@dataclass(frozen=True)
class ScoreView:
    """One reward of the unsteered and the best picture, as texts."""

    name: str
    label: str  # the name, behind its weight in the sum that was optimized
    tag: str  # "held out", "lowered" or "optimized"
    held_out: bool
    before: str
    after: str
    change: str
    direction: str  # "good", "bad" or "": which way the search wants it


@dataclass(frozen=True)
class FrameView:
    """One picture of the filmstrip."""

    picture: PictureView
    title: str
    score: str


@dataclass(frozen=True)
class RunView:
    """A run as texts and pictures; see the templates for where each goes."""

    name: str
    created: str
    prompt: str
    negative_prompt: str
    lowers: bool
    method: str
    model: str
    rewards: list[str]
    seed: str
    budget: str
    before: PictureView | None
    after: PictureView | None
    best_step: int
    words: WordsView | None
    unseen: UnseenView | None
    noises: list[RowView]
    scores: list[ScoreView]
    total: ScoreView | None  # the weighted sum, where it is not one reward's score
    frames: list[FrameView]
    stopped: str
    ended: str  # the same in a word or two
    advice: list[str]
    error: str | None
    costs: list[tuple[str, str]]
    model_calls: str
    time: str
    command: str
    unsaid: list[str]
    settings: list[tuple[str, str]]
    remarks: list[tuple[str, str]]
    citation: str
    versions: str

    @property
    def by_name(self) -> dict[str, ScoreView]:
        """The scores by their reward's name."""
        return {score.name: score for score in self.scores}


def view(record: Record) -> RunView:
    """Everything that a page shows of `record`.

    Raises:
        RunError: a picture of the run is damaged.
    """
    spec = record.spec
    cost = record.last.get("cost") or {}
    versions = spec.get("versions") or {}
    before, after = record.baseline_image, record.best_image
    return RunView(
        name=record.path.name,
        created=record.created,
        prompt=record.prompt or "(an empty prompt)",
        negative_prompt=record.negative_prompt,
        lowers=record.lowers,
        method=record.method,
        model=Path(str(spec.get("model") or "")).name,
        rewards=record.rewards or record.optimized,
        seed=str(spec.get("seed", "")),
        budget=str(spec.get("budget") or ""),
        before=None if before is None else picture(before),
        after=None if after is None else picture(after),
        best_step=record.best_step,
        words=words_view(record),
        unseen=unseen_view(record),
        noises=_noises(record),
        scores=_scores(record),
        total=_total(record),
        frames=_frames(record),
        stopped=ending(record),
        ended=_ended(record),
        advice=advice(record),
        error=record.error,
        costs=costs_of(cost),
        model_calls=f"{cost.get('forwards', 0) + cost.get('backwards', 0):,}",
        time=duration(float(cost.get("seconds", 0))),
        command=_command(record),
        unsaid=record.unsaid,
        settings=_settings(record),
        remarks=record.remarks,
        citation=record.citation,
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(4.25), duration(75), duration(7300)
        ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _scores(record: Record) -> list[ScoreView]:
    before = record.baseline.get("scores") or {}
    after = record.last.get("scores") or {}
    names = sorted(dict.fromkeys([*before, *after]), key=lambda name: name in record.held_out)
    return [_score(name, record, before.get(name), after.get(name)) for name in names]


def _score(name: str, record: Record, before: float | None, after: float | None) -> ScoreView:
    held_out, lowered = name in record.held_out, record.lowered(name)
    known = before is not None and after is not None
    gain = after - before if before is not None and after is not None else 0.0
    return ScoreView(
        name=name,
        label=record.label(name),
        tag="held out" if held_out else "lowered" if lowered else "optimized",
        held_out=held_out,
        before="–" if before is None else number(before),
        after="–" if after is None else number(after),
        change=changed(gain) if known else "–",
        direction=direction(gain, lowers=lowered),
    )


def _total(record: Record) -> ScoreView | None:
    scores = [entry.get("scores") or {} for entry in (record.baseline, record.last)]
    before, after = map(record.total, scores)
    return _score("sum", record, before, after) if record.summed else None


def _frames(record: Record) -> list[FrameView]:
    """The unsteered picture, then the best so far as it changed."""
    found = spread(record.frames(), FRAMES - 1)
    if not found:
        return []
    sign = -1 if record.lowers else 1
    frames = [
        FrameView(thumbnail(path), f"round {entry['step']}", number(sign * entry["best_score"]))
        for entry, path in found
    ]
    before = record.baseline_image
    if before is not None:
        frames.insert(0, FrameView(thumbnail(before), "not steered", ""))
    return frames


def _noises(record: Record) -> list[RowView]:
    """All of a candidate's pictures, where each was drawn from several noises."""
    files = [("Before", "baseline-seeds"), ("After", "best-seeds")]
    paths = [(title, record.path / "images" / f"{name}.png") for title, name in files]
    return rows(paths, picture_width(record))


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of `items`, evenly chosen, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def ending(record: Record) -> str:
    """Why a run ended, as a heading says it."""
    if record.error is not None:
        return "It stopped with an error"
    stopped = record.stopped
    if stopped is None:
        return "It has not finished"
    kind, _, detail = stopped.partition(": ")
    if kind == "budget":
        return f"It stopped because the budget was used ({detail})"
    return f"It stopped: {stopped}"


def _command(record: Record) -> str:
    """The command that repeats the run, an option a line: it reads well and still pastes."""
    text = ""
    for word in record.arguments():
        text += (" \\\n  " if word.startswith("--") else " " if text else "") + shlex.quote(word)
    return text


def _ended(record: Record) -> str:
    if record.error is not None:
        return "error"
    return (record.stopped or "not finished").removeprefix("budget: ")


def costs_of(cost: dict[str, Any]) -> list[tuple[str, str]]:
    """A cost's names and numbers, for people; what was not used is left out."""
    calls = cost.get("forwards", 0) + cost.get("backwards", 0)
    shown = [
        ("Time", duration(float(cost.get("seconds", 0)))),
        ("Rounds", f"{cost.get('steps', 0):,}"),
        ("Forwards + backwards", f"{calls:,}"),
    ]
    counted = {
        "Images": "images",
        "Forwards": "forwards",
        "Backwards": "backwards",
        "Recomputed": "recomputes",
        "Images scored": "reward_calls",
        "LLM tokens": "tokens",
    }
    shown += [(name, f"{cost[key]:,}") for name, key in counted.items() if cost.get(key)]
    if cost.get("peak_memory_bytes"):
        shown.append(("Peak memory", size_text(cost["peak_memory_bytes"])))
    return shown


def _settings(record: Record) -> list[tuple[str, str]]:
    spec = record.spec
    rows: list[tuple[str, Any]] = [
        ("prompt", record.prompt),
        ("negative prompt", record.negative_prompt or None),
        ("model", spec.get("model")),
        ("method", record.method),
        *((f"method: {name}", value) for name, value in record.fields.items()),
        ("rewards", ", ".join(record.rewards)),
        ("held out", ", ".join(record.held_out) or None),
        ("budget", spec.get("budget")),
        ("seed", spec.get("seed")),
        *((f"sampler: {name}", value) for name, value in (spec.get("sampler") or {}).items()),
    ]
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in rows
        if value is not None
    ]
