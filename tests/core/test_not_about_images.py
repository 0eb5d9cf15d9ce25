"""The core is not about images: an architecture search and a program search run on the same loop.

Neither test imports anything but the core and the solvers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.objective import Objective
from tiller.core.rng import Draw, Stream, keyed_generator
from tiller.core.search import Phase, Problem, search
from tiller.core.space import Continuous, Discrete
from tiller.solvers.evolution import Evolution
from tiller.solvers.gradient import Gradient
from tiller.solvers.random import Random
from tiller.solvers.rules import Adam
from tiller.testing.conformance import check_resume, check_space

# --- A first-order DARTS: architecture logits above, a supernet's weights below

# Of unit size and nearly uncorrelated for normal inputs (Hermite polynomials, a fast wave), as
# batch norm would make them: otherwise the known bias of DARTS towards large operations decides.
OPERATIONS = {
    "none": lambda x: torch.zeros_like(x),
    "skip": lambda x: x,
    "square": lambda x: (x**2 - 1) / 2**0.5,
    "cube": lambda x: (x**3 - 3 * x) / 6**0.5,
    "sine": lambda x: torch.sin(4 * x) * 2**0.5,
}
NAMES = list(OPERATIONS)
EDGES = 3


class Architecture(Continuous[Tensor]):
    """Logits [n, edges, operations]; x is their softmax: a mixture of operations on each edge."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (EDGES, len(NAMES))

    def sample(self, n: int, rng: Stream) -> Tensor:
        rows = [
            torch.randn(self.shape, generator=rng.next(), dtype=torch.float64) for _ in range(n)
        ]
        return 1e-3 * torch.stack(rows)

    def decode(self, z: Tensor) -> Tensor:
        return z.softmax(dim=-1)


class Supernet(Objective[Tensor, Tensor]):
    """prediction = sum_e sum_k mix[e, k] weight[e, k] op_k(input_e); one input an edge.

    A round draws a batch of the train half and takes a few steps of the weights at the present
    mixture, held fixed (first order); the score is minus the error on a batch of the other half.
    """

    stateful = True
    differentiable = True

    def __init__(self, truth: tuple[str, ...]) -> None:
        generator = keyed_generator(0, "data")
        inputs = torch.randn(800, EDGES, generator=generator, dtype=torch.float64)
        self.features = torch.stack([op(inputs) for op in OPERATIONS.values()], dim=-1)
        strength = torch.tensor([1.0, -0.8, 1.2], dtype=torch.float64)
        right = torch.tensor([NAMES.index(name) for name in truth])
        chosen = self.features[:, torch.arange(EDGES), right]
        noise = 0.1 * torch.randn(800, generator=generator, dtype=torch.float64)
        self.targets = (chosen * strength).sum(dim=1) + noise
        self.weights = torch.full((EDGES, len(NAMES)), 0.1, dtype=torch.float64)

    def batch(self, half: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """32 examples of the train half (0) or the validation half (1)."""
        rows = torch.randint(400, (32,), generator=generator) + 400 * half
        return self.features[rows], self.targets[rows]

    def predict(self, mix: Tensor, weights: Tensor, features: Tensor) -> Tensor:
        """[n, batch] for mixtures [n, edges, operations]."""
        return torch.einsum("nek,ek,bek->nb", mix, weights, features)

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        generator = draw.generator("train")
        for _ in range(3):
            features, targets = self.batch(0, generator)
            weights = self.weights.clone().requires_grad_()
            with torch.enable_grad():
                error = self.predict(x.detach(), weights, features) - targets
                loss = (error**2).mean() + 3e-2 * (weights**2).sum()
                (slope,) = torch.autograd.grad(loss, weights)
            self.weights = self.weights - 0.1 * slope
        features, targets = self.batch(1, draw.generator("validation"))
        return self.predict(x, self.weights, features) - targets

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        return -(y**2).mean(dim=1)

    def state(self) -> dict[str, Tensor]:
        return {"weights": self.weights.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.weights = state["weights"].clone()


DARTS = Gradient(rule=Adam(beta1=0.5, weight_decay=1e-3), lr=0.03)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "truth",
    [("sine", "square", "cube"), ("skip", "sine", "sine"), ("square", "cube", "skip")],
)
def test_darts_picks_the_operations_that_made_the_data(truth: tuple[str, ...], seed: int) -> None:
    supernet = Supernet(truth)
    *_, last = search(Architecture(), supernet, DARTS, Budget(steps=250), seed=seed)
    mixture = Architecture().decode(last.state.solver.z)[0]
    assert tuple(NAMES[int(k)] for k in mixture.argmax(dim=1)) == truth
    assert float(mixture.max(dim=1).values.min()) > 0.4  # decided, from 0.2 each
    assert last.cost.images == 0


def test_darts_resumes_bit_exactly_with_the_supernets_weights() -> None:
    supernet = Supernet(("sine", "square", "cube"))
    phase = Phase("bilevel", lambda _: Problem(Architecture(), supernet, DARTS))
    steps = check_resume([phase], Budget(steps=6))
    weights = [step.state.objective["weights"] for step in steps]
    assert all((a != b).any() for a, b in pairwise(weights))


# --- A search over programs: genes to expression trees

FUNCTIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "max": torch.maximum,
}
LEAVES = ("x", "y", "1", "2", "3")
Tree = Any  # a leaf's name, or (function, left tree, right tree)


