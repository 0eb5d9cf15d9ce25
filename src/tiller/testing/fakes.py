"""Fakes: small problems with known answers. They serve tests, never a default path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tiller.core.budget import count
from tiller.core.objective import Objective, Regulariser
from tiller.core.rng import Draw, Stream
from tiller.core.space import Continuous, Discrete


class FakeBox(Continuous[Tensor]):
    """Standard normal samples of any shape, kept inside [-limit, limit]; x = z."""

    def __init__(
        self, shape: Sequence[int], *, limit: float = 10.0, dtype: torch.dtype = torch.float64
    ) -> None:
        self._shape, self.limit, self.dtype = tuple(shape), limit, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As given."""
        return self._shape

    def sample(self, n: int, rng: Stream) -> Tensor:
        """`n` normal draws [n, *shape], clamped."""
        draws = [torch.randn(self._shape, generator=rng.next(), dtype=self.dtype) for _ in range(n)]
        return self.project(torch.stack(draws))

    def decode(self, z: Tensor) -> Tensor:
        """z itself."""
        return z

    def project(self, z: Tensor) -> Tensor:
        """The nearest point of the box."""
        return z.clamp(-self.limit, self.limit)


class FakeQuadratic(Objective[Tensor, Tensor]):
    """score(x) = -sum_i scale_i (x_i - target_i)^2, best 0 at `target`; bills an image each.

    Args:
        dimension: how many numbers.
        condition: the largest scale over the smallest; 1 is the sphere, more an ellipsoid.
        noise: size of a random shift of the target, common to the candidates of a round.
        batch_size: candidates evaluated at once.
        dtype: of the numbers.
        regularisers: penalties.
        black_box: the score gives no gradient; what is rendered still does.
    """

    render_differentiable = True

    def __init__(
        self,
        dimension: int = 4,
        *,
        condition: float = 1.0,
        noise: float = 0.0,
        batch_size: int | None = None,
        dtype: torch.dtype = torch.float64,
        regularisers: tuple[Regulariser, ...] = (),
        black_box: bool = False,
    ) -> None:
        powers = torch.linspace(0, 1, dimension, dtype=dtype) if dimension > 1 else torch.zeros(1)
        self.scale = condition ** powers.to(dtype)
        self.target = torch.linspace(-1, 1, dimension, dtype=dtype)
        self.space = FakeBox((dimension,), dtype=dtype)
        self.noise, self.batch_size, self.regularisers = noise, batch_size, regularisers
        self.differentiable = not black_box

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        """x [n, dimension], less the round's shift; one image and one forward a candidate."""
        count(images=len(x), forwards=len(x))
        shift = torch.randn(x.shape[1:], generator=draw.generator("shift"), dtype=x.dtype)
        return x - self.noise * shift

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """[n], at most 0."""
        count(reward_calls=len(y))
        y = y if self.differentiable else y.detach()
        return -(self.scale * (y - self.target) ** 2).sum(dim=1)


class FakeChoices(Discrete[Tensor]):
    """`positions` choices among `options`; x = z."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = tuple(choices)

    @property
    def choices(self) -> tuple[int, ...]:
        """As given."""
        return self._choices

    def decode(self, z: Tensor) -> Tensor:
        """z itself."""
        return z


class FakeMatch(Objective[Tensor, Tensor]):
    """score(x) = the number of positions that hold their last option: OneMax for two options.

    Args:
        positions: how many.
        options: at each.
        batch_size: candidates evaluated at once.
    """

    def __init__(self, positions: int = 8, options: int = 2, batch_size: int | None = None) -> None:
        self.space = FakeChoices([options] * positions)
        self.batch_size = batch_size

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        """x [n, positions]; one image and one forward a candidate."""
        count(images=len(x), forwards=len(x))
        return x

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """[n] counts of matching positions."""
        count(reward_calls=len(y))
        return (y == torch.tensor(self.space.choices) - 1).sum(dim=1).double()


class FakeStateful(Objective[Tensor, Tensor]):
    """A quadratic whose target creeps with every evaluation: a stand-in for a trained supernet."""

    stateful = True
    differentiable = True

    def __init__(self, dimension: int = 3) -> None:
        self.space = FakeBox((dimension,))
        self.target = torch.zeros(dimension, dtype=torch.float64)

    def render(self, x: Tensor, draw: Draw) -> Tensor:
        """x less the target, which then moves by a random step of the round's."""
        count(images=len(x), forwards=len(x))
        y = x - self.target
        step = torch.randn(self.target.shape, generator=draw.generator("creep")).to(self.target)
        self.target = self.target + 0.1 * step
        return y

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """[n], at most 0."""
        return -(y**2).sum(dim=1)

    def state(self) -> dict[str, Tensor]:
        """The target."""
        return {"target": self.target.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self.target = state["target"].clone()
