"""What reaches the screen: clean text, and one line that fits a run."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tiller.core.budget import Budget, Cost
from tiller.terminal import ProgressLine, clean, cost_line, one_line


@given(st.text())
def test_clean_text_moves_nothing_and_says_the_same(text: str) -> None:
    shown = clean(text)
    assert all(char.isprintable() or char in "\u200c\u200d" for char in shown)
    assert clean(shown) == shown
    if text.isprintable():
        assert shown == text


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1


def progress(index: int, cost: Cost, stopped: str | None = None) -> Any:
    step = SimpleNamespace(
        index=index, phase="ascent\x1b[2J", cost=cost, stopped=stopped, relaxed=False
    )
    return SimpleNamespace(
        step=step,
        scores={"clip_heldout": 0.5, "clip": 0.75},
        baseline={"clip_heldout": 0.4, "clip": 0.25},
        held_out=("clip_heldout",),
        budget=Budget(steps=10),
        run_dir=Path("run"),
        probability=0.25,
    )


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> tuple[ProgressLine, io.StringIO]:
    monkeypatch.setattr("tiller.terminal.method_of", lambda run_dir: ("dno", False))
    out = io.StringIO()
    return ProgressLine(Console(file=out, width=400, markup=False, highlight=False)), out


def test_the_line_has_method_phase_step_scores_cost_and_time_left(
    line: tuple[ProgressLine, io.StringIO],
) -> None:
    shown, out = line
    with shown:
        shown.update(progress(2, Cost(steps=2, forwards=80, backwards=40, seconds=30.0)))
    text = out.getvalue()
    assert text.startswith(r"dno · ascent\x1b[2J · step 2/10 · clip 0.2500 → 0.7500")
    assert "clip_heldout 0.4000 → 0.5000 (held out)" in text
    assert "80 forwards + 40 backwards" in text
    assert "about 2:00 left" in text  # 30 s for a fifth of the budget leave four fifths


def test_a_relaxed_round_does_not_say_what_is_left(line: tuple[ProgressLine, io.StringIO]) -> None:
    shown, out = line
    told = progress(2, Cost(steps=2, seconds=30.0))
    with shown:
        told.step.relaxed = True
        shown.update(told)
    assert " left" not in out.getvalue()


def test_lines_come_every_few_seconds_and_at_the_end(
    line: tuple[ProgressLine, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, out = line
    now = [0.0]
    monkeypatch.setattr("tiller.terminal.time.monotonic", lambda: now[0])
    for index in range(1, 11):
        now[0] += 2.0
        stopped = "budget: steps=10" if index == 10 else None
        shown.update(progress(index, Cost(steps=index, seconds=2.0 * index), stopped))
    steps = [part.split(" · ")[2] for part in out.getvalue().splitlines()]
    assert steps == ["step 1/10", "step 4/10", "step 7/10", "step 10/10"]


def test_a_terminal_gets_one_line_that_is_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tiller.terminal.method_of", lambda run_dir: ("dno", False))
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=True, markup=False)
    shown = ProgressLine(console)
    with shown:
        shown.update(progress(2, Cost(steps=2, seconds=30.0)))
        (rendered,) = console.render_lines(shown)
    assert sum(len(segment.text) for segment in rendered) == 60
    assert out.getvalue().endswith("\x1b[2K")


def test_a_cost_names_only_what_was_used() -> None:
    assert cost_line(Cost(steps=1, images=1, forwards=40, seconds=1.0)) == (
        "1 step, 1 image, 40 forwards, 1.0 s"
    )
