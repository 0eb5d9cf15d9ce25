"""What an evolution kept of each word, counted from a run's journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tiller.runs.found_words import Learned
from tiller.runs.journal import Entry
from tiller.runs.record import Record

_EVOLVE = ("epo", "gpo+es")
"""Solvers of a search for words that end with an evolution."""


@dataclass(frozen=True)
class Survivors:
    """The prompts that lived on when an evolution ended.

    Attributes:
        count: how many there are.
        first: prompts of the first generation.
        words: how often each option of each word stands in them; `start`: in the first generation.
    """

    count: int
    first: int
    words: tuple[Learned, ...]


def survivors(record: Record) -> Survivors | None:
    """The survivors of a run; None where nothing was bred, or the journal does not hold it."""
    solver, keep = record.fields.get("solver"), record.fields.get("keep")
    return survivors_of(record.steps, keep) if solver in _EVOLVE and keep else None


def survivors_of(steps: Sequence[Entry], keep: int) -> Survivors | None:
    """The same, of a journal's rounds: the user's own words count as a parent."""
    bred = [e for e in steps if e.get("slots") and e.get("phase") in ("prompt", "search")]
    first = next((e["candidates"] for e in bred if e["phase"] == "search"), None)
    if first is None:
        return None
    everyone = [candidate for entry in bred for candidate in entry["candidates"]]
    alive = sorted(everyone, key=lambda one: -one["score"])[:keep]  # of equals the older
    slots = bred[0]["slots"]
    words = tuple(_counted(j, slot, first, alive) for j, slot in enumerate(slots))
    return Survivors(len(alive), len(first), words)


def _counted(
    j: int, slot: dict[str, Any], first: Sequence[dict[str, Any]], alive: Sequence[dict[str, Any]]
) -> Learned:
    """How often each option of slot j is said: the user's own, then in the order of appearance."""
    before, after = ([candidate["says"][j] for candidate in some] for some in (first, alive))
    own = slot["word"] if slot["part"] == "prompt" else ""
    options = tuple(dict.fromkeys([own, *after, *before]))
    start, end = (
        tuple(said.count(option) / len(said) for option in options) for said in (before, after)
    )
    return Learned(slot["part"], slot["word"], options, start, end)
