"""How probable a noise is under N(0, I): the indicator P(z) and the regulariser of PRNO.

A point of high dimension leaves the law that a model was trained on long before any of its numbers
looks odd. Two concentration inequalities see it: they bound the probability of a mean and of a
covariance as far off as those of z, cut into m vectors of length k.

    M1 = |mean_i z_i|,               log p1 = min(log 2 - m M1^2 / (2k), 0)
    M2 = |mean_i z_i z_i^T - I|_2,   log p2 = min(log 2 - m s^2 / 2, 0),
                                     s = max(sqrt(1 + M2) - 1 - sqrt(k / m), 0)

N(0, I) does not know the order of its numbers, so they are cut up in many random orders. All
candidates of a call share the orders (common random numbers). To draw and follow an order of a
million numbers takes longer than the bounds themselves, so z is shuffled once a call, and the
orders are shuffles of some thousands of chunks of that: each order is uniformly distributed, as in
the paper, and up to 4,096 numbers, where a chunk is one number, they are independent as well. A
few numbers are left out where k and the chunks do not divide z: other ones in each call. As many
orders as make a million numbers are looked at together, two million on an accelerator, which is not
kept waiting for a hundred small calls then, and memory stays small: at Stable Diffusion's size,
820,000 numbers, two orders at a time, tensors of 31 MB beside z. (One at a time 28, twenty 208; an
H100's allocator took 43 and 221 MB for these, and .11 and .03 s.)

Source: Tang et al., "Inference-time alignment of diffusion models with direct noise optimization",
lemma 1 and equations 9 to 12. The paper prints max{2 exp(..), 1}, which is never below 1: a bound
on a probability is capped by min.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tiller.core.errors import InvalidInput
from tiller.core.objective import Regulariser
from tiller.core.rng import Draw, keyed_generator
from tiller.core.shapes import Points

LOG_2 = math.log(2)
CHUNKS = 4096  # of z that are shuffled: many, and few enough to be copied piece by piece
MOST_ORDERS = 10_000  # a round; a hundred say as much
TOGETHER = 1 << 20  # numbers of several orders that are looked at together: 4 MB in float32
TOGETHER_FAST = 1 << 21  # the same on an accelerator, which waits for its calls


def probability(
    z: Tensor, *, q: int = 100, k: int = 2, generator: torch.Generator | None = None
) -> Tensor:
    """P(z) [n]: the smaller of p1 and p2, the smallest over q orders of z's numbers.

    The first order is z's own, the others are random: random ones alone do not see that z repeats
    itself, since they scatter what belongs together.

    About a quarter on average for draws of N(0, I), the least of many bounds; near 0 where a model
    is fed what it never saw.

    Args:
        z: [n, ...] candidates.
        q: how many orders are tried, z's own included (the paper: 100).
        k: length of the vectors that each order is cut into (the paper: 2).
        generator: draws the orders; None for always the same ones, so that P(z) depends on z alone.

    Raises:
        InvalidInput: q or k is not a positive whole number, or a candidate has less than k numbers.

    Example:
        >>> z = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        >>> far = torch.cat([z, 0.5 * z])
        >>> [round(p, 1) for p in probability(far).tolist()]
        [0.4, 0.0]

    Source: DNO, equation 11; q in section 3.1.
    """
    _check(q=q, k=k)
    flat = _flat(z.detach(), k)
    n, d = flat.shape
    if generator is None:
        orders = _usual_orders(d, k, q - 1, flat.device)
    else:
        orders = _orders(d, k, q - 1, generator, flat.device)
    own = flat[:, : d // k * k].reshape(n, k, -1)
    smallest = _smaller(_bounds(own))
    deck = orders.dealt(flat)
    for some in orders.pieces(n):
        found = _smaller(_bounds(_ordered(deck, some, k)))
        smallest = torch.minimum(smallest, found.view(n, -1).amin(dim=1))
    return smallest.exp()


@dataclass(frozen=True)
class Prno(Regulariser):
    """The probability regulariser: value(z) = -mean over b random orders of (log p1 + log p2).

    So score = reward + gamma E[log p1 + log p2] with gamma = `weight`. It is 0 where both bounds
    say nothing, about .1 for a typical draw of N(0, I), and grows with the distance from that law.
    The gradient is of orders that are drawn anew each round; the value by which rounds are compared
    is of the same orders in all of them (`random`). The gradient is closed-form, without a graph:
    it needs a few copies of z and of a million or two of numbers, whatever b is.

    Attributes:
        k: length of the vectors (the paper: 2; 1 sees no covariance, 100 leaves too few vectors).
        b: random orders a round (the paper: 100).
        weight: gamma (the paper: 1 for brightness, .1 for human rewards).
        device: where it is computed; None for where z is. What it returns is where z is.

    Raises:
        InvalidInput: a field is out of its range; later, a candidate has less than k numbers.

    Example:
        >>> z = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        >>> penalty = Prno().value(torch.cat([z, 0.5 * z, 0 * z]), Draw(seed=0, round=0))
        >>> [round(one) for one in penalty.tolist()]
        [0, 89, 149]

    Source: DNO, equation 12; appendix D.2 for b and gamma, appendix E for k.
    """

    k: int = 2
    b: int = 100
    weight: float = 1.0
    device: torch.device | None = None
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(k=self.k, b=self.b)
        if self.b > MOST_ORDERS:
            raise InvalidInput(f"b must be at most {MOST_ORDERS}, got b={self.b}")
        if not 0 <= self.weight < math.inf:
            raise InvalidInput(
                f"weight (gamma) must be finite and not negative, got weight={self.weight!r}; "
                "0 leaves the probability free"
            )

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        """The penalty [n] of z [n, ...], at least 0."""
        penalty: Tensor = _Penalty.apply(z, self, draw)  # type: ignore[no-untyped-call]
        return penalty

    def gradient(self, z: Tensor, draw: Draw) -> Tensor:
        """d value.sum() / dz [n, ...]."""
        return self.value_and_gradient(z, draw)[1]

    @torch.no_grad()
    def value_and_gradient(self, z: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Both, from one pass over the orders."""
        value, gradient = self._accumulated(z, draw, wanted=True)
        assert gradient is not None
        return value, gradient

    def _accumulated(self, z: Tensor, draw: Draw, *, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """The means over the orders, each piece's share added as soon as it is known."""
        flat = _flat(z, self.k)
        flat = flat if self.device is None else flat.to(self.device)
        n, d = flat.shape
        value = torch.zeros(n, dtype=flat.dtype, device=flat.device)
        orders = _orders_of(draw, d, self.k, self.b, flat.device)
        deck = orders.dealt(flat)
        total = torch.zeros_like(deck) if wanted else None
        for some in orders.pieces(n):
            x = _ordered(deck, some, self.k)
            bounds = _bounds(x)
            value -= (bounds.log_p1 + bounds.log_p2).view(n, -1).sum(dim=1)
            slope = _slope(x, bounds) if total is not None else None
            if total is not None and slope is not None:
                total += _put_back(slope.view(n, -1, deck.shape[2]), some).sum(dim=1)
        gradient = None
        if total is not None:
            gradient = torch.zeros_like(flat)
            gradient.index_copy_(1, orders.places.long(), total.flatten(1) / self.b)
            gradient = gradient.view_as(z).to(z)
        return (value / self.b).to(z), gradient


@dataclass(frozen=True)
class OwnOrder(Regulariser):
    """The first bound for z in its own order: -log p1 of its k stretches, summed over k.

    Random orders see the mean and the size of z's numbers and nothing of where they are: an ascent
    may push early steps' noise one way and late ones' the other. Ours; the stretches are halves,
    quarters and so on down to about one channel of one step.

    Attributes:
        weight: gamma.

    Source: DNO, equation 9, without the permutation.
    """

    weight: float = 1.0

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        """The penalty [n] of z [n, slots, C, ...], at least 0; differentiable."""
        flat = _flat(z, 2)
        total, k = flat.new_zeros(len(flat)), 2
        while k <= math.prod(z.shape[1:3]):
            m = flat.shape[1] // k
            means = flat[:, : k * m].view(len(flat), k, m).mean(dim=2)
            total = total + (m * means.square().sum(dim=1) / (2 * k) - LOG_2).clamp(min=0)
            k *= 2
        return total.to(z.dtype)


@dataclass(frozen=True)
class AsStored(Regulariser):
    """Both bounds for z in its own order: -(log p1 + log p2) of vectors of k neighbours.

    What the authors' release adds to the mean over random orders, with vectors of 4.

    Attributes:
        k: length of the vectors.
        weight: gamma.

    Source: DNO's authors' release, `compute_probability_regularization`.
    """

    k: int = 4
    weight: float = 1.0

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        """The penalty [n] of z [n, ...], at least 0; differentiable."""
        flat = _flat(z, self.k)
        m = flat.shape[1] // self.k
        bounds = _bounds(flat[:, : m * self.k].reshape(len(flat), m, self.k).mT)
        return -(bounds.log_p1 + bounds.log_p2).to(z.dtype)


@dataclass(frozen=True)
class OfLast(Regulariser):
    """Another regulariser, over the last noises alone; it leaves the earlier ones where they are.

    Attributes:
        inner: what is taken of them.
        slots: how many noises.
        weight: of the whole; the inner one's own says nothing.
    """

    inner: Regulariser
    slots: int
    weight: float = 1.0
    random: ClassVar[bool] = True  # the inner one may be

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        """The inner penalty [n] of the last noises of z [n, slots, ...]."""
        return self.inner.value(z[:, -self.slots :], draw)

    def value_and_gradient(self, z: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Both; the gradient is 0 at the earlier noises."""
        value, slope = self.inner.value_and_gradient(z[:, -self.slots :], draw)
        gradient = torch.zeros_like(z)
        gradient[:, -self.slots :] = slope
        return value, gradient


class _Penalty(torch.autograd.Function):
    """`Prno.value` for whoever differentiates it: keeps the closed-form gradient, nothing else."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, prno: Prno, draw: Draw) -> Tensor:
        value, gradient = prno._accumulated(z, draw, wanted=ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad.view(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None


@dataclass(frozen=True)
class _Bounds:
    """What an order gives: log p1, log p2 [n], and what their gradients are made of."""

    log_p1: Tensor
    log_p2: Tensor
    mean: Tensor  # [n, k]
    excess: Tensor  # s [n]
    deviation: Tensor  # M2 [n]
    direction: Tensor  # d M2 / d covariance [n, k, k]: the extreme eigenvalue's +-v v^T


def _bounds(x: Tensor) -> _Bounds:
    """The two bounds for the vectors x [n, k, m], one a column."""
    _, k, m = x.shape
    mean = x.mean(dim=2)
    log_p1 = (LOG_2 - m * mean.square().sum(dim=1) / (2 * k)).clamp(max=0)  # eq. 9
    deviation, direction = _spectral(x)
    excess = ((1 + deviation).sqrt() - 1 - math.sqrt(k / m)).clamp(min=0)
    log_p2 = (LOG_2 - m * excess.square() / 2).clamp(max=0)  # eq. 10
    return _Bounds(log_p1, log_p2, mean, excess, deviation, direction)


def _smaller(bounds: _Bounds) -> Tensor:
    """The smaller of log p1 and log p2 [n]."""
    return torch.minimum(bounds.log_p1, bounds.log_p2)


def _spectral(x: Tensor) -> tuple[Tensor, Tensor]:
    """M2 = |x x^T / m - I|_2 [n] of x [n, k, m] and its gradient by that matrix [n, k, k].

    The eigenvalues of a 2 x 2 matrix hI + A, A = [[e, c], [c, -e]], are h +- d, d = |(e, c)|, with
    v v^T = (I +- A / d) / 2. Where d = 0 both are extreme, and the mean of both is a subgradient.
    """
    _, k, m = x.shape
    identity = torch.eye(k, dtype=x.dtype, device=x.device)
    off = x @ x.mT / m - identity
    if k == 2:
        first, second, c = off[:, 0, 0], off[:, 1, 1], off[:, 0, 1]
        h, e = (first + second) / 2, (first - second) / 2
        d = torch.hypot(e, c)
        sign = torch.where(h >= 0, 1.0, -1.0).to(h)
        tilt = torch.stack([e, c, c, -e], dim=1) / d.clamp(min=torch.finfo(d.dtype).tiny)[:, None]
        return h.abs() + d, (sign[:, None, None] * identity + tilt.view(-1, 2, 2)) / 2
    small = k <= 32  # what accelerators decompose side by side; larger ones one after another
    values, vectors = (part.to(x) for part in torch.linalg.eigh(off if small else off.cpu()))
    at = values.abs().argmax(dim=1, keepdim=True)
    extreme = values.gather(1, at)
    v = vectors.gather(2, at[:, None, :].expand(-1, k, 1))  # [n, k, 1]
    return extreme.abs()[:, 0], extreme.sign()[:, :, None] * (v @ v.mT)


def _slope(x: Tensor, bounds: _Bounds) -> Tensor | None:
    """-d(log p1 + log p2) / dx [n, k, m], or None where it is 0 for all candidates.

    -d log p1 / dx_i = mean / k, and -d log p2 / dx_i = m s ds/dM2 dM2/dx_i with
    ds/dM2 = 1 / (2 sqrt(1 + M2)) and dM2/dx_i = (2 / m) (+-v v^T) x_i. A capped bound has none.
    """
    k = x.shape[1]
    near, wide = bounds.log_p1 < 0, bounds.log_p2 < 0
    if not bool((near | wide).any()):
        return None
    shift = (bounds.mean / k) * near[:, None]
    scale = wide * bounds.excess / (1 + bounds.deviation).sqrt()
    slope = (scale[:, None, None] * bounds.direction) @ x
    return slope.add_(shift[:, :, None])


def _flat(z: Tensor, k: int) -> Tensor:
    """z [n, d], in float32 at least: half precision loses the mean of many numbers."""
    flat = z.reshape(len(z), -1)
    if flat.shape[1] < k:
        raise InvalidInput(
            f"P(z) needs at least k={k} numbers a candidate, got {flat.shape[1]}; use a smaller k"
        )
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


@dataclass(frozen=True)
class _Orders:
    """Random orders of z's numbers: one shuffle of them all, then shuffles of chunks of that.

    Attributes:
        places: [chunks length] the shuffle, without the numbers that are left out.
        chunks: [number, chunks] an order of the chunks in each row.
    """

    places: Tensor
    chunks: Tensor

    def dealt(self, flat: Points) -> Tensor:
        """The deck [n, chunks, length]: flat [n, d], shuffled, in chunks."""
        return flat.index_select(1, self.places).view(len(flat), self.chunks.shape[1], -1)

    def pieces(self, n: int) -> Iterator[Tensor]:
        """The orders, as many at a time as `TOGETHER` allows for n candidates."""
        allowed = TOGETHER if self.places.device.type == "cpu" else TOGETHER_FAST
        size = max(1, allowed // (n * len(self.places)))
        return iter(torch.split(self.chunks, size) if len(self.chunks) else ())


def _orders(
    d: int, k: int, number: int, generator: torch.Generator, device: torch.device
) -> _Orders:
    """`number` orders of d numbers; the number of chunks is a multiple of k."""
    length = min(-(-d // CHUNKS), d // k)
    chunks = d // length // k * k
    places = torch.randperm(d, generator=generator)[: chunks * length]
    orders = torch.empty(number, chunks, dtype=torch.long)
    for one in orders:
        torch.randperm(chunks, generator=generator, out=one)
    return _Orders(places.to(device, torch.int32), orders.to(device, torch.int32))


@lru_cache(maxsize=4)
def _orders_of(draw: Draw, d: int, k: int, number: int, device: torch.device) -> _Orders:
    """A round's orders, kept for the other runs of its seed that go side by side."""
    return _orders(d, k, number, draw.generator("prno"), device)


@lru_cache(maxsize=2)
def _usual_orders(d: int, k: int, number: int, device: torch.device) -> _Orders:
    """Those of every P(z)."""
    return _orders(d, k, number, keyed_generator(0, "P(z)"), device)


def _ordered(deck: Tensor, some: Tensor, k: int) -> Tensor:
    """The deck [n, chunks, length] in each of some orders [c, chunks], as vectors [n c, k, m]."""
    return deck.index_select(1, some.flatten()).view(len(deck) * len(some), k, -1)


def _put_back(slope: Tensor, some: Tensor) -> Tensor:
    """[n, c chunks, length] in some orders [c, chunks] as [n, c, chunks, length] in the deck's.

    By the inverse orders: sums at given places depend on chance on an accelerator.
    """
    c, chunks = some.shape
    inverse = torch.empty_like(some)
    inverse.scatter_(
        1, some.long(), torch.arange(chunks, device=some.device, dtype=some.dtype).expand_as(some)
    )
    inverse += chunks * torch.arange(c, device=some.device, dtype=some.dtype)[:, None]
    return slope.index_select(1, inverse.flatten()).view(len(slope), c, chunks, -1)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise InvalidInput(f"{name} must be a whole number of at least 1, got {name}={value!r}")
