"""`bayes`: optuna's samplers on a study made anew from the record in each round."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput, MissingDependency
from tiller.core.rng import Stream
from tiller.core.search import search
from tiller.solvers.bayes import Bayes, BayesState
from tiller.testing.conformance import check_solver
from tiller.testing.fakes import FakeBox, FakeQuadratic


def test_the_gaussian_process_finds_the_top_of_a_quadratic_in_few_evaluations() -> None:
    quadratic = FakeQuadratic(dimension=2)
    solver = Bayes(sampler="gp", startup=5)
    *_, last = search(quadratic.space, quadratic, solver, Budget(images=16))
    *_, blind = search(quadratic.space, quadratic, Bayes(startup=16), Budget(images=16))
    assert last.best.score > -1e-2
    assert last.best.score > blind.best.score


def test_the_tree_of_parzen_estimators_conforms_too() -> None:
    quadratic = FakeQuadratic(dimension=3)
    solver = Bayes(low=-3.0, high=3.0, sampler="tpe", startup=4, batch=2)
    check_solver(solver, quadratic.space, quadratic, reaches=-0.6, within=Budget(steps=40))


def test_the_run_begins_with_the_spaces_first_sample_inside_the_box() -> None:
    space, solver = FakeBox((3,)), Bayes(batch=3)
    rng = Stream(4)
    state = solver.init(space, rng)
    z = solver.ask(space, state, rng)
    assert torch.equal(z[0], space.sample(1, Stream(4))[0].clamp(-1, 1))
    assert len(z) == 3
    assert float(z.abs().max()) <= 1


def test_the_next_point_follows_from_the_record_alone() -> None:
    """Also one that another process wrote: nothing else is remembered."""
    solver = Bayes(startup=1, sampler="gp")
    z = torch.tensor([[-1.0], [-0.5], [0.0], [0.4], [0.95]], dtype=torch.float64)
    state = BayesState(z[:1], z, -((z[:, 0] - 0.7) ** 2))
    first, second = (solver.ask(FakeBox((1,)), state, Stream(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert float(first[0, 0]) == pytest.approx(0.7, abs=0.2)


@pytest.mark.parametrize(
    "settings",
    [{"low": 1.0}, {"high": float("inf")}, {"sampler": "cma"}, {"batch": 0}, {"startup": 0}],
    ids=["low", "high", "sampler", "batch", "startup"],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Bayes(**settings)


def test_without_optuna_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    quadratic = FakeQuadratic(dimension=2)
    with pytest.raises(MissingDependency, match="pip install optuna greenlet"):
        list(search(quadratic.space, quadratic, Bayes(), Budget(images=2)))
