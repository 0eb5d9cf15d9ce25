"""Affixes: tokens before and after a prompt, in the space of the text encoder's output.

The paper builds the M tokens of each side from a small basis that two rotations turn,

    V = R2(theta_2) R1(theta_1) E Z          E [d, N], Z [N, M], theta [2], V [d, M],

under three constraints on the parameters: E keeps orthonormal columns, Z stays in [-1, 1], and the
tokens' mean stays near the prompt's (`tiller.spaces.insertion.Conformity`). Each can be left out.

Source: Ye et al. 2025, "IPGO: indirect prompt gradient optimization on text-to-image generative
models with high data efficiency", section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream, keyed_generator
from tiller.core.shapes import Flat
from tiller.core.space import Continuous
from tiller.spaces._rotations import nearest_orthonormal, rotated, wrapped

FORMS = ("rotated", "plain", "release")
MOVES = ("all", "coefficients")

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Affix:
    """Tokens for n candidates.

    Attributes:
        prefix: [n, M, d] before the prompt, M may be 0.
        suffix: [n, M, d] after it.
        anchored: they are added to the state of the prompt's own padding, in whose place they
            stand, and are small beside it; otherwise they stand by themselves.
    """

    prefix: Tensor
    suffix: Tensor
    anchored: bool = False

    @property
    def length(self) -> int:
        """The tokens of both sides."""
        return self.prefix.shape[1] + self.suffix.shape[1]

    def times(self, weight: float) -> Affix:
        """The same with its tokens, not what they are anchored to, times a weight."""
        return replace(self, prefix=weight * self.prefix, suffix=weight * self.suffix)


@dataclass(frozen=True)
class Affixes(Continuous[Affix]):
    """The parameters of a prefix and a suffix, z [n, dimension]: the prefix's, then the suffix's.

    Of each side E, Z and theta, flattened in this order. `project` puts E back on the manifold of
    orthonormal columns (the nearest point), cuts Z to [-1, 1] and wraps theta into (-pi, pi]. So a
    gradient step is taken in all d N numbers of E and then retracted; `decode` only multiplies.

    Attributes:
        width: d, the width of the encoder's states (768 for Stable Diffusion 1.x); both encoders'
            together where there are two.
        prefix: tokens before the prompt (the paper: 10).
        suffix: tokens after it (the paper: 10).
        rank: N, the columns of each basis (the paper: 30).
        form: rotated, the paper's; plain, the tokens themselves, V free; release, the authors'
            code: N M columns, a bias, and two angles a token that nothing reads.
        orthonormal: keep E's columns orthonormal.
        bounded: keep Z in [-1, 1].
        rotate: turn the tokens; without, V = E Z and there is no theta.
        anchored: the tokens are added to the prompt's padding (ours), see `Affix`.
        moves: all, or coefficients: E is a fixed random basis, and z holds Z and theta / pi alone,
            every number in [-1, 1]. For solvers that compare scores.
        dtype: of z.
        start: [suffix, d] tokens that every candidate begins with instead of random ones (ours);
            with form=plain, and without a prefix.

    Raises:
        InvalidInput: a field is out of its range.

    Example:
        >>> space = Affixes(width=768)
        >>> space.dimension
        46684
        >>> affix = space.decode(space.sample(1, Stream(0)))
        >>> list(affix.prefix.shape), list(affix.suffix.shape)
        ([1, 10, 768], [1, 10, 768])

    Source: IPGO, equations 2 to 8; the start: the authors' release.
    """

    width: int
    prefix: int = 10
    suffix: int = 10
    rank: int = 30
    form: str = "rotated"
    orthonormal: bool = True
    bounded: bool = True
    rotate: bool = True
    anchored: bool = False
    moves: str = "all"
    dtype: torch.dtype = torch.float32
    start: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.prefix, self.suffix) < 0 or not self.prefix + self.suffix:
            raise InvalidInput(
                "prefix and suffix must not be negative and not both 0, got "
                f"prefix={self.prefix!r}, suffix={self.suffix!r}"
            )
        if self.form not in FORMS:
            raise InvalidInput(f"form must be one of {', '.join(FORMS)}; got {self.form!r}")
        if self.moves not in MOVES or (self.moves != "all" and self.form != "rotated"):
            raise InvalidInput(
                "moves must be all, or coefficients with form=rotated; got "
                f"moves={self.moves!r} with form={self.form!r}"
            )
        if not 1 <= self.rank <= self.width:
            raise InvalidInput(
                f"rank (N) must lie in [1, {self.width}], the width of the encoder's states; got "
                f"rank={self.rank!r}"
            )
        if self.start is not None and (
            self.form != "plain" or self.prefix or self.start.shape != (self.suffix, self.width)
        ):
            raise InvalidInput(
                "a start is a suffix of free tokens: expected form=plain, prefix=0 and a shape of "
                f"[{self.suffix}, {self.width}], got form={self.form!r}, prefix={self.prefix} and "
                f"{list(self.start.shape)}"
            )
        if self.rotate and self.width % 2:
            raise InvalidInput(
                f"rotations turn pairs of coordinates and need an even width, got {self.width}; "
                "set rotate=False"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """[dimension]: the numbers of both sides."""
        numbers = [math.prod(shape) for side in self._sides() for shape in side.values()]
        return (sum(numbers),)

    def sample(self, n: int, rng: Stream) -> Flat:
        """Z uniform in [-1, 1], theta in [-pi, pi], E a uniform random orthonormal basis.

        Every form starts from the same tokens for the same seed but release, which has others.
        """
        return torch.stack([self._start(rng.next()) for _ in range(n)])

    def decode(self, z: Flat) -> Affix:
        """The tokens of both sides."""
        none = z.new_zeros(len(z), 0, self.width)
        prefix, suffix = (
            self._tokens(parts, k) if parts else none for k, parts in enumerate(self._split(z))
        )
        return Affix(prefix, suffix, self.anchored)

    @torch.no_grad()
    def project(self, z: Flat) -> Flat:
        """The nearest parameters under the constraints that are on."""
        sides = []
        for parts in self._split(z):
            if "E" in parts and self.orthonormal:
                parts["E"] = nearest_orthonormal(parts["E"])
            if "Z" in parts and self.bounded:
                parts["Z"] = parts["Z"].clamp(-1, 1)
            if "theta" in parts:
                parts["theta"] = wrapped(parts["theta"], 1.0 if self._fixed else math.pi)
            sides += [part.flatten(1) for part in parts.values()]
        return torch.cat(sides, dim=1)

    def describe(self) -> str:
        """How many tokens, from how many numbers."""
        return (
            f"affixes: {self.prefix} + {self.suffix} tokens of {self.width}, "
            f"{self.dimension} numbers ({self.form})"
        )

    @property
    def _fixed(self) -> bool:
        return self.moves == "coefficients"

    def _sides(self) -> list[dict[str, tuple[int, ...]]]:
        """The shapes of each side's parameters; a side without tokens has none."""
        return [self._shapes(m) if m else {} for m in (self.prefix, self.suffix)]

    def _shapes(self, m: int) -> dict[str, tuple[int, ...]]:
        d, n = self.width, self.rank
        if self.form == "plain":
            return {"V": (d, m)}
        if self.form == "release":
            return {"E": (d, n * m), "bias": (d,), "Z": (n * m, m), "angles": (m, 2)}
        shapes: dict[str, tuple[int, ...]] = {} if self._fixed else {"E": (d, n)}
        shapes["Z"] = (n, m)
        return shapes | {"theta": (2,)} if self.rotate else shapes

    def _split(self, z: Tensor) -> list[Parts]:
        """Each side's parameters, [n, *shape] by name."""
        shapes = [shape for side in self._sides() for shape in side.values()]
        flat = iter(torch.split(z, [math.prod(shape) for shape in shapes], dim=1))
        return [
            {name: next(flat).reshape(len(z), *shape) for name, shape in side.items()}
            for side in self._sides()
        ]

    def _tokens(self, parts: Mapping[str, Tensor], side: int) -> Tensor:
        """Equations 6 and 7: the tokens [n, M, d] of one side's parameters."""
        if "V" in parts:
            return parts["V"].mT
        basis = parts["E"] if "E" in parts else self._fixed_basis(side).to(parts["Z"])
        tokens = basis @ parts["Z"]
        if "bias" in parts:
            tokens = tokens + parts["bias"][..., None]
        if "theta" in parts:
            tokens = rotated(tokens, parts["theta"] * (math.pi if self._fixed else 1.0))
        return tokens.mT

    def _fixed_basis(self, side: int) -> Tensor:
        """The basis of one side that does not move: random, the same in every run."""
        generator = keyed_generator("affix basis", side, self.width, self.rank)
        normal = torch.randn(1, self.width, self.rank, generator=generator)
        return nearest_orthonormal(normal)

    def _start(self, generator: Generator) -> Tensor:
        """One candidate's z [dimension]."""
        if self.start is not None:
            return self.start.T.reshape(-1).to(self.dtype)
        sides: list[Tensor] = []
        for k, (m, shapes) in enumerate(
            zip((self.prefix, self.suffix), self._sides(), strict=True)
        ):
            if not m:
                continue
            columns = self.rank * m if self.form == "release" else self.rank
            drawn: Parts = {
                "E": nearest_orthonormal(
                    torch.randn(self.width, columns, generator=generator, dtype=torch.float64)
                ),
                "Z": _uniform((columns, m), generator),
                "theta": math.pi * _uniform((2,), generator),
            }
            if self.form == "release":
                drawn["bias"] = _uniform((self.width,), generator) / math.sqrt(columns)
                drawn["angles"] = math.pi * _uniform((m, 2), generator)
            elif self.form == "plain":
                whole = {name: drawn[name][None] for name in ("E", "Z")}
                whole |= {"theta": drawn["theta"][None]} if self.rotate else {}
                drawn = {"V": self._tokens(whole, k)[0].mT}
            elif self._fixed:
                drawn["theta"] /= math.pi
            sides += [drawn[name].reshape(-1).to(self.dtype) for name in shapes]
        return torch.cat(sides)


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform numbers in [-1, 1)."""
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
