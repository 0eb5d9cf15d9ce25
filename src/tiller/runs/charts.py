"""Curves as SVG text that lives inside a page: its colours are the page's, in light and in dark.

Matplotlib draws with stand-in colours, which are then replaced by CSS variables. Each chart is
drawn twice, wide and narrow, because a wide one shrunk to a phone cannot be read.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTHS = {"wide": 760, "narrow": 360}
SERIES = 6  # colours that the page defines; more curves begin again at the first

# Stand-ins, chosen so that nothing else in a figure has them.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
COLOURS = [f"#0a0b{i:02x}" for i in range(SERIES)]
_CSS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    **{stand_in: f"var(--series-{i})" for i, stand_in in enumerate(COLOURS)},
}


@dataclass(frozen=True)
class Curve:
    """One line: `y` over `x` (equally many), its name, its colour's number, and how it is drawn."""

    x: Sequence[float]
    y: Sequence[float | None]
    name: str
    colour: int = 0
    points: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its title, its curves, and the unsteered picture's value."""

    title: str
    curves: Sequence[Curve]
    baseline: float | None = None


def charts(
    panels: Sequence[Panel], name: str, x_label: str, *, whole: bool = False
) -> dict[str, str]:
    """SVG elements by width (`wide`, `narrow`): the panels under one another, sharing x.

    Args:
        panels: at least one.
        name: unique in its page; part of every id, so that two charts do not share one.
        x_label: what the x axis counts.
        whole: it counts things of which there are no halves.
    """
    heights = [1.5] + [1.0] * (len(panels) - 1)

    def draw(figure: Any, size: str) -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
        for panel, axis in zip(panels, axes[:, 0], strict=True):
            _draw(axis, panel)
        axes[-1, 0].set_xlabel(x_label)
        axes[-1, 0].locator_params(axis="x", integer=whole)

    def height(size: str) -> float:
        return (150 if size == "wide" else 120) * sum(heights) + 40

    return drawn(draw, height, name, "Curves: " + "; ".join(panel.title for panel in panels))


def drawn(
    draw: Callable[[Any, str], None], height: Callable[[str], float], name: str, label: str
) -> dict[str, str]:
    """SVG elements by width (`wide`, `narrow`) of what `draw(figure, size)` puts into a figure.

    Args:
        draw: uses `INK`, `MUTED`, `GRID` and `COLOURS`, which become the page's colours.
        height: of a size, in the units of `WIDTHS`.
        name: unique in its page.
        label: what the picture shows, for those who cannot see it.
    """
    return {size: _drawn(draw, size, height(size), f"{name}-{size}", label) for size in WIDTHS}


def _drawn(
    draw: Callable[[Any, str], None], size: str, height: float, name: str, label: str
) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "grid.color": GRID,
    }
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.02)
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The page's fonts draw the text, so it does not matter what matplotlib's own can draw.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTHS[size] / 72, height / 72), layout=layout)
        figure.patch.set_alpha(0)
        draw(figure, size)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue().decode(), name, label)


def _draw(axis: Any, panel: Panel) -> None:
    axis.patch.set_alpha(0)
    axis.grid(axis="y", linewidth=0.8)
    axis.tick_params(length=0)
    axis.margins(x=0.02, y=0.12)
    axis.set_title(panel.title, loc="left", fontsize=12, fontweight="bold")
    axis.locator_params(axis="y", nbins=5)
    axis.locator_params(axis="x", nbins=6)
    if panel.baseline is not None:
        axis.axhline(panel.baseline, color=MUTED, linewidth=1.2, dashes=(4, 3))
    for curve in panel.curves:
        colour = COLOURS[curve.colour % SERIES]
        x = [a for a, b in zip(curve.x, curve.y, strict=True) if b is not None]
        y = [b for b in curve.y if b is not None]
        if curve.points:
            axis.plot(x, y, "o", color=colour, markersize=3.5, alpha=0.45, markeredgewidth=0)
        else:
            axis.plot(x, y, color=colour, linewidth=2.2, solid_joinstyle="round")
            if y:
                axis.plot(x[-1:], y[-1:], "o", color=colour, markersize=6, markeredgewidth=0)


def _for_page(svg: str, name: str, label: str) -> str:
    """The bare element: the page's colours and font, ids of its own, no prolog and no links."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for stand_in, variable in _CSS.items():
        svg = svg.replace(stand_in, variable)
    opening = re.match(r"<svg[^>]*>", svg)
    assert opening is not None, "matplotlib wrote no svg element"
    box = re.search(r'viewBox="([^"]*)"', opening[0])
    assert box is not None, "matplotlib wrote no viewBox"
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{_escaped(label)}">'
    return head + svg[opening.end() :].strip()


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
