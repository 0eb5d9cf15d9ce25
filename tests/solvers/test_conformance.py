"""Every solver that the folder holds passes the shipped suite, new files without a word."""

from __future__ import annotations

from typing import Any

import pytest

from tiller.core.budget import Budget
from tiller.core.discovery import discover
from tiller.core.solver import Solver
from tiller.core.space import Continuous, Discrete
from tiller.solvers.bayes import Bayes
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.cma import CmaEs
from tiller.solvers.gradient import Gradient
from tiller.solvers.random import Random
from tiller.solvers.rules import Sgd
from tiller.testing.conformance import check_resume, check_settings, check_solver
from tiller.testing.fakes import FakeMatch, FakeQuadratic, FakeStateful

SOLVERS = discover("tiller.solvers", Solver)  # type: ignore[type-abstract]

# Settings that suit the quadratic of three numbers, and what they reach; others use the defaults.
TUNED: dict[str, tuple[Solver[Any], float, Budget]] = {
    "best_of_n": (BestOfN(), -0.3, Budget(images=400)),
    "random": (Random(radius=0.2, keep_norm=False), -0.01, Budget(images=400)),
    "gradient": (Gradient(lr=0.1, clip_norm=5.0), -1e-4, Budget(steps=150)),
    "cma": (CmaEs(), -1e-8, Budget(steps=100)),
    "bayes": (Bayes(low=-3.0, high=3.0, startup=3), -0.3, Budget(steps=25)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_continuous(name: str) -> None:
    kind = SOLVERS[name]
    if not issubclass(Continuous, kind.spaces):
        pytest.skip(f"{name} does not search continuous spaces")
    solver, reaches, budget = TUNED.get(name, (kind(), -0.3, Budget(steps=200)))
    assert type(solver) is kind
    problem = FakeQuadratic(dimension=3, noise=0.0)
    check_solver(solver, problem.space, problem, reaches=reaches, within=budget)


@pytest.mark.parametrize("name", SOLVERS)
def test_discrete(name: str) -> None:
    kind = SOLVERS[name]
    if not issubclass(Discrete, kind.spaces):
        pytest.skip(f"{name} does not search discrete spaces")
    problem = FakeMatch(positions=5, options=3)
    check_solver(kind(), problem.space, problem, reaches=4.0, within=Budget(images=240))


@pytest.mark.parametrize("name", SOLVERS)
def test_resume_with_a_stateful_noisy_objective(name: str) -> None:
    from tiller.core.search import Phase, Problem

    kind = SOLVERS[name]
    if not issubclass(Continuous, kind.spaces):
        pytest.skip(f"{name} does not search continuous spaces")
    problem = FakeStateful()
    phase = Phase("search", lambda _: Problem(problem.space, problem, kind()))
    steps = check_resume([phase], Budget(steps=5), seed=7)
    assert len(steps) == 5
    assert problem.target.abs().sum() > 0


@pytest.mark.parametrize(
    "solver", [Gradient(rule=Sgd(momentum=0.9), population=3), CmaEs(full_up_to=1, popsize=5)]
)
def test_other_settings(solver: Solver[Any]) -> None:
    problem = FakeQuadratic(dimension=3, noise=0.1)
    check_solver(solver, problem.space, problem)


def test_the_suite_finds_settings_that_are_not_frozen() -> None:
    class Loose(BestOfN.__mro__[1]):  # type: ignore[misc, name-defined]  # Solver itself
        init = BestOfN.init
        ask = BestOfN.ask
        tell = BestOfN.tell

    with pytest.raises(AssertionError, match=r"Loose must be a frozen dataclass"):
        check_settings(Loose())
