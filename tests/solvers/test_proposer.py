"""Proposals from outside: what the proposer is told, what is taken of it, and when it ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.search import Step, search
from tiller.solvers.best_of_n import BestOfN
from tiller.solvers.proposer import Propose, Proposer
from tiller.testing.conformance import check_solver
from tiller.testing.fakes import FakeMatch, FakeQuadratic


def run(solver: Proposer, budget: str = "steps=4", seed: int = 0) -> list[Step]:
    problem = FakeMatch(positions=4, options=3)
    return list(search(problem.space, problem, solver, Budget.parse(budget), seed=seed))


def climb(z: Tensor, score: Tensor, seed: int) -> Tensor:
    """The best so far with its last option at one position, for two chosen by the seed."""
    best = z[score.argmax()]
    moves = torch.where(torch.eye(len(best), dtype=torch.bool), 2, best)
    return moves[torch.randperm(len(best), generator=torch.Generator().manual_seed(seed))[:2]]


def test_the_proposer_is_told_the_whole_history_in_order() -> None:
    told: list[tuple[Tensor, Tensor]] = []

    def propose(z: Tensor, score: Tensor, seed: int) -> Tensor:
        told.append((z.clone(), score.clone()))
        return z.new_full((len(told), 4), min(len(told), 2))

    steps = run(Proposer(propose))
    assert [len(z) for z, _ in told] == [1, 2, 4]
    assert torch.equal(told[-1][0], torch.cat([step.z for step in steps[:3]]))
    scores = torch.cat([step.evaluation.score for step in steps[:3]])
    assert torch.equal(told[-1][1], scores)


def test_the_seed_is_the_rounds_and_the_runs() -> None:
    seeds: list[int] = []

    def propose(z: Tensor, score: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return z[:1]

    for seed in (0, 0, 1):
        run(Proposer(propose), "steps=3", seed)
    assert seeds[:2] == seeds[2:4]
    assert len(set(seeds)) == 4


def test_with_a_proposer_it_conforms_and_climbs() -> None:
    problem = FakeMatch(positions=4, options=3)
    check_solver(Proposer(climb), problem.space, problem, reaches=4.0, within=Budget(images=100))


def test_without_one_it_is_best_of_n() -> None:
    problem = FakeQuadratic(dimension=3)
    finds = [
        list(search(problem.space, problem, solver, Budget(images=41)))[-1].best
        for solver in (Proposer(batch=8), BestOfN(batch=8))
    ]
    assert torch.equal(finds[0].z, finds[1].z)


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_end(iterations: int) -> None:
    steps = run(Proposer(climb, iterations=iterations), "steps=9")
    assert len(steps) == iterations + 1
    assert "of proposals tried" in str(steps[-1].stopped)


def test_an_image_budget_cuts_a_round_short() -> None:
    steps = run(Proposer(climb), "images=4")
    assert [len(step.z) for step in steps] == [1, 2, 1]


@pytest.mark.parametrize(
    "propose",
    [
        lambda z, score, seed: z[:0],
        lambda z, score, seed: z[:, :2],
        lambda z, score, seed: z.double(),
    ],
    ids=["none", "short", "real"],
)
def test_what_is_no_point_of_the_space_is_refused(propose: Propose) -> None:
    with pytest.raises(InvalidInput, match=r"expected proposals z \[n >= 1, 4\] of torch.int64"):
        run(Proposer(propose))


@pytest.mark.parametrize("fields", [{"batch": 0}, {"iterations": 0}])
def test_fields_out_of_range(fields: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        Proposer(**fields)
