"""What a command says about the words that a run found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiller.terminal import clean, number

if TYPE_CHECKING:
    from tiller.runs.found_words import FoundWords
    from tiller.runs.record import Record


def answer(run_dir: Path) -> dict[str, Any]:
    """What `--json` says of a run that drew other words than the user's; else nothing.

    `similarity` is the best prompt's to the user's (None where it was not measured), `gains` the
    change of the score by each of its new words alone, `unseen` the journal's line about noises
    that the search did not see (None before its end).
    """
    record, found = _read(run_dir)
    if found is None:
        return {}
    keys = ("baseline_scores", "scores", "change", "noises")
    unseen = {key: record.unseen[key] for key in keys} if record.unseen else None
    worths = [dataclasses.asdict(worth) for worth in found.worths if not worth.dropped]
    return {"similarity": found.best.similarity, "gains": worths, "unseen": unseen}


def facts(run_dir: Path) -> list[tuple[str, str]]:
    """The lines of a summary about words: what was found, what each is worth, elsewhere."""
    record, found = _read(run_dir)
    if found is None:
        return []
    if not found.changed:
        lines = [("words", f"your own are the best of {len(found.prompts)} prompts")]
    else:
        lines = [("prompt", clean(found.best.prompt))]
        if found.best.negative_prompt:
            lines.append(("not", clean(found.best.negative_prompt)))
        lines += [("worth", text) for text in _worths(found)]
    if found.best.similarity is not None:
        lines.append(("similar", f"{found.best.similarity:.3f} to your prompt"))
    return [*lines, *(("unseen", text) for text in _unseen(record))]


def _read(run_dir: Path) -> tuple[Record, FoundWords | None]:
    from tiller.runs.found_words import found_words
    from tiller.runs.record import read_run

    record = read_run(run_dir)
    return record, found_words(record)


def _worths(found: FoundWords) -> list[str]:
    texts = []
    for worth in found.worths:
        generic = worth.part == "negative_prompt" and not worth.end
        word = worth.option if generic else f"{worth.word} → {worth.option}"
        note = ", put back" if worth.dropped else ""
        texts.append(clean(f"{worth.change:+z.4f} {word} ({worth.source}){note}"))
    return texts


def _unseen(record: Record) -> list[str]:
    """The change of each reward on noises that the search did not see, with its interval."""
    entry = record.unseen
    texts = []
    for name in sorted(entry.get("change", {}), key=lambda name: name in record.held_out):
        before, after = (_mean(entry[key][name]) for key in ("baseline_scores", "scores"))
        by = entry["change"][name]
        mark = " (held out)" if name in record.held_out else ""
        texts.append(
            clean(
                f"{name} {number(before)} → {number(after)} on {entry['noises']} other noises: "
                f"{by['mean']:+z.4f}, 95 % interval {by['low']:+z.4f} to {by['high']:+z.4f}{mark}"
            )
        )
    return texts


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
