"""The page of a run that learned a concept: what it was given, what it drew, how the loss fell."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiller.runs.charts import Curve, Panel, charts
from tiller.runs.embedded import PictureView, thumbnail
from tiller.runs.record import Record
from tiller.runs.templating import number, rendered
from tiller.runs.view import costs_of, ending, spread

CONCEPT = "concept"  # the kind of such a run, in its spec
MOST = 12  # sample drawings that the page shows, evenly chosen


@dataclass(frozen=True)
class GivenView:
    """One picture as it was cropped, and what was done to it."""

    picture: PictureView
    name: str
    notes: str


@dataclass(frozen=True)
class DrawnView:
    """The pictures of one moment."""

    title: str
    pictures: list[PictureView]
    loss: str


def concept_page(record: Record) -> str:
    """The page's text.

    Raises:
        RunError: a picture of the run is damaged.
    """
    spec, result = record.spec, record.result
    losses = result.get("losses") or {}
    panels = _panels(record)
    return rendered(
        "concept.html.j2",
        token=str(spec["token"]),
        subject=str(spec["subject"]),
        prompt=record.prompt,
        method=record.method,
        model=Path(str(spec.get("model") or "a pipeline object")).name,
        given=_given(record),
        left_out=spec.get("left_out") or [],
        drawn=_drawn(record),
        finals=[thumbnail(path) for path in _files(record, result)],
        lowered=str(record.fields.get("loss") or "denoising"),
        losses={name: number(float(loss)) for name, loss in losses.items()},
        better=bool(losses) and losses["learned"] < losses["start"],
        began=", ".join(spec.get("init") or []) or "a random word",
        charts=charts(panels, "losses", "rounds") if panels else None,
        stopped=ending(record),
        error=record.error,
        costs=[
            *costs_of(record.last.get("cost") or {}),
            ("Forwards aside", f"{forwards_aside(record):,}"),
        ],
        command=shlex.join(_command(record)),
        settings=_settings(record),
        remarks=record.remarks,
        citation=record.citation,
        run=record.path.name,
        created=record.created,
        versions=", ".join(f"{k} {v}" for k, v in (spec.get("versions") or {}).items()),
    )


def forwards_aside(record: Record) -> int:
    """Forwards that the budget does not count: the choice of the start, the looks, the losses."""
    looks = sum(int(entry.get("forwards", 0)) for entry in record.entries)
    return int(record.spec.get("start_forwards", 0)) + looks


def _given(record: Record) -> list[GivenView]:
    found = []
    for i, item in enumerate(record.spec["pictures"]):
        path = record.path / "images" / f"input-{i + 1:02d}.png"
        if path.is_file():
            width, height = item["size"]
            said = [f"“{item['place']}”"] if item.get("place") else []
            notes = ", ".join([f"{width} x {height}", *item["notes"], *said])
            found.append(GivenView(thumbnail(path), str(item["name"]), notes))
    return found


def _drawn(record: Record) -> list[DrawnView]:
    """The sample drawings, from e0 on."""
    lines = [e for e in record.entries if e.get("samples") and e["kind"] in ("baseline", "step")]
    found = []
    for line in spread(lines, MOST):
        files = _files(record, line)
        loss = -float((line.get("scores") or {}).get("held_out", float("nan")))
        title = "before" if line["kind"] == "baseline" else f"round {line['step']}"
        found.append(DrawnView(title, [thumbnail(path) for path in files], number(loss)))
    return [view for view in found if view.pictures]


def _files(record: Record, line: dict[str, Any]) -> list[Path]:
    paths = [record.path / name for name in line.get("samples") or []]
    return [path for path in paths if path.is_file()]


def _panels(record: Record) -> list[Panel]:
    """The held-out loss, which chooses the result, then the rounds' own, which do not compare."""
    looks = [e for e in record.entries if e.get("held_out") is not None]
    steps = record.steps
    if not steps:
        return []
    x = [float(e.get("step", 0)) for e in looks]
    best: list[float | None] = []
    for entry in looks:
        best.append(min([float(entry["held_out"]), *(b for b in best if b is not None)]))
    held = [
        Curve(x, [float(e["held_out"]) for e in looks], "each look", points=True),
        Curve(x, best, "lowest so far"),
    ]
    rounds = Curve(
        [float(e["step"]) for e in steps], [-e["score"] for e in steps], "train", 1, True
    )
    return [
        Panel("Held-out loss", held, float(looks[0]["held_out"]) if looks else None),
        Panel("Each round's lowest loss, on its own noises", [rounds]),
    ]


def _command(record: Record) -> list[str]:
    """The command that learns it again, with the pictures' names as they were."""
    spec = record.spec
    words = ["tiller", "concept", "learn", *(str(item["name"]) for item in spec["pictures"])]
    words += ["--token", str(spec["token"]), "--kind", str(spec["subject"])]
    words += ["--method", record.method, "--seed", str(spec["seed"])]
    for name, usual in (("crop", "centre"), ("background", "white")):
        if spec.get(name, usual) != usual:
            words += [f"--{name}", str(spec[name])]
    words += ["--model", str(spec["model"])] if spec.get("model") else []
    words += ["--budget", str(spec["budget"])]
    for name, value in record.fields.items():
        if value is not None:
            words += ["--set", f"{name}={_text(value)}"]
    return words


def _settings(record: Record) -> list[tuple[str, str]]:
    spec = record.spec
    rows = [
        ("token", spec["token"]),
        ("kind", spec["subject"]),
        ("crop", spec.get("crop")),
        ("background", spec.get("background")),
        ("model", spec.get("model")),
        ("method", record.method),
        *((f"method: {name}", value) for name, value in record.fields.items()),
        ("budget", spec.get("budget")),
        ("seed", spec.get("seed")),
        ("rows of one denoiser call", spec.get("rows")),
    ]
    return [(name, _text(value)) for name, value in rows if value is not None]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