class Expressions(Discrete[list[Tree]]):
    """Complete binary trees of depth 2, genes in heap order: 3 functions, then 4 leaves."""

    @property
    def choices(self) -> tuple[int, ...]:
        return (len(FUNCTIONS),) * 3 + (len(LEAVES),) * 4

    def decode(self, z: Tensor) -> list[Tree]:
        return [self.tree(genes, 0) for genes in z.tolist()]

    def tree(self, genes: list[int], node: int) -> Tree:
        if node >= 3:
            return LEAVES[genes[node]]
        name = list(FUNCTIONS)[genes[node]]
        return (name, self.tree(genes, 2 * node + 1), self.tree(genes, 2 * node + 2))


class Fit(Objective[list[Tree], Tensor]):
    """Minus the mean squared error to a formula on a grid; exact finds score 0."""

    def __init__(self, formula: Any) -> None:
        x, y = torch.meshgrid(*[torch.linspace(-2, 2, 5, dtype=torch.float64)] * 2, indexing="ij")
        self.values = {"x": x.flatten(), "y": y.flatten()}
        self.values |= {name: torch.full((25,), float(name)).double() for name in "123"}
        self.wanted = formula(self.values["x"], self.values["y"])

    def run(self, tree: Tree) -> Tensor:
        if isinstance(tree, str):
            return self.values[tree]
        name, left, right = tree
        return FUNCTIONS[name](self.run(left), self.run(right))

    def render(self, x: list[Tree], draw: Draw) -> Tensor:
        return torch.stack([self.run(tree) for tree in x])

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        return -((y - self.wanted) ** 2).mean(dim=1)


def test_expressions_are_a_space() -> None:
    space = Expressions()
    check_space(space)
    assert space.size == 4**3 * 5**4 == 40_000
    (tree,) = space.decode(torch.tensor([[0, 2, 1, 0, 0, 3, 1]]))
    assert tree == ("+", ("*", "x", "x"), ("-", "2", "y"))


FORMULAS = {
    "x^2 + 2 y": lambda x, y: x * x + 2 * y,
    "(x + 1) (y - 3)": lambda x, y: (x + 1) * (y - 3),
    "max(x y, 2 - x)": lambda x, y: torch.maximum(x * y, 2 - x),
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_evolution_finds_the_formula(formula: str) -> None:
    problem, space = Fit(FORMULAS[formula]), Expressions()
    solver = Evolution(population=40, keep=20, mutants=20, crossovers=10, mutation_rate=0.2)
    found = []
    for seed in range(3):
        for step in search(space, problem, solver, Budget(steps=150), seed=seed):
            if step.best.score == 0:
                found.append(step.index)
                break
    assert len(found) == 3, f"{formula}: an exact tree in {len(found)} of 3 searches"
    # at most 4,510 of 40,000 programs were run, where drawing finds one of some 8 equal trees
    # after 5,000 on average
    tree = space.decode(step.best.z)[0]
    assert torch.equal(problem.run(tree), problem.wanted)


def test_the_program_search_resumes_bit_exactly() -> None:
    problem = Fit(FORMULAS["x^2 + 2 y"])
    for solver in (Evolution(population=6, keep=3, mutants=2, crossovers=2), Random()):
        phase = Phase("evolve", lambda _, s=solver: Problem(Expressions(), problem, s))
        assert len(check_resume([phase], Budget(steps=5))) == 5
