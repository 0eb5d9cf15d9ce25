"""What a run's curves say to do next. Stopping is a result with advice, not an exception."""

from __future__ import annotations

from tiller.runs.record import Record


def change(record: Record, name: str) -> float | None:
    """How much a reward of the best picture rose over the unsteered one, None if unknown."""
    before = (record.baseline.get("scores") or {}).get(name)
    after = (record.last.get("scores") or {}).get(name)
    return None if before is None or after is None else float(after) - float(before)


def advice(record: Record) -> list[str]:
    """Sentences for the person who started the run, the most useful first."""
    steps = record.steps
    if not steps:
        return ["No round was finished. `tiller resume` continues the run."]
    found: list[str] = []
    if record.error is not None:
        found.append(
            "The run ended with an error; the best so far is kept. Once its cause is removed, "
            "`tiller resume` continues with the same reward; a changed one needs a new run."
        )
    elif record.stopped in (None, "interrupted"):
        found.append("The run is not finished. `tiller resume` continues it.")
    sign = -1 if record.lowers else 1
    gains = {name: change(record, name) for name in steps[-1].get("scores") or {}}
    aims = [gain for name, gain in gains.items() if name not in record.held_out]
    total = record.total({name: gain for name, gain in gains.items() if gain is not None})
    rises = aims if total is None else [total]
    rose = any(gain is not None and sign * gain > 0 for gain in rises)
    worded = any(entry.get("candidates") for entry in steps)
    if not rose and aims:
        found.append(_nothing(record, worded))
    against = [n for n in record.held_out if (by := gains.get(n)) is not None and sign * by < 0]
    if rose and against and record.lowers:
        found.append(
            f"The score fell while {', '.join(against)}, which was not lowered, rose: look whether "
            "the picture is really worse, or whether the words fool this reward alone."
        )
    elif rose and against:
        fell = against
        found.append(
            f"The score rose while {', '.join(fell)}, which was not optimized, fell: look whether "
            "the picture really got better. Earlier pictures of the filmstrip, fewer steps, or "
            "a weighted sum of both rewards may be better choices."
        )
    if rose and record.unseen and not _carries_over(record, sign):
        found.append(
            "On noises that the search did not see it is not shown to hold: draw each prompt from "
            "more of them (`--set noises=6`), with a larger budget."
        )
    ended_on_budget = (record.stopped or "").startswith("budget")
    if rose and ended_on_budget and len(steps) >= 5:
        late = record.best_step / steps[-1]["step"]
        if late > 0.9:
            found.append(
                "It was still improving when the budget ended: a larger one may give more."
            )
        elif late < 0.5:
            found.append(
                f"Nothing better came after round {record.best_step} of {steps[-1]['step']}: a "
                "smaller budget would do, or spend it on other seeds."
            )
    if found:
        return found
    if record.lowers:
        return ["The score fell, and nothing that was watched rose."]
    return ["The score rose, and nothing that was watched fell."]


def _nothing(record: Record, worded: bool) -> str:
    """What to try where no candidate is better than the user's own."""
    if not worded:
        return (
            "Nothing better than the unsteered picture was found. Try more steps, another seed, "
            "or first the best of many seeds (`--method best_of_n`)."
        )
    if record.lowers:
        return (
            "No words lower the score. Allow more of them: a lower `--set min_similarity`, more "
            "substitutes (`--set n=10`), words of your own (`--set choices=words.json`)."
        )
    return (
        "No words are better than your own. Try a larger budget, more of them (`--set space=both`, "
        "`--set n=10`), or words of your own (`--set choices=words.json`)."
    )


def _carries_over(record: Record, sign: int) -> bool:
    """Whether the interval of the first optimized reward's change leaves zero out, rightly."""
    aims = [by for name, by in record.unseen["change"].items() if name not in record.held_out]
    return not aims or (aims[0]["high"] < 0 if sign < 0 else aims[0]["low"] > 0)
