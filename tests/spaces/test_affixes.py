"""Affixes: the paper's equations, each constraint, and gradients against float64 differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.spaces._rotations import nearest_orthonormal, rotated, wrapped
from tiller.spaces.affixes import Affixes

SMALL: dict[str, Any] = {"width": 8, "prefix": 2, "suffix": 3, "rank": 3, "dtype": torch.float64}
FORMS: list[dict[str, Any]] = [
    {},
    {"rotate": False},
    {"form": "plain"},
    {"form": "release"},
    {"moves": "coefficients"},
]
FORM_IDS = ["rotated", "unrotated", "plain", "release", "coefficients"]


def matrices(d: int, first: float, second: float) -> tuple[Tensor, Tensor]:
    """R1 and R2 as the d x d matrices of equations 4 and 5, entry by entry."""
    found = []
    for shift, angle in ((0, first), (1, second)):
        r = torch.zeros(d, d, dtype=torch.float64)
        for k in range(d // 2):
            i, j = (2 * k + shift) % d, (2 * k + 1 + shift) % d
            r[i, i], r[i, j] = math.cos(angle), -math.sin(angle)
            r[j, i], r[j, j] = math.sin(angle), math.cos(angle)
        found.append(r)
    return found[0], found[1]


@pytest.mark.parametrize("d", [2, 4, 10])
def test_rotations_are_the_papers_matrices(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    v = torch.randn(2, d, 3, generator=generator, dtype=torch.float64)
    angles = torch.tensor([[0.3, -1.2], [2.0, 0.5]], dtype=torch.float64)
    for one, turned, (first, second) in zip(v, rotated(v, angles), angles.tolist(), strict=True):
        r1, r2 = matrices(d, first, second)
        assert torch.allclose(turned, r2 @ r1 @ one)


@settings(max_examples=25, deadline=None)
@given(st.floats(-math.pi, math.pi), st.floats(-math.pi, math.pi), st.integers(1, 6))
def test_rotations_are_orthogonal_and_undone_in_turn(
    first: float, second: float, half: int
) -> None:
    v = torch.randn(1, 2 * half, 4, generator=torch.Generator().manual_seed(0)).double()
    turned = rotated(v, torch.tensor([[first, second]]).double())
    assert torch.allclose(turned.mT @ turned, v.mT @ v, atol=1e-6)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    back = zero + torch.tensor([0.0, -second])
    back = rotated(rotated(turned, back), zero + torch.tensor([-first, 0.0]))
    assert torch.allclose(back, v, atol=1e-6)


def test_rotations_are_live() -> None:
    """Both angles of both sides change the tokens and have a gradient; the release's have none."""
    space = Affixes(**SMALL)
    z = space.sample(1, Stream(0)).requires_grad_()
    weights = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).double()

    def total(z: Tensor) -> Tensor:
        affix = space.decode(z)
        return (torch.cat([affix.prefix, affix.suffix], dim=1) * weights).sum()

    (grad,) = torch.autograd.grad(total(z), z)
    prefix = 8 * 3 + 3 * 2 + 2
    for angle in (prefix - 2, prefix - 1, -2, -1):
        assert abs(float(grad[0, angle])) > 1e-3
        turned = z.detach().clone()
        turned[0, angle] += 0.5
        assert abs(float(total(turned) - total(z.detach()))) > 1e-3

    release = Affixes(**{**SMALL, "form": "release"})
    z = release.sample(1, Stream(0)).requires_grad_()
    affix = release.decode(z)
    (grad,) = torch.autograd.grad(affix.prefix.square().sum() + affix.suffix.sum(), z)
    assert bool((grad[0, -6:] == 0).all()), "two angles a token that nothing reads"


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_gradients_are_the_differences_quotients(form: dict[str, Any]) -> None:
    space = Affixes(**{**SMALL, **form})
    z = space.sample(1, Stream(3)).requires_grad_()
    both: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda z: (  # noqa: E731
        space.decode(z).prefix,
        space.decode(z).suffix,
    )
    assert torch.autograd.gradcheck(both, (z,))


def test_the_papers_formula_and_the_releases_have_these_many_parameters() -> None:
    assert Affixes(width=768).dimension == 2 * (768 * 30 + 30 * 10 + 2) == 46_684
    assert Affixes(width=768, form="release").dimension == 468_376  # table 3 of the paper
    assert Affixes(width=768, form="plain").dimension == 2 * 768 * 10
    assert Affixes(width=768, moves="coefficients").dimension == 604


def test_the_tokens_are_equation_6() -> None:
    space = Affixes(**SMALL)
    z = space.sample(2, Stream(5))
    parts = space._split(z)
    for side, tokens in zip(parts, (space.decode(z).prefix, space.decode(z).suffix), strict=True):
        for i in range(2):
            r1, r2 = matrices(8, *side["theta"][i].tolist())
            expected = r2 @ r1 @ side["E"][i] @ side["Z"][i]
            assert torch.allclose(tokens[i], expected.mT)


