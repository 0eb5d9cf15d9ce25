"""A concept's vectors as a space: e = e0 + W Q, the increment in few dimensions.

Source: Fei et al. 2023, "Gradient-free textual inversion", sections 3.2 and 3.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.space import Continuous

Vectors = tuple[Tensor, ...]
"""The vectors of n candidates, [n, k, D_e] for each text encoder e."""

BASES = ("pca", "prior", "random", "full")


class ConceptSpace(Continuous[Vectors]):
    """k pseudo-words, each at e0 + W Q; z [n, k, d] holds the Q.

    Several text encoders are one space: their widths lie side by side, D = sum of D_e, so that one
    Q moves the word in all of them.

    Args:
        start: e0, [k, D_e] for each text encoder.
        basis: W [D, d]; None for the identity, where z is the increment itself.
        spread: standard deviation of `sample`, the sigma_Q of equation 5.

    Raises:
        InvalidInput: start and basis do not fit.

    Example:
        >>> space = ConceptSpace((torch.ones(1, 3),), torch.eye(3)[:, :2])
        >>> space.decode(torch.tensor([[[1.0, 2.0]]]))[0].tolist()
        [[[2.0, 3.0, 1.0]]]

    Source: equation 2.
    """

    def __init__(
        self, start: Sequence[Tensor], basis: Tensor | None = None, spread: float = 0.5
    ) -> None:
        if not start or any(e.ndim != 2 for e in start) or len({len(e) for e in start}) != 1:
            raise InvalidInput(
                "a concept starts at [k, D] for each text encoder, got "
                f"{[list(e.shape) for e in start]}"
            )
        self.widths = tuple(e.shape[1] for e in start)
        self.start = torch.cat([e.float() for e in start], dim=1)
        if basis is not None and (basis.ndim != 2 or len(basis) != sum(self.widths)):
            raise InvalidInput(
                f"the basis must be [{sum(self.widths)}, d], the widths of the text encoders "
                f"together, got {list(basis.shape)}"
            )
        self.basis = None if basis is None else basis.float().contiguous()
        self.spread = spread

    @property
    def shape(self) -> tuple[int, ...]:
        """(k, d)."""
        d = self.start.shape[1] if self.basis is None else self.basis.shape[1]
        return len(self.start), d

    def sample(self, n: int, rng: Stream) -> Float[Tensor, "n k d"]:
        """Q ~ N(0, spread^2) for each of `n` candidates."""
        rows = [torch.randn(self.shape, generator=rng.next()) for _ in range(n)]
        return self.spread * torch.stack(rows)

    def decode(self, z: Float[Tensor, "n k d"]) -> Vectors:
        """e0 + W Q, cut into the encoders' widths."""
        moved = z if self.basis is None else z @ self.basis.to(z).T
        whole = self.start.to(z) + moved
        return tuple(torch.split(whole, list(self.widths), dim=-1))

    def describe(self) -> str:
        """How many vectors, in how many dimensions of how many."""
        k, d = self.shape
        return f"concept: {k} vectors of {sum(self.widths)} numbers, searched in {d} dimensions"


def basis(
    kind: str,
    tables: Sequence[Tensor],
    d: int,
    *,
    generator: torch.Generator,
    stretch: float = 1.0,
    spread: float = 0.5,
) -> Float[Tensor, "D d"]:
    """W [D, d] of one of `BASES`, from the vocabularies' embeddings.

    - pca: the first d principal axes of the vocabulary, each as long as the standard deviation
      along it, times `stretch`. The mean is not in it: e0 is where it should be.
    - prior: numbers of N(0, s^2), s = stretch sigma_e / (sqrt(d) spread) (equation 5), so that W Q
      spreads as the vocabulary does where Q does as `spread` says.
    - random: numbers of N(0, 1 / d), whatever the vocabulary is: what the paper compares with.
    - full: no subspace; each axis of the embedding, stretch sigma_e / spread long.

    Args:
        kind: of `BASES`.
        tables: [V, D_e] the token embeddings of each text encoder, of one vocabulary.
        d: dimensions; pca and full have at most D.
        generator: of the random ones.
        stretch: lambda of equation 5; 1 for the vocabulary's own spread.
        spread: sigma_Q of equation 5.

    Raises:
        InvalidInput: an unknown kind, d or stretch out of range, or vocabularies of two sizes.

    Example:
        >>> words = torch.randn(50, 4) * torch.tensor([4.0, 1.0, 1.0, 1.0])
        >>> W = basis("pca", [words], 1, generator=torch.Generator())
        >>> bool(W[0].abs() > 2)                # the axis that words vary most along
        True
    """
    if kind not in BASES:
        raise InvalidInput(f"projection must be one of {', '.join(BASES)}, got {kind!r}")
    if not (0 < stretch < math.inf and 0 < spread < math.inf):
        raise InvalidInput(f"stretch and spread must be positive, got {stretch=}, {spread=}")
    if len({len(table) for table in tables}) != 1:
        raise InvalidInput(
            "the text encoders must read one vocabulary, got "
            f"{[len(table) for table in tables]} tokens"
        )
    words = torch.cat([table.float() for table in tables], dim=1)
    width = words.shape[1]
    if d < 1:
        raise InvalidInput(f"a subspace has at least one dimension, got {d=}")
    if kind == "random":
        return torch.randn(width, d, generator=generator) / math.sqrt(d)
    if kind == "pca":
        return stretch * _principal(words, min(d, width))
    deviation = torch.cat([table.float().std().expand(table.shape[1]) for table in tables])
    scale = (stretch / spread * deviation)[:, None]
    if kind == "full":
        axes: Tensor = scale * torch.eye(width)
        return axes
    drawn: Tensor = scale / math.sqrt(d) * torch.randn(width, d, generator=generator)
    return drawn


def _principal(words: Float[Tensor, "V D"], d: int) -> Float[Tensor, "D d"]:
    """The first d principal axes times the standard deviations along them, signs fixed."""
    centred = (words - words.mean(0)).double()
    covariance = centred.T @ centred / (len(words) - 1)
    variances, axes = torch.linalg.eigh(covariance)  # ascending
    first = axes.flip(1)[:, :d]
    heaviest = first.abs().argmax(0)
    first = first * first[heaviest, torch.arange(first.shape[1])].sign()
    lengths = variances.flip(0)[:d].clamp(min=0).sqrt()
    scaled: Tensor = first * lengths
    return scaled.float()
