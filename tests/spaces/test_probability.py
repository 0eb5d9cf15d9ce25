"""P(z) and the probability regulariser: against autograd, known noises, and what may not matter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.evaluation import Autograd, evaluate
from tiller.core.rng import STEADY, Draw, keyed_generator
from tiller.spaces import probability as module
from tiller.spaces.probability import AsStored, OfLast, OwnOrder, Prno, probability
from tiller.testing.allocated import Allocated
from tiller.testing.fakes import FakeQuadratic

DRAW = Draw(seed=3, round=7)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def log_bounds(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """log p1 and log p2 of vectors [m, k], as the equations stand, for autograd."""
    m, k = vectors.shape
    m1 = torch.linalg.vector_norm(vectors.mean(dim=0))
    covariance = vectors.T @ vectors / m
    m2 = torch.linalg.matrix_norm(covariance - torch.eye(k, dtype=vectors.dtype), ord=2)
    s = torch.clamp(torch.sqrt(1 + m2) - 1 - math.sqrt(k / m), min=0)
    log_p1 = torch.clamp(math.log(2) - m * m1**2 / (2 * k), max=0)
    log_p2 = torch.clamp(math.log(2) - m * s**2 / 2, max=0)
    return log_p1, log_p2


def reference(z: Tensor, prno: Prno, draw: Draw) -> Tensor:
    """The penalty [n], all orders in one graph."""
    flat, generator = z.flatten(1), draw.generator("prno")
    m = flat.shape[1] // prno.k
    first = torch.randperm(flat.shape[1], generator=generator)[: m * prno.k]
    orders = [first[torch.randperm(len(first), generator=generator)] for _ in range(prno.b)]
    penalties = [
        sum(-sum(log_bounds(one[order].view(prno.k, m).T)) for order in orders) / prno.b
        for one in flat
    ]
    return torch.stack(penalties)  # type: ignore[arg-type]


SHAPED: dict[str, Callable[[], Tensor]] = {
    "typical": lambda: normal(3, 4, 5, 2),
    "shrunk": lambda: 0.3 * normal(2, 60),
    "stretched": lambda: 1.7 * normal(2, 60),
    "shifted": lambda: normal(2, 60) + 0.8,
    "one of each": lambda: torch.stack([normal(60), 2 * normal(60), normal(60) - 1]),
    "odd": lambda: 1.5 * normal(2, 61) + 0.5,
}


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_value_and_gradient_equal_autograds(name: str, k: int) -> None:
    z, prno = SHAPED[name](), Prno(k=k, b=5)
    leaf = z.clone().requires_grad_()
    expected = reference(leaf, prno, DRAW)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    value, gradient = prno.value_and_gradient(z, DRAW)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)
    assert torch.equal(prno.value(z, DRAW), value)
    assert torch.equal(prno.gradient(z, DRAW), gradient)


def test_the_cases_above_reach_both_bounds() -> None:
    """Else a gradient that is 0 everywhere would pass."""
    mean_off = Prno(b=5).gradient(SHAPED["shifted"](), DRAW)
    wide = Prno(b=5).gradient(SHAPED["stretched"](), DRAW)
    assert bool((mean_off > 0).any())
    assert torch.corrcoef(torch.stack([wide.flatten(), SHAPED["stretched"]().flatten()]))[0, 1] > 0


def test_whoever_differentiates_the_value_gets_the_closed_form() -> None:
    z, prno, weights = 2 * normal(3, 4, 6), Prno(b=4), torch.tensor([1.0, -2.0, 0.5]).double()
    leaf = z.clone().requires_grad_()
    (weights * prno.value(leaf, DRAW)).sum().backward()
    expected = weights.view(3, 1, 1) * prno.gradient(z, DRAW)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-12, atol=1e-12)


def test_it_is_subtracted_from_a_score_with_its_weight() -> None:
    problem = FakeQuadratic(dimension=6, regularisers=(Prno(b=3, weight=0.7),))
    z = 3 * normal(2, 6)
    found = evaluate(problem.space, problem, z, DRAW, Autograd())
    gradient = Prno(b=3).gradient(z, DRAW)
    value = Prno(b=3).value(z, STEADY)
    slope = -2 * problem.scale * (z - problem.target) - 0.7 * gradient
    assert bool((value > 0).all())
    torch.testing.assert_close(found.score, found.reward - 0.7 * value)
    torch.testing.assert_close(found.grad, slope)


def test_rounds_compare_though_their_gradients_are_of_fresh_orders() -> None:
    """Where z stands still, so does its score: no round is the best one by luck."""
    problem = FakeQuadratic(dimension=40, regularisers=(Prno(b=3),))
    z, rounds = normal(2, 40, seed=5), [Draw(seed=0, round=k) for k in range(5)]
    found = [evaluate(problem.space, problem, z, draw, Autograd()) for draw in rounds]
    assert all(torch.equal(found[0].score, one.score) for one in found)
    assert torch.equal(found[0].score, evaluate(problem.space, problem, z, rounds[3]).score)
    grads = [one.grad for one in found]
    assert not any(torch.equal(grads[0], grad) for grad in grads[1:])
    assert OfLast(Prno(b=3), slots=1).random


def test_known_noises() -> None:
    """A draw is near the floor; zeros, a constant, repeats and a wrong scale are far off."""
    d = 4096
    draw, part = normal(d, seed=1), normal(d // 64, seed=2)
    noises = {
        "draw": draw,
        "zeros": torch.zeros(d).double(),
        "ones": torch.ones(d).double(),
        "repeated": part.repeat(64),
        "shrunk": 0.8 * draw,
        "stretched": 1.2 * draw,
    }
    z = torch.stack(list(noises.values()))
    penalty = dict(zip(noises, Prno(b=20).value(z, DRAW).tolist(), strict=True))
    p = dict(zip(noises, probability(z).tolist(), strict=True))
    m = d // 2
    s = math.sqrt(2) - 1 - math.sqrt(2 / m)  # zeros: M1 = 0, M2 = 1
    assert penalty["zeros"] == pytest.approx(m * s**2 / 2 - math.log(2))
    assert penalty["draw"] < 0.3
    assert p["draw"] > 0.2
    assert all(penalty[name] > 3 for name in noises if name != "draw"), penalty
    assert all(p[name] < 1e-2 for name in noises if name != "draw"), p


def test_a_noise_that_repeats_itself_four_times_is_found() -> None:
    # The paper's figure 13d. Its mean and scale are those of a shorter draw, which random orders
    # seldom find odd; z's own order sees equal halves, with a covariance of 1.
    z = normal(20, 1024).repeat(1, 4)
    assert float(probability(z).max()) < 1e-30
    penalty = Prno(b=20).value(torch.cat([z, normal(20, 4096, seed=1)]), DRAW)
    assert float(penalty[:20].mean()) > 2 * float(penalty[20:].mean())


def test_typical_draws_stay_near_the_floor() -> None:
    # With M2's bound loose, m M1^2 / 4 is exponential with mean 1/2, so that the mean penalty is
    # E max(0, m M1^2 / 4 - log 2) = exp(-2 log 2) / 2 = 1/8, over draws and orders together.
    penalty = Prno(b=1).value(normal(2000, 256), DRAW)
    assert float(penalty.mean()) == pytest.approx(1 / 8, abs=0.03)
    assert 0.2 < float(probability(normal(50, 1000)).mean()) < 0.35


@settings(deadline=None, max_examples=40)
@given(
    d=st.integers(2, 40),
    n=st.integers(1, 3),
    k=st.integers(1, 4),
    scale=st.sampled_from([0.0, 1e-12, 0.1, 1.0, 3.0, 1e6]),
    shift=st.sampled_from([0.0, 1.0, -50.0]),
    seed=st.integers(0, 2**31),
)
def test_laws_for_all_inputs(d: int, n: int, k: int, scale: float, shift: float, seed: int) -> None:
    z, prno = scale * normal(n, max(d, k), seed=seed) + shift, Prno(k=k, b=3)
    value, gradient = prno.value_and_gradient(z, DRAW)
    p = probability(z, q=4, k=k)
    assert bool((value >= 0).all())
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())
    assert gradient.shape == z.shape
    assert bool(((p >= 0) & (p <= 1)).all())
    mirrored, opposite = prno.value_and_gradient(-z, DRAW)  # N(0, I) is symmetric
    torch.testing.assert_close(mirrored, value)
    torch.testing.assert_close(opposite, -gradient)
    for i in range(n):  # candidates do not see each other
        alone, own = prno.value_and_gradient(z[i : i + 1], DRAW)
        torch.testing.assert_close(alone[0], value[i])
        torch.testing.assert_close(own[0], gradient[i])


@settings(deadline=None, max_examples=25)
@given(k=st.integers(1, 5), seed=st.integers(0, 2**31), scale=st.sampled_from([0.5, 1.0, 2.0]))
def test_a_rotation_of_each_vector_changes_neither_bound(k: int, seed: int, scale: float) -> None:
    x = scale * normal(2, k, 30, seed=seed) + 0.2
    rotation, _ = torch.linalg.qr(normal(k, k, seed=seed + 1))
    before, after = module._bounds(x), module._bounds(rotation @ x)
    torch.testing.assert_close(after.log_p1, before.log_p1)
    torch.testing.assert_close(after.log_p2, before.log_p2)
    turned = module._slope(rotation @ x, after)
    plain = module._slope(x, before)
    if plain is not None and turned is not None:
        torch.testing.assert_close(turned, rotation @ plain, rtol=1e-6, atol=1e-8)


def test_the_pair_of_eigenvalues_in_closed_form_equals_eigvalsh() -> None:
    x = normal(200, 2, 5, seed=4) * torch.linspace(0.01, 2, 200).double().view(-1, 1, 1)
    off = x @ x.mT / 5 - torch.eye(2).double()
    deviation, direction = module._spectral(x)
    torch.testing.assert_close(deviation, torch.linalg.eigvalsh(off).abs().amax(dim=1))
    # <direction, off> is the extreme eigenvalue's size, and +-direction a projection.
    torch.testing.assert_close((direction * off).sum(dim=(1, 2)), deviation)
    torch.testing.assert_close((direction @ direction).diagonal(dim1=1, dim2=2).sum(1), _ones(200))


def _ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


def test_the_order_of_the_numbers_does_not_matter_on_average() -> None:
    z = torch.cat([torch.linspace(-2.2, 2.4, 63), torch.tensor([4.0])]).double()[None]
    shuffled = z[:, torch.randperm(64, generator=keyed_generator("shuffle"))]
    many = Prno(b=3000)
    one, other = (many.value(each, Draw(s, 0)) for s, each in enumerate((z, shuffled)))
    assert float(one) > 0.3
    assert float(one) == pytest.approx(float(other), rel=0.05)


def test_orders_are_fresh_each_round_and_the_same_when_asked_again() -> None:
    z, prno = normal(2, 40) + 0.4, Prno(b=2)
    assert torch.equal(prno.value(z, DRAW), prno.value(z, DRAW))
    assert not torch.equal(prno.value(z, DRAW), prno.value(z, Draw(3, 8)))
    assert torch.equal(probability(z), probability(z))
    assert not torch.equal(probability(z), probability(z, generator=keyed_generator("other")))
    assert torch.equal(probability(z, q=1), probability(z, q=1, generator=keyed_generator("other")))


def test_more_orders_only_lower_p() -> None:
    z = normal(4, 100)
    seen = [probability(z, q=q) for q in (1, 5, 20)]
    assert bool((seen[0] >= seen[1]).all() and (seen[1] >= seen[2]).all())


def test_equal_candidates_get_equal_values() -> None:
    z = normal(1, 50).expand(3, 50) + 0.3
    value, gradient = Prno(b=4).value_and_gradient(z, DRAW)
    assert value.unique().numel() == 1
    assert torch.equal(gradient[0], gradient[2])


def test_ascent_leaves_the_improbable_region() -> None:
    z, prno = 0.5 * normal(1, 200) + 0.5, Prno(b=10)
    start = float(probability(z))
    for round_ in range(300):
        z = z - 0.2 * prno.gradient(z, Draw(0, round_))
    assert start < 1e-3
    assert float(probability(z)) > 0.1


def test_own_order_sees_what_random_orders_do_not() -> None:
    draw = normal(1, 20, 4, 64)
    early = torch.where(torch.arange(20) < 10, 0.1, -0.1).double().view(1, 20, 1, 1)
    shifted, own = draw + early, OwnOrder()
    assert float(Prno(b=50).value(shifted, DRAW)) < 1
    assert float(own.value(shifted, DRAW)) > float(own.value(draw, DRAW)) + 5
    value, gradient = own.value_and_gradient(shifted, DRAW)
    assert float(own.value(shifted - 0.5 * gradient, DRAW)) < float(value)


def test_bounds_of_neighbours_are_the_releases() -> None:
    z = 1.1 * normal(1, 4096) + 0.1
    vectors = z.view(1024, 4)
    mean = vectors.mean(dim=0).norm()
    off = torch.linalg.matrix_norm(vectors.T @ vectors / 1024 - torch.eye(4).double(), ord=2)
    excess = (1 + off).sqrt() - 1 - (4 / 1024) ** 0.5
    expected = 1024 * mean**2 / 8 + 1024 * excess**2 / 2 - 2 * math.log(2)
    found, gradient = AsStored().value_and_gradient(z, DRAW)
    torch.testing.assert_close(found, expected[None])
    assert torch.autograd.gradcheck(
        lambda x: AsStored().value(x, DRAW), (1.5 * normal(2, 30)).requires_grad_()
    )
    assert float(AsStored().value(z - 0.5 * gradient, DRAW)) < float(found)
    assert float(AsStored().value(normal(1, 4096), DRAW)) < 2


@pytest.mark.parametrize("inner", [Prno(b=5), OwnOrder()], ids=["prno", "own order"])
def test_the_last_noises_alone_are_regularised(inner: Prno | OwnOrder) -> None:
    z = 2 * torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    draw = Draw(1, 2)
    value, gradient = OfLast(inner, slots=3).value_and_gradient(z, draw)
    wanted, slope = inner.value_and_gradient(z[:, 1:], draw)
    assert torch.equal(value, wanted)
    assert torch.equal(value, OfLast(inner, slots=3).value(z, draw))
    assert not gradient[:, 0].any()
    assert torch.equal(gradient[:, 1:], slope)


def test_no_graph_is_kept_however_many_orders() -> None:
    z = (2 * normal(2, 500)).requires_grad_()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    for b in (1, 40):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = Prno(b=b).value(z, DRAW)
        assert value.requires_grad
        assert kept == [z.numel()]  # the gradient and nothing else
        found = Prno(b=b).value_and_gradient(z, DRAW)
        assert not any(tensor.requires_grad for tensor in found)
    assert not probability(z).requires_grad


@pytest.mark.parametrize("together", [module.TOGETHER, module.TOGETHER_FAST])
def test_little_memory_at_stable_diffusions_size(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOGETHER", together)
    z = normal(1, 50, 4, 64, 64, dtype=torch.float32)
    with Allocated() as allocated:
        Prno(b=20).gradient(z, DRAW)
        probability(z, q=20)
    assert 4 * z.nbytes < allocated.peak < 48e6  # a GPU's allocator takes some 15 MB more


def test_half_precision_is_summed_in_single() -> None:
    z = (1.2 * normal(1, 20_000)).half()
    half, single = Prno(b=2).value(z, DRAW), Prno(b=2).value(z.float(), DRAW)
    assert half.dtype == torch.float16
    assert float(half) == pytest.approx(float(single), rel=2e-3)
    assert Prno(b=2).gradient(z, DRAW).dtype == torch.float16


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prno(k=0),
        lambda: Prno(b=0),
        lambda: Prno(weight=-1.0),
        lambda: Prno(weight=math.inf),
        lambda: probability(torch.zeros(1, 8), q=0),
        lambda: probability(torch.zeros(1, 3), k=4),
        lambda: Prno(k=5).value(torch.zeros(1, 2, 2), DRAW),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput):
        make()
