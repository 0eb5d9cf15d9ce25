"""A search in step with its folder: what is kept, how it ends, and how it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiller.core.budget import Budget
from tiller.core.errors import RewardError
from tiller.core.search import Phase, Problem, Step
from tiller.learning import Learned, learn
from tiller.runs.store import RunStore
from tiller.solvers.cma import CmaEs
from tiller.testing.fakes import FakeQuadratic

QUADRATIC = FakeQuadratic(dimension=3, noise=0.1)
PHASES = [Phase("search", lambda _: Problem(QUADRATIC.space, QUADRATIC, CmaEs(popsize=4)))]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path, {"kind": "example"}, "cma")


def go(store: RunStore, steps: int, **hooks: Any) -> Learned:
    hooks = {"entry": lambda step: {"extra": step.best.score}} | hooks
    return learn(RunStore.open(store.path), PHASES, Budget(steps=steps), 3, **hooks)


def rounds(store: RunStore) -> list[dict[str, Any]]:
    """The journal's rounds, without what no two runs share."""
    found = [line for line in store.entries() if line["kind"] == "step"]
    return [{k: v for k, v in e.items() if k not in ("time", "cost", "stopped")} for e in found]


def test_each_round_has_its_line_with_what_the_caller_adds(store: RunStore) -> None:
    order: list[str] = []
    store.close()

    def entry(step: Step) -> dict[str, Any]:
        order.append(f"entry {step.index}")
        return {"image": "images/x.png", "extra": 1}

    def on_step(step: Step) -> None:
        order.append(f"shown {step.index}, {len(rounds(store))} kept")

    found = go(store, 2, entry=entry, on_step=on_step, begin=lambda: [{"kind": "baseline"}])
    assert order == ["entry 1", "shown 1, 1 kept", "entry 2", "shown 2, 2 kept"]
    assert [line["kind"] for line in store.entries()] == ["begun", "baseline", "step", "step"]
    assert store.entries()[2]["image"] == "images/x.png"
    assert found.stopped == "budget: steps=2"
    assert found.cost.steps == 2
    assert found.state.solver.scores.shape == (2, 4)


def test_a_run_that_goes_on_equals_the_one_that_ran_through(tmp_path: Path) -> None:
    whole, parts = (RunStore.create(tmp_path / n, {"kind": "e"}, "cma") for n in ("a", "b"))
    for one in (whole, parts):
        one.close()
    through = go(whole, 6)

    def broken(step: Step) -> None:
        if step.index == 3:
            raise KeyboardInterrupt

    begun: list[int] = []

    def begin() -> Iterator[dict[str, Any]]:
        begun.append(1)
        return iter(())

    with pytest.raises(KeyboardInterrupt):
        go(parts, 6, on_step=broken, begin=begin)
    continued = go(parts, 6, begin=begin)
    assert begun == [1]
    assert rounds(parts) == rounds(whole)
    assert (continued.best.z == through.best.z).all()
    assert (continued.state.solver.scores == through.state.solver.scores).all()


def test_a_finished_run_is_not_searched_again(store: RunStore) -> None:
    store.close()
    first = go(store, 2)
    lines = rounds(store)
    again = go(store, 2)
    assert again.stopped == "budget: steps=2"
    assert rounds(store) == lines
    assert (again.best.z == first.best.z).all()
    assert again.best.score == first.best.score
    assert go(store, 3).state.round == 3  # a larger budget goes on


def test_until_ends_it_for_good(store: RunStore) -> None:
    store.close()

    def until(step: Step) -> str | None:
        return "a plateau" if step.index == 2 else None

    assert go(store, 9, until=until).stopped == "a plateau"
    assert store.entries()[-1]["stopped"] == "a plateau"
    again = go(store, 20, until=until)
    assert (again.stopped, again.state.round) == ("a plateau", 2)


def test_ctrl_c_ends_after_the_round_and_the_run_goes_on(store: RunStore) -> None:
    store.close()

    def press(step: Step) -> dict[str, Any]:
        if step.index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    found = go(store, 9, entry=press)
    assert (found.stopped, found.state.round) == ("interrupted", 2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert go(store, 4).state.round == 4


def test_an_error_is_in_the_journal_and_names_the_run(store: RunStore) -> None:
    store.close()

    def fails(step: Step) -> dict[str, Any]:
        raise RewardError("no picture can be drawn")

    with pytest.raises(RewardError) as caught:
        go(store, 3, entry=fails)
    assert caught.value.__notes__ == [f"run: {store.path}"]
    assert store.entries()[-1]["kind"] == "error"
    assert go(store, 3).state.round == 3
