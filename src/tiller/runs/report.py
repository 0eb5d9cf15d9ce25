"""The report: one HTML file that shows what a run did, with nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiller.core.errors import InvalidInput
from tiller.runs.affix_report import AFFIX, affix_page
from tiller.runs.charts import SERIES, Curve, Panel, charts
from tiller.runs.concept_report import CONCEPT, concept_page
from tiller.runs.files import write_atomically
from tiller.runs.record import Record, read_run
from tiller.runs.templating import rendered, shortened
from tiller.runs.view import RunView, view

Legend = list[dict[str, str | int]]


def write_report(
    run_dirs: str | Path | Sequence[str | Path], path: str | Path | None = None
) -> Path:
    """Write the report of a run, or a page that compares several.

    Args:
        run_dirs: one run's folder, or several.
        path: where the page goes; `<run>/report.html` for one run if not given, and
            `comparison.html` beside the first for several.

    Returns:
        The page's path.

    Raises:
        InvalidInput: no run was given, or several of which one learned a concept.
        RunError: a run cannot be read, or the page not written.
    """
    folders = [run_dirs] if isinstance(run_dirs, (str, Path)) else list(run_dirs)
    if not folders:
        raise InvalidInput("a report needs at least one run's folder, got none")
    records = [read_run(folder) for folder in folders]
    if len(records) == 1:
        target = records[0].path / "report.html"
        page = _report(records[0])
    else:
        if words := [r.path.name for r in records if r.spec.get("kind") == CONCEPT]:
            raise InvalidInput(
                f"a page of several runs compares pictures that were steered, and {words[0]} "
                "learned a concept; give it alone, or compare with `tiller concept evaluate`"
            )
        target = records[0].path.parent / "comparison.html"
        page = _comparison(records)
    target = target if path is None else Path(path).absolute()
    write_atomically(target, page.encode("utf-8", "replace"), "write the report")
    return target


def _report(record: Record) -> str:
    if record.spec.get("kind") == CONCEPT:
        return concept_page(record)
    if record.spec.get("kind") == AFFIX:
        return affix_page(record)
    panels, legend = _panels(record)
    return rendered(
        "report.html.j2",
        run=view(record),
        charts=charts(panels, "curves", _x_label([record])) if panels else None,
        legend=legend,
    )


def _panels(record: Record) -> tuple[list[Panel], Legend]:
    """The score, then each held-out reward: drift is drawn beside the score."""
    steps = record.steps
    if not steps:
        return [], []
    x = _x(record)
    start = [0.0, *x]
    scores = record.baseline.get("scores") or {}
    before = _baseline_score(record)
    sign = _sign(record)
    best: list[float | None] = [before, *(sign * entry["best_score"] for entry in steps)]
    rounds = [None if entry.get("relaxed") else sign * entry["score"] for entry in steps]
    panels = [
        Panel(
            "Score (lowered)" if record.lowers else "Score (optimized)",
            [
                Curve(x, rounds, "this round's best", points=True),
                Curve(start, best, "best so far"),
            ],
            before,
        )
    ]
    legend: Legend = [
        {"kind": "line", "colour": 0, "name": "best so far"},
        {"kind": "dot", "colour": 0, "name": "each round"},
    ]
    for name in record.held_out:
        values = [scores.get(name), *((e.get("scores") or {}).get(name) for e in steps)]
        if any(value is not None for value in values[1:]):
            curve = Curve(start, values, name, colour=1)
            panels.append(Panel(f"{shortened(name)} (held out)", [curve], scores.get(name)))
    if len(panels) > 1:
        legend.append({"kind": "line", "colour": 1, "name": "of the same picture, not optimized"})
    if any(entry.get("relaxed") for entry in steps):
        mixed = [sign * entry["score"] if entry.get("relaxed") else None for entry in steps]
        panels.append(Panel("Score of mixed words (an estimate)", [Curve(x, mixed, "mixed", 3)]))
        legend.append({"kind": "line", "colour": 3, "name": "while the distribution is learned"})
    legend.append({"kind": "dashed", "colour": 0, "name": "not steered"})
    probabilities = [entry.get("probability") for entry in steps]
    if len({p for p in probabilities if p is not None}) > 1:  # else the noise was not searched
        panels.append(Panel("P(z): how usual the noise is", [Curve(x, probabilities, "P(z)", 2)]))
        legend.append({"kind": "line", "colour": 2, "name": "of each round's noise; 0 is far off"})
    return panels, legend


def _comparison(records: Sequence[Record]) -> str:
    runs = [view(record) for record in records]
    watched = list(dict.fromkeys(name for record in records for name in record.held_out))
    names = list(dict.fromkeys(score.name for run in runs for score in run.scores))
    panels = [Panel("Score (best so far)", _score_curves(records))]
    panels += [Panel(shortened(name), _reward_curves(records, name)) for name in names]
    panels = [panel for panel in panels if panel.curves]
    optimized = {score.name for run in runs for score in run.scores if not score.held_out}
    return rendered(
        "compare.html.j2",
        runs=runs,
        names=names,
        held_out=[name for name in watched if name not in optimized],
        prompts=list(dict.fromkeys(run.prompt for run in runs)),
        versions=list(dict.fromkeys(run.versions for run in runs)),
        charts=charts(panels, "curves", _x_label(records)) if panels else None,
        legend=_run_legend(runs),
    )


def _run_legend(runs: Sequence[RunView]) -> Legend:
    return [
        {"kind": "line", "colour": i % SERIES, "name": f"{i + 1} · {run.method}"}
        for i, run in enumerate(runs)
    ]


def _score_curves(records: Sequence[Record]) -> list[Curve]:
    """One curve a run, if all of them optimized the same sum: other scores do not compare."""
    rewards = {tuple(record.rewards) for record in records}
    if len(rewards) > 1 or len(records[0].rewards) == 1:  # one reward has its own panel below
        return []
    return [
        Curve(_x(record), _bests(record), str(i + 1), i)
        for i, record in enumerate(records)
        if record.steps
    ]


def _bests(record: Record) -> list[float]:
    return [_sign(record) * entry["best_score"] for entry in record.steps]


def _sign(record: Record) -> int:
    """What makes the search's score the reward's: an attack seeks what is worst."""
    return -1 if record.lowers else 1


def _reward_curves(records: Sequence[Record], name: str) -> list[Curve]:
    curves: list[Curve] = []
    for i, record in enumerate(records):
        before = (record.baseline.get("scores") or {}).get(name)
        values = [before, *((e.get("scores") or {}).get(name) for e in record.steps)]
        if any(value is not None for value in values):
            curves.append(Curve([0.0, *_x(record)], values, str(i + 1), i))
    return curves


def _baseline_score(record: Record) -> float | None:
    """The unsteered picture's score: the weighted sum of its rewards, where nothing is penalized.

    The journal may say it itself, as `score`.
    """
    if "score" in record.baseline:
        return float(record.baseline["score"])
    if any(entry.get("penalty") for entry in record.steps):
        return None
    return record.total(record.baseline.get("scores") or {})


def _x(record: Record) -> list[float]:
    """Forwards plus backwards at each round; rounds where nothing was counted."""
    costs = [entry.get("cost") or {} for entry in record.steps]
    calls = [float(cost.get("forwards", 0) + cost.get("backwards", 0)) for cost in costs]
    return calls if any(calls) else [float(entry["step"]) for entry in record.steps]


def _x_label(records: Sequence[Record]) -> str:
    counted = any((e.get("cost") or {}).get("forwards") for r in records for e in r.steps)
    return "cost: forwards + backwards of the denoiser" if counted else "rounds"
