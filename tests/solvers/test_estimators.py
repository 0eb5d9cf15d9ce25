"""Estimated gradients: what they tend to, what they cost, and that no batch or restart shows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiller.core.budget import Budget, count, metered
from tiller.core.errors import Incompatible, InvalidInput, RewardError
from tiller.core.evaluation import Autograd, Estimator, evaluate
from tiller.core.objective import Objective
from tiller.core.rng import Draw, Stream
from tiller.core.search import Phase, Problem, search
from tiller.solvers.estimators import Hybrid1, Hybrid2, ZerothOrder
from tiller.solvers.gradient import Gradient
from tiller.solvers.rules import Sgd
from tiller.solvers.schedules import Exponential
from tiller.spaces.probability import Prno
from tiller.spaces.product import product
from tiller.testing.conformance import check_resume, check_solver
from tiller.testing.fakes import FakeBox, FakeMatch, FakeQuadratic, FakeStateful

Kind = type[ZerothOrder | Hybrid1 | Hybrid2]
KINDS: list[Kind] = [ZerothOrder, Hybrid1, Hybrid2]
DRAW = Draw(seed=2, round=5)


class Bent(Objective[Tensor, Tensor]):
    """A renderer with a Jacobian of its own, y = tanh(z A) [n, 4], and a black box on top.

    score(y) = -|y - 0.2|^2; `flat` scores everything alike, `straight` leaves out the tanh and
    scores the sum.
    """

    differentiable = False
    render_differentiable = True

    def __init__(self, *, flat: bool = False, straight: bool = False) -> None:
        generator = torch.Generator().manual_seed(11)
        self.matrix = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        self.space = FakeBox((3,))
        self.flat, self.straight = flat, straight

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        count(images=len(x), forwards=len(x))
        y = x @ self.matrix
        return y if self.straight else torch.tanh(y)

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        count(reward_calls=len(y))
        return self.white(y.detach())

    def white(self, y: Tensor) -> Tensor:
        """The score with its gradient."""
        if self.flat:
            return 0 * y.sum(dim=1) + 1
        return y.sum(dim=1) if self.straight else -((y - 0.2) ** 2).sum(dim=1)

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The true gradient J^T g [n, 3], and J^T J J^T g."""
        true, bent = [], []
        for one in z:

            def render(x: Tensor) -> Tensor:
                return self.render(x[None], DRAW)[0]

            jacobian = torch.autograd.functional.jacobian(render, one)
            y = render(one).requires_grad_()
            (g,) = torch.autograd.grad(self.white(y[None]).sum(), y)
            true.append(jacobian.T @ g)
            bent.append(jacobian.T @ jacobian @ jacobian.T @ g)
        return torch.stack(true), torch.stack(bent)


def gradient(estimator: Estimator, problem: Any, z: Tensor, draw: Draw = DRAW) -> Tensor:
    found = evaluate(problem.space, problem, z, draw, estimator)
    assert found.grad is not None
    return found.grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_over_many_directions_is_what_the_text_says(kind: Kind) -> None:
    problem = Bent()
    z = 0.4 * problem.space.sample(2, Stream(0))
    true, bent = problem.slopes(z)
    expected = bent if kind is Hybrid2 else true
    many = gradient(kind(q=10_000, mu=1e-4, normalise=False), problem, z)
    # The error of a mean of q directions is about |g| sqrt(d / q): here 2 %.
    assert float((many - expected).norm() / expected.norm()) < 0.08
    aligned = torch.cosine_similarity(gradient(kind(q=2000, mu=1e-3), problem, z), expected)
    assert bool((aligned > 0.99).all())


