"""The page of a run that trained an affix: unseen prompts without and with it, and the course."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiller.runs.charts import Curve, Panel, charts
from tiller.runs.embedded import picture
from tiller.runs.record import Record
from tiller.runs.templating import changed, number, rendered
from tiller.runs.view import costs_of, ending

AFFIX = "affix"  # the kind of such a run, in its spec
SHEET = 16  # unseen prompts whose pictures are kept, in rows of four


@dataclass(frozen=True)
class UnseenView:
    """One reward on the prompts that were held back, as texts."""

    name: str
    held_out: bool
    without: str
    within: str
    gain: str
    wins: str
    verdict: str  # "good", "bad" or "": where the interval lies


def affix_page(record: Record) -> str:
    """The page's text.

    Raises:
        RunError: a picture of the run is damaged.
    """
    spec, steps = record.spec, record.steps
    found = record.last.get("unseen") or {}
    before, after = record.baseline_image, record.path / "images" / "best.png"
    return rendered(
        "affix.html.j2",
        prompts=len(spec["prompts"]),
        unseen=len(spec["unseen"]),
        method=record.method,
        rewards=record.rewards,
        model=Path(str(spec.get("model") or "a pipeline object")).name,
        before=None if before is None else picture(before),
        after=picture(after) if found and after.is_file() else None,
        each=_each(record, list(found)),
        scores=[
            _unseen(name, name in record.held_out, one, several=len(spec["unseen"]) > 1)
            for name, one in found.items()
        ],
        charts=charts(_panels(record), "course", "steps") if steps else None,
        file=str(spec.get("file") or ""),
        stopped=ending(record),
        error=record.error,
        costs=costs_of(record.last.get("cost") or {}),
        command=record.command() if spec.get("command") else None,
        settings=_settings(record),
        remarks=record.remarks,
        citation=record.citation,
        run=record.path.name,
        created=record.created,
        versions=", ".join(f"{k} {v}" for k, v in (spec.get("versions") or {}).items()),
    )


def _unseen(
    name: str, held_out: bool, found: dict[str, dict[str, float]], *, several: bool
) -> UnseenView:
    """A reward of the unseen prompts; one prompt has no interval and no verdict."""
    gain, wins = found["gain"], found["wins"]
    spread, share, verdict = "", "", ""
    if several:
        spread = f" [{gain['low']:+.3g}, {gain['high']:+.3g}]"
        share = f" [{wins['low']:.0%}, {wins['high']:.0%}]"
        verdict = "good" if gain["low"] > 0 else "bad" if gain["high"] < 0 else ""
    return UnseenView(
        name=name,
        held_out=held_out,
        without=number(found["before"]["value"]),
        within=number(found["after"]["value"]),
        gain=f"{gain['value']:+.3g}{spread}".replace("-", "−"),
        wins=f"{wins['value']:.0%}{share}",
        verdict=verdict,
    )


def _each(record: Record, names: list[str]) -> list[tuple[str, list[str]]]:
    """The prompts of the sheet in its order, each with the gains of these rewards."""
    before, after = record.baseline.get("each") or {}, record.last.get("each") or {}
    gains = [
        [changed(b - a) for a, b in zip(before[name], after[name], strict=True)] for name in names
    ]
    return [
        (text, [one[i] for one in gains]) for i, text in enumerate(record.spec["unseen"][:SHEET])
    ]


def _panels(record: Record) -> list[Panel]:
    """Each step's mean reward, which is of other prompts every time, and the mean of each epoch."""
    spec, steps = record.spec, record.steps
    x, y = [float(e["step"]) for e in steps], [float(e["reward"]) for e in steps]
    batch, count = min(int(spec["batch"]), len(spec["prompts"])), len(spec["prompts"])
    rounds = -(-count // batch)
    sizes = [min(batch, count - batch * place) for place in range(rounds)]
    ends, means = [], []
    for first in range(0, len(y) - rounds + 1, rounds):
        some = zip(y[first : first + rounds], sizes, strict=True)
        ends.append(x[first + rounds - 1])
        means.append(sum(reward * size for reward, size in some) / count)
    curves = [Curve(x, y, "each step", points=True), Curve(ends, means, "epochs")]
    return [Panel("Mean reward of the prompts that are learned from", curves)]


def _settings(record: Record) -> list[tuple[str, str]]:
    spec = record.spec
    plain = {name: spec.get(name) for name in ("batch", "epochs", "seed", "budget", "model")}
    own: dict[str, Any] = {**plain, **record.fields, **(spec.get("sampler") or {})}
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in own.items()
    ]
