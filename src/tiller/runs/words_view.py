"""What a page shows of the words that a run found, as texts ready to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from tiller.runs.charts import Curve, Panel, charts
from tiller.runs.embedded import RowView, rows
from tiller.runs.found_words import FoundWords, Piece, Prompt, Worth, found_words
from tiller.runs.png import open_png
from tiller.runs.record import Record
from tiller.runs.survivors import survivors
from tiller.runs.templating import changed, direction, number
from tiller.runs.word_charts import Changes, distributions
from tiller.runs.word_charts import changes as changes_chart

TOP = 10  # prompts of the table


@dataclass(frozen=True)
class PieceView:
    """A stretch of a comparison, see `found_words.Piece`; `notes` are (change, direction)."""

    kind: str
    text: str
    space: bool
    notes: list[tuple[str, str]]


@dataclass(frozen=True)
class WorthView:
    """What one changed word is worth."""

    word: str
    option: str
    source: str
    change: str
    direction: str
    dropped: bool


@dataclass(frozen=True)
class PromptView:
    """One of the best prompts; `mark` says which is the user's."""

    rank: int
    prompt: str
    negative_prompt: str
    score: str
    change: str
    direction: str
    similarity: str
    mark: str


@dataclass(frozen=True)
class SurvivorsView:
    """The prompts that an evolution kept, see `survivors.Survivors`."""

    count: int
    first: int
    chart: dict[str, str]


@dataclass(frozen=True)
class WordsView:
    """The words that a run found."""

    changed: bool
    prompt: str
    negative_prompt: str
    prompt_pieces: list[PieceView]
    negative_pieces: list[PieceView]
    similarity: str
    score: str
    before: str
    worths: list[WorthView]
    unmeasured: int
    top: list[PromptView]
    tried: int
    population: dict[str, str] | None
    distributions: dict[str, str] | None
    survivors: SurvivorsView | None


@dataclass(frozen=True)
class UnseenScore:
    """One reward on unseen noises: the means, the mean change and its interval."""

    name: str
    held_out: bool
    before: str
    after: str
    change: str
    interval: str
    direction: str
    agreeing: str


@dataclass(frozen=True)
class UnseenView:
    """What the best words are worth on noises that the search did not see."""

    noises: int
    scores: list[UnseenScore]
    verdict: str
    pictures: list[RowView]
    chart: dict[str, str]


def words_view(record: Record) -> WordsView | None:
    """The words that a run found; None for runs that drew the user's alone."""
    found = found_words(record)
    if found is None:
        return None
    best = found.best
    pieces = [*found.prompt_pieces, *found.negative_pieces]
    return WordsView(
        changed=found.changed,
        prompt=best.prompt,
        negative_prompt=best.negative_prompt,
        prompt_pieces=_pieces(found.prompt_pieces, found.lowers),
        negative_pieces=_pieces(found.negative_pieces, found.lowers),
        similarity="" if best.similarity is None else f"{best.similarity:.3f}",
        score=number(best.score),
        before=number(found.own.score),
        worths=[_worth(worth, found.lowers) for worth in found.worths],
        unmeasured=sum(piece.kind == "in" and not piece.changes for piece in pieces),
        top=_top(found),
        tried=len(found.prompts),
        population=_population(found),
        distributions=distributions(found.learned, "words") if found.learned else None,
        survivors=_survivors(record),
    )


def _pieces(pieces: Sequence[Piece], lowers: bool) -> list[PieceView]:
    return [
        PieceView(
            piece.kind,
            piece.text,
            piece.space,
            [(changed(by), direction(by, lowers=lowers)) for by in piece.changes],
        )
        for piece in pieces
    ]


def _worth(worth: Worth, lowers: bool) -> WorthView:
    generic = not worth.end and worth.part == "negative_prompt"
    return WorthView(
        word="" if generic else worth.word,
        option=worth.option,
        source=worth.source,
        change=changed(worth.change),
        direction=direction(worth.change, lowers=lowers),
        dropped=worth.dropped,
    )


def _top(found: FoundWords) -> list[PromptView]:
    """The best prompts, and the user's own wherever it stands."""
    ranked = [_prompt(i, prompt, found) for i, prompt in enumerate(found.prompts, start=1)]
    return [view for view in ranked if view.rank <= TOP or view.mark]


def _prompt(rank: int, prompt: Prompt, found: FoundWords) -> PromptView:
    by = prompt.score - found.own.score
    own = (found.own.prompt, found.own.negative_prompt)
    mine = (prompt.prompt, prompt.negative_prompt) == own
    return PromptView(
        rank=rank,
        prompt=prompt.prompt,
        negative_prompt=prompt.negative_prompt,
        score=number(prompt.score),
        change="" if mine else changed(by),
        direction=direction(by, lowers=found.lowers),
        similarity="" if prompt.similarity is None else f"{prompt.similarity:.3f}",
        mark="yours" if mine else "",
    )