@pytest.mark.parametrize("kind", KINDS)
def test_few_directions_are_unbiased(kind: Kind) -> None:
    # On a linear map and a linear score each estimate has exactly the right mean.
    problem = Bent(straight=True)
    z = problem.space.sample(1, Stream(0))
    true, bent = problem.slopes(z)
    estimator = kind(q=1, mu=0.1, normalise=False)
    many = torch.cat([gradient(estimator, problem, z, Draw(0, r)) for r in range(600)])
    error = (many.mean(dim=0) - (bent if kind is Hybrid2 else true)[0]).abs()
    assert bool((error < 4 * many.std(dim=0) / math.sqrt(600)).all())


@pytest.mark.parametrize("q", [1, 3])
def test_small_moves_give_the_derivatives_along_the_directions(q: int) -> None:
    problem = Bent()
    z = 0.4 * problem.space.sample(2, Stream(1))
    true, _ = problem.slopes(z)
    generator = DRAW.generator("perturbations")
    xi = torch.stack([torch.randn(3, generator=generator, dtype=z.dtype) for _ in range(q)])
    expected = torch.einsum("nd,qd,qe->ne", true, xi, xi) / q  # mean_j (g . xi_j) xi_j
    found = gradient(ZerothOrder(q=q, mu=1e-6, normalise=False), problem, z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # Hybrid 2: the same directions, moved by J and brought back by J^T.
    h = 1e-6
    ahead = torch.stack([problem.render(z + h * one, DRAW) for one in xi], dim=1)
    moves = (ahead - problem.render(z, DRAW)[:, None]) / h  # J xi_j
    slopes = torch.einsum("nd,qd->nq", true, xi)
    direction = torch.einsum("nq,nqy->ny", slopes, moves) / q
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(problem.render(leaf, DRAW), leaf, direction)
    found = gradient(Hybrid2(q=q, mu=h, normalise=False), problem, z)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q", [1, 2, 5])
def test_a_normalised_direction_has_length_one(kind: Kind, q: int) -> None:
    problem = FakeQuadratic(dimension=3, black_box=True)  # y = z, so that J = I
    z = problem.space.sample(4, Stream(0))
    found = gradient(kind(q=q), problem, z)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4, dtype=torch.float64))
    plain = gradient(kind(q=q, normalise=False), problem, z)
    torch.testing.assert_close(found, plain / plain.norm(dim=1, keepdim=True))


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    q=st.integers(1, 4),
    n=st.integers(1, 3),
    mu=st.sampled_from([1e-8, 1e-2, 1.0, 100.0]),
    normalise=st.booleans(),
    shape=st.sampled_from([(1,), (3,), (2, 2), (1, 2, 3)]),
    single=st.booleans(),
)
def test_finite_for_any_setting_and_shape(
    kind: Kind, q: int, n: int, mu: float, normalise: bool, shape: Sequence[int], single: bool
) -> None:
    class Sum(FakeQuadratic):
        def score(self, y: Tensor, draw: Draw) -> Tensor:
            return (y.detach() ** 3).flatten(1).sum(dim=1)

    dtype = torch.float32 if single else torch.float64
    problem = Sum(black_box=True)
    problem.space = FakeBox(shape, dtype=dtype)
    z = problem.space.sample(n, Stream(0))
    found = evaluate(problem.space, problem, z, DRAW, kind(q, mu, normalise))
    assert found.grad is not None
    assert found.grad.shape == z.shape
    assert found.grad.dtype == dtype
    assert bool(torch.isfinite(found.grad).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", [True, False])
def test_where_no_score_changes_the_gradient_is_zero(kind: Kind, normalise: bool) -> None:
    problem = Bent(flat=True)
    found = gradient(kind(normalise=normalise), problem, problem.space.sample(2, Stream(0)))
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_change_nothing(kind: Kind, size: int) -> None:
    whole = Bent()
    z = 0.4 * whole.space.sample(4, Stream(0))
    parts = copy.copy(whole)
    parts.batch_size = size
    a, b = (evaluate(p.space, p, z, DRAW, kind(q=3)) for p in (whole, parts))
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.reward, b.reward, rtol=1e-12, atol=0)
    assert a.cost.images == b.cost.images


