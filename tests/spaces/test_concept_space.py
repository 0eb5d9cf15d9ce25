"""e = e0 + W Q: the bases, and what of the vocabulary they keep (equations 2 and 5)."""

from __future__ import annotations

import pytest
import torch

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.spaces.concept import BASES, ConceptSpace, basis


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def words() -> torch.Tensor:
    """400 words in 24 dimensions, most of whose spread is in five directions."""
    scales = torch.cat([torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0]), torch.full((19,), 0.3)])
    turn, _ = torch.linalg.qr(torch.randn(24, 24, generator=seeded()))
    return (torch.randn(400, 24, generator=seeded()) * scales) @ turn + 4.0


def test_pca_is_the_principal_axes_as_long_as_the_words_deviate(words: torch.Tensor) -> None:
    W = basis("pca", [words], 24, generator=seeded())
    covariance = torch.cov(words.T)
    assert torch.allclose(W @ W.T, covariance, atol=1e-3)  # all axes: the whole covariance
    first = basis("pca", [words], 5, generator=seeded())
    assert torch.allclose(first, W[:, :5])
    gram = first.T @ first
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-3)
    explained = gram.trace() / covariance.trace()
    assert explained > 0.95
    assert torch.allclose(basis("pca", [words], 5, generator=seeded(), stretch=2.0), 2 * first)


def test_pca_leaves_the_mean_out(words: torch.Tensor) -> None:
    W = basis("pca", [words], 5, generator=seeded())
    assert torch.allclose(W, basis("pca", [words - 100.0], 5, generator=seeded()), atol=1e-2)


@pytest.mark.parametrize(("kind", "d"), [("prior", 6), ("prior", 200), ("full", 24)])
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_increment_spreads_as_the_words_do(
    kind: str, d: int, spread: float, words: torch.Tensor
) -> None:
    """What equation 5 is for: std(W Q) = lambda sigma_e where Q ~ N(0, spread^2)."""
    W = basis(kind, [words], d, generator=seeded(), stretch=1.0, spread=spread)
    Q = spread * torch.randn(4000, W.shape[1], generator=seeded())
    assert W.shape == (24, d)
    assert float((Q @ W.T).std() / words.std()) == pytest.approx(1.0, rel=0.15)


def test_random_knows_nothing_of_the_words(words: torch.Tensor) -> None:
    W = basis("random", [words], 200, generator=seeded())
    assert torch.equal(W, basis("random", [100 * words], 200, generator=seeded()))
    assert float(W.std()) == pytest.approx(200**-0.5, rel=0.05)


@pytest.mark.parametrize("kind", BASES)
def test_two_encoders_are_one_space_each_with_its_own_scale(kind: str, words: torch.Tensor) -> None:
    small = 0.01 * words[:, :8]
    W = basis(kind, [words, small], 16, generator=seeded())
    assert W.shape == (32, 32 if kind == "full" else 16)
    if kind != "random":
        assert W[24:].std() < 0.05 * W[:24].std()
    space = ConceptSpace((torch.zeros(2, 24), torch.ones(2, 8)), W)
    first, second = space.decode(space.sample(3, Stream(0)))
    assert (first.shape, second.shape) == ((3, 2, 24), (3, 2, 8))
    nothing = space.decode(torch.zeros(1, *space.shape))
    assert torch.equal(nothing[0], torch.zeros(1, 2, 24))
    assert torch.equal(nothing[1], torch.ones(1, 2, 8))


def test_without_a_basis_z_is_the_vectors_increment() -> None:
    space = ConceptSpace((torch.zeros(1, 4), torch.ones(1, 2)))
    z = torch.arange(6.0)[None, None]
    first, second = space.decode(z)
    assert first.tolist() == [[[0, 1, 2, 3]]]
    assert second.tolist() == [[[5, 6]]]
    assert space.shape == (1, 6)
    assert "1 vectors of 6 numbers, searched in 6 dimensions" in space.describe()


def test_what_cannot_be_is_refused(words: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="projection must be one of pca, prior"):
        basis("svd", [words], 4, generator=seeded())
    with pytest.raises(InvalidInput, match="at least one dimension"):
        basis("pca", [words], 0, generator=seeded())
    with pytest.raises(InvalidInput, match="must be positive"):
        basis("pca", [words], 4, generator=seeded(), stretch=0.0)
    with pytest.raises(InvalidInput, match=r"read one vocabulary, got \[400, 399\]"):
        basis("pca", [words, words[1:]], 4, generator=seeded())
    with pytest.raises(InvalidInput, match=r"the basis must be \[4, d\]"):
        ConceptSpace((torch.zeros(1, 4),), torch.eye(5))
    with pytest.raises(InvalidInput, match=r"starts at \[k, D\]"):
        ConceptSpace((torch.zeros(4),))
