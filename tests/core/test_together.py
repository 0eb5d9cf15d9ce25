"""Searches side by side find what they find alone, at the same cost."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget, count
from tiller.core.errors import RewardError
from tiller.core.evaluation import Estimator
from tiller.core.rng import Draw
from tiller.core.search import Phase, Problem, Search, Step, search_phases, search_together
from tiller.core.solver import Solver
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.estimators import Hybrid1, Hybrid2, ZerothOrder
from tiller.solvers.gradient import Gradient
from tiller.spaces.norm import ChiNorm
from tiller.testing.fakes import FakeQuadratic


class Shared(FakeQuadratic):
    """A quadratic whose candidates can be rendered with others', counting its calls."""

    calls: ClassVar[list[int]] = []

    def joint_key(self) -> Hashable:
        return "shared"

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        self.calls.append(len(x))
        count(forwards=2 * len(x), images=len(x))
        return super().render(x, draw)

    def render_jointly(self, xs: Sequence[Tensor], draws: Sequence[Draw]) -> list[Tensor]:
        assert len(xs) == len(draws)
        return list(self.render(torch.cat(list(xs)), Draw(0, 0)).split([len(x) for x in xs]))


def searches(kind: type[FakeQuadratic], solver: Solver, steps: int = 5) -> list[Search]:
    problem = kind(dimension=3)
    phases = [Phase("search", lambda _: Problem(problem.space, problem, solver))]
    return [Search(phases, Budget(steps=steps + seed), seed) for seed in range(3)]


SOLVERS = {"gradient": Gradient(lr=0.1, population=2), "best_of_n": BestOfN(batch=3)}


COMPARING = {
    kind.__name__: Gradient(lr=0.1, population=2, estimator=kind(q=3))
    for kind in (ZerothOrder, Hybrid1, Hybrid2)
}
ALL = SOLVERS | COMPARING


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL.keys())
def test_side_by_side_equals_alone(solver: Solver) -> None:
    together: dict[int, list] = {0: [], 1: [], 2: []}
    for i, step in search_together(searches(Shared, solver)):
        together[i].append(step)
    for i, one in enumerate(searches(Shared, solver)):
        alone = list(search_phases(one.phases, one.budget, seed=one.seed))
        assert len(alone) == len(together[i]) == 5 + i
        for a, b in zip(alone, together[i], strict=True):
            torch.testing.assert_close(a.z, b.z)
            torch.testing.assert_close(a.evaluation.score, b.evaluation.score)
            torch.testing.assert_close(a.best.y, b.best.y)
            assert a.stopped == b.stopped
            same = {"seconds": 0.0, "peak_memory_bytes": 0}
            assert replace(a.cost, **same) == replace(b.cost, **same)


def test_one_call_draws_for_all() -> None:
    Shared.calls = []
    for _ in search_together(searches(Shared, Gradient(lr=0.1), steps=1)):
        pass
    assert Shared.calls == [3, 2, 1]


def test_no_more_at_once_than_there_is_room_for() -> None:
    class Small(Shared):
        def room(self, x: Tensor, gradient: bool) -> int:
            return 2

    Shared.calls = []
    for _ in search_together(searches(Small, Gradient(lr=0.1), steps=1)):
        pass
    assert Shared.calls == [2, 1, 2, 1]


def test_estimators_that_compare_scores_share_their_calls_too() -> None:
    class Small(Shared):
        def room(self, x: Tensor, gradient: bool) -> int:
            return 5

    def calls(kind: type[Shared], estimator: Estimator) -> list[int]:
        Shared.calls = []
        for _ in search_together(searches(kind, Gradient(lr=0.1, estimator=estimator), steps=1)):
            pass
        return Shared.calls

    assert calls(Shared, ZerothOrder(q=4)) == [3, 12, 2, 8, 1, 4]
    assert calls(Shared, Hybrid1(q=4)) == [3, 2, 1]
    assert calls(Shared, Hybrid2(q=4)) == [12, 3, 8, 2, 4, 1]
    assert calls(Small, Hybrid2(q=4))[:4] == [4, 4, 4, 3], "whole searches' pieces of at most 5"


class Judged(Shared):
    """Its candidates are scored with others' too, and its distance from 1 is a penalty."""

    rows: ClassVar[list[int]] = []

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.regularisers = (ChiNorm(weight=0.1),)

    def score_key(self) -> Hashable:
        return "judged"

    @classmethod
    def score_jointly(
        cls, objectives: Sequence[Judged], ys: Sequence[Tensor], draws: Sequence[Draw]
    ) -> list[Tensor]:
        cls.rows.append(sum(len(y) for y in ys))
        found = objectives[0].score(torch.cat(list(ys)), draws[0])
        return list(found.split([len(y) for y in ys]))

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        count(reward_calls=len(y))
        return super().score(y, draw)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_scores_and_penalties_from_one_call_are_as_alone(solver: Solver) -> None:
    Judged.rows = []
    alone = [list(search_phases(s.phases, s.budget, seed=0)) for s in searches(Judged, solver)]
    together: dict[int, list] = {0: [], 1: [], 2: []}
    for i, step in search_together([replace(s, seed=0) for s in searches(Judged, solver)]):
        together[i].append(step)
    n = len(alone[0][0].z)
    assert Judged.rows == [3 * n] * 5 + [2 * n], "the last round is one search's own"
    for i, steps in enumerate(alone):
        for a, b in zip(steps, together[i], strict=True):
            torch.testing.assert_close(a.evaluation.score, b.evaluation.score)
            torch.testing.assert_close(a.evaluation.penalty, b.evaluation.penalty)
            torch.testing.assert_close(a.z, b.z)
            assert a.cost.reward_calls == b.cost.reward_calls > 0


def test_all_steps_of_a_round_are_looked_at_before_the_first_is_yielded() -> None:
    looked: list[list[int]] = []

    def until(steps: Sequence[tuple[int, Step]]) -> list[str | None]:
        looked.append([i for i, _ in steps])
        return ["enough" if i == 1 and step.index == 2 else None for i, step in steps]

    ended = {}
    for i, step in search_together(searches(Shared, Gradient(lr=0.1), steps=3), until):
        assert len(looked) == step.index
        if step.stopped is not None:
            ended[i] = step.index, step.stopped
    assert looked == [[0, 1, 2], [0, 1, 2], [0, 2], [2], [2]]
    assert ended == {0: (3, "budget: steps=3"), 1: (2, "enough"), 2: (5, "budget: steps=5")}


def test_a_reward_without_gradient_is_refused() -> None:
    class Lost(Shared):
        def score(self, y: Tensor, draw: Draw) -> Tensor:
            return super().score(y, draw).detach()

    with pytest.raises(RewardError, match="without a gradient"):
        list(search_together(searches(Lost, Gradient(lr=0.1))))


def test_each_resumes_from_its_own_step() -> None:
    halves = dict(search_together(searches(Shared, Gradient(lr=0.1), steps=2)))
    whole = dict(search_together(searches(Shared, Gradient(lr=0.1), steps=5)))
    again = [
        replace(one, resume=halves[i])
        for i, one in enumerate(searches(Shared, Gradient(lr=0.1), steps=5))
    ]
    for i, step in search_together(again):
        last = step
        if step.stopped:
            torch.testing.assert_close(last.z, whole[i].z)