@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_is_larger_than_allowed(kind: Kind) -> None:
    sizes: list[int] = []

    class Watched(Bent):
        def render(self, x: Tensor, draw: Draw) -> Tensor:
            sizes.append(len(x))
            return super().render(x, draw)

        def score(self, y: Tensor, draw: Draw) -> Tensor:
            sizes.append(len(y))
            return super().score(y, draw)

    problem = Watched()
    problem.batch_size = 2
    gradient(kind(q=5), problem, problem.space.sample(3, Stream(0)))
    assert max(sizes) == 2


@pytest.mark.parametrize(
    ("estimator", "images", "calls"),
    [(ZerothOrder(q=3), 8, 8), (Hybrid1(q=3), 2, 8), (Hybrid2(q=3), 8, 8)],
)
def test_cost(estimator: Estimator, images: int, calls: int) -> None:
    problem = Bent()
    z = problem.space.sample(2, Stream(0))
    with metered() as meter:
        evaluate(problem.space, problem, z, DRAW, estimator)
    assert (meter.cost.images, meter.cost.reward_calls) == (images, calls)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_share_the_directions_and_do_not_see_each_other(kind: Kind) -> None:
    problem = Bent()
    z = 0.4 * problem.space.sample(3, Stream(0))
    together = gradient(kind(q=2), problem, z)
    alone = torch.cat([gradient(kind(q=2), problem, one[None]) for one in z])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    same = gradient(kind(q=2), problem, z[:1].expand(3, 3))
    torch.testing.assert_close(same, same[:1].expand(3, 3), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(together, gradient(kind(q=2), problem, z, Draw(2, 6)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_suite(kind: Kind) -> None:
    """Convergence on a known quadratic, resume, budgets, batches."""
    problem = FakeQuadratic(dimension=3, condition=3.0, black_box=True)
    solver = Gradient(rule=Sgd(), lr=0.03, estimator=kind(normalise=False))
    check_solver(solver, problem.space, problem, reaches=-1e-3, within=Budget(steps=200))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q", [1, 4])
def test_normalised_steps_converge_as_they_shrink(kind: Kind, q: int) -> None:
    problem = FakeQuadratic(dimension=3, black_box=True)
    schedule = Exponential(factor=0.97, every=1)
    solver = Gradient(
        rule=Sgd(), lr=0.3, schedule=schedule, estimator=kind(q=q, mu=1e-3), population=2
    )
    *_, last = search(problem.space, problem, solver, Budget(steps=200))
    assert bool((last.evaluation.score > -2e-2).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stateful", [False, True])
def test_resume_is_bit_exact_also_with_penalties(kind: Kind, stateful: bool) -> None:
    problem: Any = FakeStateful() if stateful else FakeQuadratic(dimension=4, black_box=True)
    problem.regularisers = (Prno(b=3, weight=0.1),)
    solver = Gradient(lr=0.05, population=2, estimator=kind(q=2))
    phase = Phase("search", lambda _: Problem(problem.space, problem, solver))
    assert len(check_resume([phase], Budget(steps=4), seed=3)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_is_added_exactly(kind: Kind) -> None:
    problem = FakeQuadratic(dimension=6, black_box=True)
    z = 3 * problem.space.sample(2, Stream(0))
    plain = gradient(kind(), problem, z)
    problem.regularisers = (Prno(b=3, weight=0.5),)
    slope = Prno(b=3).gradient(z, DRAW)
    assert float(slope.norm()) > 0
    torch.testing.assert_close(gradient(kind(), problem, z), plain - 0.5 * slope)


def test_bounds_of_a_space_and_of_pictures_are_kept() -> None:
    """Perturbed points are projected, and the moves that were made are what counts."""
    seen: list[Tensor] = []

    class Pixels(FakeQuadratic):
        def render(self, x: Tensor, draw: Draw) -> Tensor:
            assert float(x.detach().abs().max()) <= 0.5
            return x + 0.5

        def nearest(self, y: Tensor) -> Tensor:
            return y.clamp(0, 1)

        def score(self, y: Tensor, draw: Draw) -> Tensor:
            seen.append(y)
            return y.detach().sum(dim=1)

    problem = Pixels(dimension=2, black_box=True)
    problem.space = FakeBox((2,), limit=0.5)
    z = torch.tensor([[0.5, 0.0]], dtype=torch.float64)  # the first number can only fall
    for estimator in (ZerothOrder(q=50, mu=0.1), Hybrid1(q=50, mu=0.1), Hybrid2(q=50, mu=0.1)):
        found = gradient(estimator, problem, z)[0]
        assert bool((found > 0).all()), f"{estimator}: {found}"
    assert all(bool(((y >= 0) & (y <= 1)).all()) for y in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_any_continuous_space(kind: Kind) -> None:
    space = product(FakeBox((2,)), FakeBox((2, 2)))

    class Pair(FakeQuadratic):
        def render(self, x: Any, draw: Draw) -> Tensor:
            count(images=len(x[0]))
            return torch.cat([part.flatten(1) for part in x], dim=1)

    problem = Pair(dimension=6, black_box=True)
    solver = Gradient(lr=0.1, estimator=kind())
    steps = list(search(space, problem, solver, Budget(steps=60)))
    assert steps[-1].best.score > 0.2 * steps[0].best.score  # scores are below 0


def test_what_cannot_work_is_refused_before_the_first_render() -> None:
    class Closed(Bent):
        render_differentiable = False

        def render(self, x: Tensor, draw: Draw) -> Tensor:
            raise AssertionError("nothing may be rendered")

    problem = Closed()
    for kind in (Hybrid1, Hybrid2):
        with pytest.raises(Incompatible, match=r"what is rendered.*ZerothOrder"):
            Problem(problem.space, problem, Gradient(estimator=kind()))
    Problem(problem.space, problem, Gradient(estimator=ZerothOrder()))
    with pytest.raises(Incompatible, match="differentiable objective"):
        Problem(problem.space, problem, Gradient(estimator=Autograd()))
    match = FakeMatch()
    with pytest.raises(Incompatible, match="Continuous"):
        Problem(match.space, match, Gradient(estimator=ZerothOrder()))


@pytest.mark.parametrize("kind", [Hybrid1, Hybrid2])
def test_a_render_that_breaks_its_promise_is_named(kind: Kind) -> None:
    class Cut(Bent):
        def render(self, x: Tensor, draw: Draw) -> Tensor:
            return super().render(x, draw).detach()

    class Listed(Bent):
        def render(self, x: Tensor, draw: Draw) -> Any:
            return [super().render(x, draw)]

        def score(self, y: Any, draw: Draw) -> Tensor:
            return super().score(y[0], draw)

    for problem, message in ((Cut(), "carries no gradient"), (Listed(), "one tensor")):
        with pytest.raises(Incompatible, match=message):
            gradient(kind(), problem, problem.space.sample(1, Stream(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_perturbed_points_are_checked(kind: Kind) -> None:
    class Fragile(Bent):
        def score(self, y: Tensor, draw: Draw) -> Tensor:
            return super().score(y, draw) * (float("nan") if len(y) > 1 else 1.0)

    problem = Fragile()
    with pytest.raises(RewardError, match="finite"):
        gradient(kind(q=2), problem, problem.space.sample(1, Stream(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_settings(kind: Kind) -> None:
    paper = {ZerothOrder: (16, 0.01), Hybrid1: (8, 0.01), Hybrid2: (4, 0.02)}
    assert (kind().q, kind().mu) == paper[kind]
    bad: list[Callable[[], object]] = [
        lambda: replace(kind(), q=0),
        lambda: replace(kind(), mu=0.0),
        lambda: replace(kind(), mu=math.inf),
    ]
    for make in bad:
        with pytest.raises(InvalidInput):
            make()