def _population(found: FoundWords) -> dict[str, str] | None:
    """Every prompt's score, and the best so far and the median of each round."""
    rounds = found.generations
    if len(rounds) < 2:
        return None
    best = min if found.lowers else max
    x = [float(i) for i in range(len(rounds))]
    so_far = [best(score for scores in rounds[: i + 1] for score in scores) for i in range(len(x))]
    points = [(float(i), score) for i, scores in enumerate(rounds) for score in scores]
    curves = [
        Curve([i for i, _ in points], [score for _, score in points], "prompts", points=True),
        Curve(x, [median(scores) for scores in rounds], "median", colour=1),
        Curve(x, so_far, "best so far"),
    ]
    panel = Panel("Score of every prompt", curves, found.own.score)
    return charts([panel], "population", "rounds of prompts; 0 is your own", whole=True)


def _survivors(record: Record) -> SurvivorsView | None:
    kept = survivors(record)
    if kept is None:
        return None
    chart = distributions(kept.words, "survivors", "What the survivors say")
    return SurvivorsView(kept.count, kept.first, chart)


def unseen_view(record: Record) -> UnseenView | None:
    """The measurement on unseen noises; None where there was none."""
    entry = record.unseen
    if not entry:
        return None
    held_out = record.held_out
    names = sorted(entry["change"], key=lambda name: name in held_out)
    scores = [_unseen_score(entry, name, record) for name in names]
    panels = [_changes(entry, name, held_out) for name in names]
    images = [("Before", "before"), ("After", "after")]
    paths = [(title, record.path / entry["images"][which]) for title, which in images]
    return UnseenView(
        noises=int(entry["noises"]),
        scores=scores,
        verdict=unseen_verdict(record),
        pictures=rows(paths, picture_width(record)),
        chart=changes_chart(panels, "unseen"),
    )


def picture_width(record: Record) -> int:
    """How wide the model draws, in pixels.

    Raises:
        RunError: the unsteered picture is damaged.
    """
    path = record.baseline_image
    return 1 if path is None else int(open_png(path)[0].size[0])


def _unseen_score(entry: dict[str, Any], name: str, record: Record) -> UnseenScore:
    before, after, change = (entry[k][name] for k in ("baseline_scores", "scores", "change"))
    wanted = -1 if record.lowers else 1
    agreeing = sum(wanted * (b - a) > 0 for a, b in zip(before, after, strict=True))
    return UnseenScore(
        name=name,
        held_out=name in record.held_out,
        before=number(fmean(before)),
        after=number(fmean(after)),
        change=changed(change["mean"]),
        interval=f"{changed(change['low'])} to {changed(change['high'])}",
        direction=direction(change["mean"], lowers=record.lowers),
        agreeing=f"{agreeing} of {len(before)}",
    )


def _changes(entry: dict[str, Any], name: str, held_out: Sequence[str]) -> Changes:
    pairs = zip(entry["baseline_scores"][name], entry["scores"][name], strict=True)
    return Changes(
        name=f"{name} (held out)" if name in held_out else name,
        each=[after - before for before, after in pairs],
        **entry["change"][name],
        colour=1 if name in held_out else 0,
    )


def unseen_verdict(record: Record) -> str:
    """Whether the words carry over to other noises, in a sentence; empty without a measurement."""
    entry = record.unseen
    names = [name for name in entry.get("change", {}) if name not in record.held_out]
    if not names:
        return ""
    found = entry["change"][names[0]]
    wanted = "fell" if record.lowers else "rose"
    if (entry["prompt"], entry["negative_prompt"]) == (record.prompt, record.negative_prompt):
        return "The best words are your own, so nothing changes."
    low, high = (-found["high"], -found["low"]) if record.lowers else (found["low"], found["high"])
    if low > 0:
        return (
            f"On average {names[0]} {wanted} here too, and the interval leaves zero out: the words "
            "do it, not the noises that they were chosen on."
        )
    if high < 0:
        return (
            f"Here {names[0]} went the other way: the words fit the noises that they were chosen "
            "on, and do harm elsewhere. Draw each prompt from more of them (`--set noises=6`)."
        )
    return (
        "The interval contains zero: it is not shown that the words do anything on other noises. "
        "Draw each prompt from more noises (`--set noises=6`), or measure on more "
        "(`--set unseen=32`)."
    )
