"""The shipped suite finds the faults that it is for, and says which."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget, count
from tiller.core.evaluation import Evaluation
from tiller.core.rng import Stream
from tiller.core.solver import Solver
from tiller.core.space import Space
from tiller.testing.conformance import check_reward, check_solver, check_space
from tiller.testing.fakes import FakeBox, FakeChoices, FakeQuadratic

_calls = itertools.count()


@dataclass
class Memory:
    """A state that may be changed in place, wrongly."""

    best: Tensor
    rounds: int


@dataclass(frozen=True)
class Honest(Solver[Memory]):
    """Passes; the others each break one promise of it."""

    divisible: ClassVar[bool] = True

    def init(self, space: Space[Any], rng: Stream) -> Memory:
        return Memory(torch.zeros(0), 0)

    def ask(self, space: Space[Any], state: Memory, rng: Stream) -> Tensor:
        return space.sample(4, rng)

    def tell(self, space: Space[Any], state: Memory, z: Tensor, evaluation: Evaluation) -> Memory:
        return Memory(evaluation.score.max()[None], state.rounds + 1)


@dataclass(frozen=True)
class InPlace(Honest):
    def tell(self, space: Space[Any], state: Memory, z: Tensor, evaluation: Evaluation) -> Memory:
        state.rounds += 1
        return Memory(state.best, state.rounds)


@dataclass(frozen=True)
class Deaf(Honest):
    def ask(self, space: Space[Any], state: Memory, rng: Stream) -> Tensor:
        return space.sample(4, Stream(11, position=4 * state.rounds))


@dataclass(frozen=True)
class Forgetful(Honest):
    def ask(self, space: Space[Any], state: Memory, rng: Stream) -> Tensor:
        return space.sample(4, Stream(rng.seed, position=next(_calls)))


@dataclass(frozen=True)
class Graph(Honest):
    def ask(self, space: Space[Any], state: Memory, rng: Stream) -> Tensor:
        return space.sample(4, rng).requires_grad_()


@dataclass(frozen=True)
class WrongShape(Honest):
    def ask(self, space: Space[Any], state: Memory, rng: Stream) -> Tensor:
        return space.sample(4, rng)[0]


@dataclass(frozen=True)
class Downhill(Honest):
    """Moves, as fast as it can, to where the score is lowest."""

    def tell(self, space: Space[Any], state: Memory, z: Tensor, evaluation: Evaluation) -> Memory:
        return Memory(z[evaluation.score.argmin()], state.rounds + 1)

    def ask(self, space: Space[Any], state: Memory, rng: Stream) -> Tensor:
        z = space.sample(4, rng)
        return z + state.best if state.rounds else z


def test_an_honest_solver_passes() -> None:
    problem = FakeQuadratic(2)
    check_solver(Honest(), problem.space, problem, reaches=-1.0, within=Budget(images=200))


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (InPlace(), "changed the state in place"),
        (Deaf(), "same candidates for seeds 0 and 1"),
        (Forgetful(), "gave other candidates for an equal state"),
        (Graph(), "must not hold a graph"),
        (WrongShape(), r"must return z \[n, 2\]"),
        (Downhill(), "higher is better, only a solver negates"),
    ],
)
def test_each_fault_is_named(solver: Solver[Any], message: str) -> None:
    problem = FakeQuadratic(2)
    with pytest.raises(AssertionError, match=message):
        check_solver(solver, problem.space, problem, reaches=-0.01, within=Budget(images=60))


def test_an_objective_that_forgets_its_state_is_found() -> None:
    from tiller.core.search import Phase, Problem
    from tiller.testing.conformance import check_resume
    from tiller.testing.fakes import FakeStateful

    class Amnesic(FakeStateful):
        def load_state(self, state: dict[str, Tensor]) -> None:
            pass

    problem = Amnesic()
    phase = Phase("search", lambda _: Problem(problem.space, problem, Honest()))
    with pytest.raises(AssertionError, match="resumed from its file after step 1 differs"):
        check_resume([phase], Budget(steps=3))


class _Batchy(FakeBox):
    def sample(self, n: int, rng: Stream) -> Tensor:
        return super().sample(n, rng) + n


class _Cut(FakeBox):
    def decode(self, z: Tensor) -> Tensor:
        return z.detach()


class _Restless(FakeBox):
    def project(self, z: Tensor) -> Tensor:
        return z / 2


class _OffByOne(FakeChoices):
    def sample(self, n: int, rng: Stream) -> Tensor:
        return super().sample(n, rng) + 1


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (_Batchy((2,)), "sample depends on the batch"),
        (_Cut((2,)), "decode cuts the graph"),
        (_Restless((2,)), "project must leave alone"),
        (_OffByOne([2, 2]), "an option outside"),
    ],
)
def test_each_fault_of_a_space_is_named(space: Space[Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_space(space)


def test_good_spaces_pass() -> None:
    check_space(FakeBox((2, 3)))
    check_space(FakeChoices([3, 1, 7]))


class _Mean:
    differentiable = True
    name = "mean"

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        self.score = score

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        count(reward_calls=len(images))
        return self.score(images)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda x: x.mean(), "must return scores"),
        (lambda x: x.flatten(1).mean(1) / 0, "returned"),
        (lambda x: x.flatten(1).mean(1) - x.mean(), "depends on the batch"),
        (lambda x: x.detach().flatten(1).mean(1), "cuts the graph"),
        (lambda x: x.flatten(1).mean(1) * 0, "zero everywhere"),
        (lambda x: x.flatten(1).mean(1) + next(_calls), "not deterministic"),
        (lambda x: x.mul_(0.5).flatten(1).mean(1), "in place"),
    ],
)
def test_each_fault_of_a_reward_is_named(score: Callable[[Tensor], Tensor], message: str) -> None:
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match=message):
        check_reward(_Mean(score), images, ["a", "b", "c"])


def test_a_good_reward_passes() -> None:
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    check_reward(_Mean(lambda x: x.flatten(1).mean(1)), images, ["a", "b", "c"])
