"""Pictures of what a run found out about words: distributions, and changes on unseen noises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tiller.runs.charts import COLOURS, GRID, INK, MUTED, drawn
from tiller.runs.found_words import Learned
from tiller.runs.templating import shortened

BARS = 6  # options of a word that are shown: the likeliest
_LABEL = 22  # letters of an option
_ROW = {"wide": 19, "narrow": 18}
_TITLE = 46


@dataclass(frozen=True)
class Changes:
    """How one reward changed on each of some noises, with the mean and its interval."""

    name: str
    each: Sequence[float]
    mean: float
    low: float
    high: float
    colour: int = 0


def distributions(
    words: Sequence[Learned], name: str, title: str = "Learned distributions"
) -> dict[str, str]:
    """Bars of the likeliest options of each word, with a stroke where each began.

    Args:
        words: at least one.
        name: unique in its page.
        title: what they are, for those who do not see the picture.
    """
    shown = [_likeliest(word) for word in words]

    def rows(size: str) -> list[list[int]]:
        """The words of each row of panels."""
        columns = 2 if size == "wide" else 1
        return [list(range(len(shown)))[i : i + columns] for i in range(0, len(shown), columns)]

    def heights(size: str) -> list[float]:
        return [
            _TITLE + _ROW[size] * max(2, *(len(shown[i]) for i in row), 0) for row in rows(size)
        ]

    def draw(figure: Any, size: str) -> None:
        grid = rows(size)
        axes = figure.subplots(
            len(grid), len(grid[0]), squeeze=False, height_ratios=heights(size), sharex=True
        )
        for row, places in zip(grid, axes, strict=True):
            for axis in places[len(row) :]:
                axis.set_visible(False)
            for i, axis in zip(row, places, strict=False):
                _bars(axis, words[i], shown[i], figure_rows=max(len(shown[j]) for j in row))

    label = f"{title}: " + ", ".join(word.word for word in words)
    return drawn(draw, lambda size: sum(heights(size)) + 10, name, label)


def _likeliest(word: Learned) -> list[int]:
    """The options to show: the likeliest, and the first (the user's word, or nothing)."""
    order = sorted(range(len(word.options)), key=lambda i: -word.end[i])
    best = order[:BARS]
    return best if 0 in best else [*best[:-1], 0]


def _bars(axis: Any, word: Learned, shown: Sequence[int], figure_rows: int) -> None:
    _plain(axis)
    negative = word.part == "negative_prompt"
    title = f"against {word.word}" if negative and not _generic(word) else word.word
    axis.set_title(shortened(title, 30), loc="left", fontsize=12, fontweight="bold")
    top = max(range(len(word.options)), key=lambda i: word.end[i])
    for row, option in enumerate(shown):
        colour = COLOURS[0] if option == top else MUTED
        share = word.end[option]
        axis.barh(row, share, height=0.62, color=colour, alpha=1 if option == top else 0.45)
        axis.plot([word.start[option]] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.3)
        at = max(share, word.start[option]) + 0.02
        axis.text(at, row, f"{share:.0%}", va="center", fontsize=10, color=MUTED)
    labels = [shortened(word.options[i], _LABEL) or "(nothing)" for i in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=11)
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_ylim(max(2, figure_rows) - 0.4, -0.6)  # the first on top, rows alike in a row of words
    axis.set_xlim(0, 1.15)
    axis.set_xticks([])


def _generic(word: Learned) -> bool:
    """Whether it is a slot of the library, which answers to no word of the prompt."""
    return word.word.startswith("library ")


def changes(rewards: Sequence[Changes], name: str) -> dict[str, str]:
    """One row a reward: its change on each noise, the mean with its interval, and zero.

    Args:
        rewards: at least one.
        name: unique in its page.
    """

    def draw(figure: Any, size: str) -> None:
        axes = figure.subplots(len(rewards), 1, squeeze=False)[:, 0]
        for axis, reward in zip(axes, rewards, strict=True):
            _row_of_changes(axis, reward)

    label = "Changes on unseen noises: " + ", ".join(reward.name for reward in rewards)
    return drawn(draw, lambda size: 104.0 * len(rewards) + 10, name, label)


def _row_of_changes(axis: Any, reward: Changes) -> None:
    _plain(axis)
    colour = COLOURS[reward.colour % len(COLOURS)]
    axis.set_title(shortened(reward.name), loc="left", fontsize=12, fontweight="bold")
    axis.axvline(0, color=MUTED, linewidth=1.2, dashes=(4, 3))
    axis.plot(reward.each, [0.0] * len(reward.each), "o", color=colour, markersize=6, alpha=0.4,
              markeredgewidth=0)  # fmt: skip
    axis.plot([reward.low, reward.high], [1.0, 1.0], color=colour, linewidth=5,
              solid_capstyle="round", alpha=0.55)  # fmt: skip
    axis.plot([reward.mean], [1.0], "o", color=colour, markersize=9, markeredgewidth=0)
    axis.set_ylim(-0.6, 1.6)
    axis.set_yticks([1.0, 0.0], ["mean", "each"])
    axis.margins(x=0.06)
    axis.locator_params(axis="x", nbins=5)


def _plain(axis: Any) -> None:
    axis.patch.set_alpha(0)
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_color(GRID)
