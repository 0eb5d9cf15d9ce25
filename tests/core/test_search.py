"""The loop: exact budgets, bit-exact resume, and errors that come at the right time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from test_phases import phases_of, relaxed_phases
from torch import Tensor

from tiller.core.budget import Budget, Cost, count
from tiller.core.errors import Incompatible, InvalidInput, RewardError, RunError
from tiller.core.rng import Draw, Stream
from tiller.core.search import Phase, Problem, Step, search, search_phases
from tiller.core.solver import Solver
from tiller.core.space import starting_at
from tiller.core.state import pack, same
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.cma import CmaEs
from tiller.solvers.evolution import Evolution
from tiller.solvers.gradient import Gradient
from tiller.solvers.random import Random
from tiller.testing.conformance import check_resume, comparable, through_json
from tiller.testing.fakes import FakeChoices, FakeMatch, FakeQuadratic, FakeStateful


@pytest.mark.parametrize("budget", [Budget(steps=7), Budget(images=9), Budget(steps=3)])
def test_resume_around_and_inside_a_relaxed_phase(budget: Budget) -> None:
    check_resume(relaxed_phases(FakeQuadratic(3, noise=0.1)), budget, seed=3)


# Resume


@pytest.mark.parametrize("kind", [FakeQuadratic, FakeStateful])
def test_resume_at_every_step_of_every_phase(kind: Callable[[int], Any]) -> None:
    # Steps 3 and 7 are exactly the ends of phases; the others lie in their middles.
    objective = kind(3)
    steps = check_resume(phases_of(objective), Budget(steps=12), seed=5)
    assert len(steps) == 12
    assert len({step.phase for step in steps}) == 3


@pytest.mark.parametrize("images", [7, 12])
def test_resume_under_an_image_budget(images: int) -> None:
    objective = FakeQuadratic(3, noise=0.3)
    check_resume(phases_of(objective)[:2], Budget(images=images))


def test_resume_twice_from_one_step() -> None:
    problem = FakeStateful(3)
    phases = phases_of(problem)
    whole = list(search_phases(phases, Budget(steps=8)))
    for _ in range(2):
        again = list(search_phases(phases, Budget(steps=8), resume=whole[4]))
        assert all(
            same(comparable(a), comparable(b)) for a, b in zip(whole[5:], again, strict=True)
        )


def test_a_larger_budget_continues_a_finished_run() -> None:
    problem = FakeQuadratic(3, noise=0.1)
    solver = CmaEs()
    long = list(search(problem.space, problem, solver, Budget(steps=9)))
    *_, short = search(problem.space, problem, solver, Budget(steps=5))
    more = list(search(problem.space, problem, solver, Budget(steps=9), resume=pack(short.state)))
    assert [step.index for step in more] == [6, 7, 8, 9]
    for a, b in zip(long[5:], more, strict=True):
        assert same(comparable(a), comparable(b))


def test_nothing_is_left_to_do_after_the_end() -> None:
    problem = FakeQuadratic(3)
    for solver, budget in (
        (BestOfN(n=5), Budget(images=100)),  # the solver is done
        (BestOfN(), Budget(images=5)),  # the budget is used
    ):
        *_, last = search(problem.space, problem, solver, budget)
        assert last.stopped is not None
        assert list(search(problem.space, problem, solver, budget, resume=last)) == []


def test_states_of_other_methods_are_refused() -> None:
    problem = FakeQuadratic(3)
    steps = list(search_phases(phases_of(problem), Budget(steps=12)))
    with pytest.raises(RunError, match="phase 3, and this method has 1"):
        search(problem.space, problem, BestOfN(), Budget(steps=20), resume=steps[-1])
    first = through_json(pack(steps[0].state))
    with pytest.raises(RunError, match="does not fit GradientState"):
        search(problem.space, problem, Gradient(), Budget(steps=20), resume=first)


# Budgets


@pytest.mark.parametrize("solver", [BestOfN(batch=7), Random(batch=7), Gradient(population=7)])
@pytest.mark.parametrize("limit", [{"steps": 3}, {"forwards": 20}, {"images": 20}])
def test_a_budget_is_never_overrun_by_more_than_a_round(
    solver: Solver[Any], limit: dict[str, int]
) -> None:
    problem = FakeQuadratic(3)
    (name, most), *_ = limit.items()
    steps = list(search(problem.space, problem, solver, Budget(**limit)))
    used = [getattr(step.cost, name) for step in steps]
    assert used[-2] < most <= used[-1]
    if name == "images":
        assert used[-1] == (20 if solver.divisible else 21)
    assert [step.cost.steps for step in steps] == [1, 2, 3]


def test_several_images_a_candidate() -> None:
    class Pairs(FakeQuadratic):
        images_per_candidate = 3

        def render(self, x: Tensor, draw: Draw) -> Tensor:
            count(images=2 * len(x))
            return super().render(x, draw)

    problem = Pairs(2)
    for images, used in ((30, 30), (31, 30), (29, 27), (2, 3)):  # a search makes one round at least
        *_, last = search(problem.space, problem, BestOfN(batch=4), Budget(images=images))
        assert last.cost.images == used
        assert last.stopped == f"budget: images={images}"
    sampling = Problem(problem.space, problem, BestOfN(batch=4))
    phases = [Phase("a", lambda _: sampling, until=0.5), Phase("b", lambda _: sampling)]
    steps = list(search_phases(phases, Budget(images=20)))
    assert [(step.phase, step.cost.images) for step in steps] == [("a", 9), ("b", 18)]


def test_a_budget_of_forwards_divides_a_round_where_those_of_a_candidate_are_known() -> None:
    class Deep(FakeQuadratic):
        forwards_per_candidate = 40

        def render(self, x: Tensor, draw: Draw) -> Tensor:
            count(forwards=39 * len(x))  # and one of its own
            return super().render(x, draw)

    problem = Deep(2)
    for forwards, used in ((400, 400), (439, 400), (360, 360), (30, 40)):  # one round at least
        solver, budget = BestOfN(batch=4), Budget(forwards=forwards)
        *_, last = search(problem.space, problem, solver, budget)
        assert last.cost.forwards == used
        assert last.stopped == f"budget: forwards={forwards}"


def test_seconds() -> None:
    problem = FakeQuadratic(2)
    *_, last = search(problem.space, problem, BestOfN(), Budget(seconds=0.05))
    assert last.stopped == "budget: seconds=0.05"
    assert last.cost.seconds >= 0.05


def test_ask_is_metered_too() -> None:
    class Wordy(BestOfN):
        def ask(self, space: Any, state: Any, rng: Stream) -> Tensor:
            count(tokens=11)
            return super().ask(space, state, rng)

    problem = FakeQuadratic(2)
    *_, last = search(problem.space, problem, Wordy(batch=3), Budget(steps=4))
    plain = Cost(
        steps=4, images=12, forwards=12, reward_calls=12, tokens=44,
        seconds=last.cost.seconds, peak_memory_bytes=last.cost.peak_memory_bytes,
    )  # fmt: skip
    assert last.cost == plain


# Errors


class Untouched(FakeMatch):
    """Fails the test when it is called."""

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        raise AssertionError("the model was called")


class UntouchedContinuous(FakeQuadratic):
    """Not differentiable, and fails the test when it is called."""

    def __init__(self) -> None:
        super().__init__(2)
        self.differentiable = False

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        raise AssertionError("the model was called")


@pytest.mark.parametrize(
    ("objective", "solver", "message"),
    [
        (Untouched(), Gradient(), r"Gradient searches a Continuous space, got FakeChoices"),
        (Untouched(), CmaEs(), r"CmaEs searches a Continuous space"),
        (UntouchedContinuous(), Evolution(), r"Evolution searches a Discrete space, got FakeBox"),
        (UntouchedContinuous(), Gradient(), r"needs a differentiable objective.*compares scores"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_call(
    objective: Any, solver: Solver[Any], message: str
) -> None:
    with pytest.raises(Incompatible, match=message):
        search(objective.space, objective, solver, Budget(steps=3))  # not even iterated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"solver": Gradient},
            r"solver must be an instance, got the class .*write Gradient\(\.\.\.\)",
        ),
        ({"solver": None}, "solver must be a Solver of tiller.core, got None"),
        (
            {"objective": lambda x: 0},
            "objective must be an Objective of tiller.core, got <function",
        ),
        ({"space": 3}, "space must be a Space of tiller.core, got 3"),
        ({"budget": 2}, "expected a budget like 'steps=30,images=64', as text or a Budget; got 2"),
    ],
)
def test_other_kinds_of_arguments_are_refused(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # the tests' own check of types
    problem = FakeQuadratic(2)
    right: dict[str, Any] = {"objective": problem, "solver": Gradient(), "budget": "steps=2"}
    with pytest.raises(InvalidInput, match=message):
        search(**{"space": problem.space, **right, **changes})


def test_a_budget_may_be_text() -> None:
    problem = FakeQuadratic(2)
    assert len(list(search(problem.space, problem, Gradient(), "steps=2"))) == 2


class Breaking(FakeQuadratic):
    """Returns `wrong` from the third round on."""

    def __init__(self, wrong: Callable[[Tensor], Any]) -> None:
        super().__init__(2)
        self.wrong = wrong

    def score(self, y: Tensor, draw: Draw) -> Any:
        score = super().score(y, draw)
        return self.wrong(score) if draw.round >= 2 else score


@pytest.mark.parametrize("solver", [BestOfN(batch=3), Gradient(population=3), CmaEs(popsize=3)])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s * float("nan"), "finite scores"),
        (lambda s: s + float("inf"), "finite scores"),
        (lambda s: torch.where(s == s.max(), s.new_tensor(float("-inf")), s), "finite scores"),
        (lambda s: s.mean(), r"shape \[3\]; got \[\]"),
        (lambda s: s[:, None], r"shape \[3\]; got \[3, 1\]"),
        (lambda s: s[:1], r"shape \[3\]; got \[1\]"),
    ],
)
def test_bad_scores_end_the_run_and_the_last_step_keeps_the_best(
    solver: Solver[Any], wrong: Callable[[Tensor], Any], message: str
) -> None:
    problem = Breaking(wrong)
    steps: list[Step] = []  # what was yielded before the error
    with pytest.raises(RewardError, match=message):
        steps.extend(search(problem.space, problem, solver, Budget(steps=9)))
    assert [step.index for step in steps] == [1, 2]
    best = max(float(step.evaluation.score.max()) for step in steps)
    assert steps[-1].best.score == best
    # the run can be resumed from there once the reward is mended
    mended = FakeQuadratic(2)
    *_, last = search(mended.space, mended, solver, Budget(steps=9), resume=steps[-1])
    assert last.index == 9


def test_a_gradient_that_is_not_finite_is_a_reward_error() -> None:
    class Cusp(FakeQuadratic):
        def score(self, y: Tensor, draw: Draw) -> Tensor:
            return -(0 * y).sum(dim=1).abs().sqrt()

    problem = Cusp(2)
    with pytest.raises(RewardError, match="gradient of the score is not finite"):
        list(search(problem.space, problem, Gradient(), Budget(steps=2)))


def test_seeds_repeat_and_differ() -> None:
    problem = FakeQuadratic(3, noise=0.5)

    def run(seed: int) -> list[Step]:
        return list(search(problem.space, problem, CmaEs(), Budget(steps=5), seed=seed))

    a, b, c = run(3), run(3), run(4)
    assert all(same(comparable(x), comparable(y)) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x.z, y.z) for x, y in zip(a, c, strict=True))


def test_a_start_must_have_the_spaces_shape() -> None:
    with pytest.raises(InvalidInput, match=r"shape \[k, 3\], got \[1, 4\]"):
        starting_at(FakeQuadratic(3).space, torch.zeros(1, 4))
    with pytest.raises(InvalidInput, match=r"shape \[k, 2\]"):
        starting_at(FakeChoices([2, 2]), torch.zeros(2, dtype=torch.int64))