def test_starts_obey_every_constraint_and_forms_start_alike() -> None:
    space = Affixes(**SMALL)
    z = space.sample(50, Stream(1))
    assert torch.allclose(space.project(z), z, atol=1e-12)
    (side, _) = space._split(z)
    assert torch.allclose(side["E"].mT @ side["E"], torch.eye(3).double().expand(50, 3, 3))
    for name, limit in (("Z", 1.0), ("theta", math.pi)):
        assert float(side[name].abs().max()) <= limit
        assert float(side[name].std()) == pytest.approx(limit / math.sqrt(3), rel=0.15)
    plain = Affixes(**{**SMALL, "form": "plain"})
    same = plain.decode(plain.sample(50, Stream(1)))
    assert torch.allclose(same.prefix, space.decode(z).prefix)
    assert torch.allclose(same.suffix, space.decode(z).suffix)


def test_projection_is_the_nearest_allowed_point_and_each_constraint_can_be_left_out() -> None:
    start = Affixes(**SMALL).sample(1, Stream(2))
    far = start + 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    far[:, 30:32] = torch.tensor([4.0, -math.pi])  # the prefix's angles

    def side(**changes: Any) -> dict[str, Tensor]:
        space = Affixes(**{**SMALL, **changes})
        return space._split(space.project(far))[0]

    whole = side()
    assert torch.allclose(whole["E"].mT @ whole["E"], torch.eye(3).double()[None])
    before = Affixes(**SMALL)._split(far)[0]
    rng = torch.Generator().manual_seed(3)
    for _ in range(20):  # no other basis nearby, and none far away, is nearer
        other = nearest_orthonormal(
            whole["E"] + 0.2 * torch.randn(1, 8, 3, generator=rng, dtype=torch.float64)
        )
        assert (other - before["E"]).norm() >= (whole["E"] - before["E"]).norm()
    assert torch.equal(whole["Z"], before["Z"].clamp(-1, 1))
    assert torch.allclose(whole["theta"], torch.tensor([[4.0 - 2 * math.pi, math.pi]]).double())
    assert torch.equal(side(orthonormal=False)["E"], before["E"])
    assert torch.equal(side(orthonormal=False)["Z"], whole["Z"])
    assert torch.equal(side(bounded=False)["Z"], before["Z"])
    assert float(before["Z"].abs().max()) > 1


def test_a_retracted_step_goes_along_the_manifold() -> None:
    """R(E + t X) = E + t P(X) + O(t^2), P the projection onto the tangent space."""
    generator = torch.Generator().manual_seed(0)
    basis = nearest_orthonormal(torch.randn(8, 3, generator=generator, dtype=torch.float64))
    move = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    inner = basis.mT @ move
    tangent = move - basis @ (inner + inner.mT) / 2
    errors = [
        float((nearest_orthonormal(basis + t * move) - basis - t * tangent).norm())
        for t in (1e-2, 1e-3)
    ]
    assert errors[1] < errors[0] / 50  # 100 for an exact second order


@pytest.mark.parametrize(("d", "m"), [(9, 4), (4, 9)])
def test_where_the_singular_values_do_not_converge_the_nearest_is_found_all_the_same(
    d: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred columns near the manifold did that: their singular values nearly coincide."""
    basis = torch.randn(2, d, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nearest = nearest_orthonormal(basis)

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.linalg.LinAlgError("linalg.svd: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    torch.testing.assert_close(nearest_orthonormal(basis), nearest, rtol=0, atol=1e-12)


def test_a_wide_basis_gets_orthonormal_rows_and_zero_a_basis_all_the_same() -> None:
    wide = nearest_orthonormal(torch.randn(1, 3, 7, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(wide @ wide.mT, torch.eye(3)[None], atol=1e-5)
    zero = nearest_orthonormal(torch.zeros(1, 5, 2))
    assert torch.allclose(zero.mT @ zero, torch.eye(2)[None], atol=1e-5)


@given(st.floats(-50, 50))
def test_angles_wrap_into_the_half_open_turn(angle: float) -> None:
    turned = float(wrapped(torch.tensor([angle], dtype=torch.float64))[0])
    assert -math.pi < turned <= math.pi or abs(abs(turned) - math.pi) < 1e-12
    assert math.cos(turned) == pytest.approx(math.cos(angle), abs=1e-9)
    assert math.sin(turned) == pytest.approx(math.sin(angle), abs=1e-9)


def test_coefficients_alone_keep_the_basis() -> None:
    space = Affixes(**{**SMALL, "moves": "coefficients"})
    z = space.sample(3, Stream(0))
    assert float(z.abs().max()) <= 1
    span = space._fixed_basis(0).double()[0]
    r1, r2 = matrices(8, *(math.pi * space._split(z)[0]["theta"][0]).tolist())
    unturned = (r2 @ r1).mT @ space.decode(z).prefix[0].mT
    residual = unturned - span @ (span.mT @ unturned)
    assert float(residual.abs().max()) < 1e-5, "the tokens lie in the fixed basis' span"
    again = Affixes(**{**SMALL, "moves": "coefficients"})
    assert torch.equal(again._fixed_basis(0), space._fixed_basis(0))
    assert not torch.equal(space._fixed_basis(0), space._fixed_basis(1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prefix": 0, "suffix": 0}, "not both 0"),
        ({"prefix": -1}, "must not be negative"),
        ({"form": "low"}, "rotated, plain, release"),
        ({"moves": "coefficients", "form": "plain"}, "with form=rotated"),
        ({"rank": 9}, r"rank \(N\) must lie in \[1, 8\]"),
        ({"rank": 0}, "rank"),
        ({"width": 9}, "even width"),
    ],
    ids=["none", "negative", "form", "moves", "rank", "no_rank", "odd"],
)
def test_bad_settings_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Affixes(**{**SMALL, **changes})
