"""Update rules: how a gradient becomes a move. Pure pairs `(init, update)`, settings frozen.

A rule's state is a tuple of tensors shaped like z [n, ...]. No rule looks from one candidate to
another, so n of them moved together move as they would alone, and each has an optimizer of its own.
The gradients point uphill and the moves are added: ascent. All but `Normalized` work number by
number and equal their namesakes in `torch.optim` with `maximize=True`, to float rounding.

A rule found by the optimizer search implements the same class and drops into `Gradient`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.shapes import Points

Moments = tuple[Tensor, ...]


class UpdateRule(ABC):
    """How a gradient becomes a move. Subclasses are frozen dataclasses."""

    @abstractmethod
    def init(self, z: Points) -> Moments:
        """The rule's memory before the first step, for candidates z [n, ...]."""

    @abstractmethod
    def update(
        self,
        state: Moments,
        grad: Points,
        z: Points,
        lr: float,
        step: int,
    ) -> tuple[Points, Moments]:
        """The move to add to z, and the new memory.

        Args:
            state: what `init` or the last `update` returned; left unchanged.
            grad: the gradient of the score, uphill, [n, ...].
            z: where it was taken, [n, ...].
            lr: this step's learning rate.
            step: steps done before this one, from 0.
        """


def _check(name: str, value: float, low: float, high: float) -> None:
    """Raise unless low <= value < high."""
    if not low <= value < high:
        raise InvalidInput(f"expected {low:g} <= {name} < {high:g}, got {name}={value!r}")


@dataclass(frozen=True)
class Sgd(UpdateRule):
    """Steepest ascent with momentum: m <- mu m + (1 - tau) g, z <- z + lr m.

    Nesterov's form moves by g + mu m. The first step sets m = g.

    Attributes:
        momentum: mu.
        nesterov: look ahead along the momentum.
        dampening: tau.
        weight_decay: pulls z towards 0: g <- g - weight_decay z.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum", as written
    in torch.optim.SGD.
    """

    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check("momentum", self.momentum, 0.0, 1.0)
        _check("weight_decay", self.weight_decay, 0.0, float("inf"))
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise InvalidInput(
                "nesterov needs a momentum and no dampening, got "
                f"momentum={self.momentum!r}, dampening={self.dampening!r}"
            )

    def init(self, z: Points) -> Moments:
        """The momentum, where there is one."""
        return (torch.zeros_like(z),) if self.momentum else ()

    def update(
        self,
        state: Moments,
        grad: Points,
        z: Points,
        lr: float,
        step: int,
    ) -> tuple[Points, Moments]:
        """lr times the gradient with its momentum."""
        grad = grad - self.weight_decay * z
        if not self.momentum:
            return lr * grad, ()
        fresh = grad if step == 0 else (1 - self.dampening) * grad
        m = self.momentum * state[0] + fresh
        return lr * (grad + self.momentum * m if self.nesterov else m), (m,)


def _adam_move(
    state: Moments, grad: Tensor, step: int, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Moments]:
    """Algorithm 1 of Adam without the learning rate: m_hat / (sqrt(v_hat) + eps)."""
    m = beta1 * state[0] + (1 - beta1) * grad
    v = beta2 * state[1] + (1 - beta2) * grad * grad
    m_hat = m / (1 - beta1 ** (step + 1))
    v_hat = v / (1 - beta2 ** (step + 1))
    return m_hat / (v_hat.sqrt() + eps), (m, v)


@dataclass(frozen=True)
class Adam(UpdateRule):
    """z <- z + lr m_hat / (sqrt(v_hat) + eps), moments of the gradient without their bias.

    Attributes:
        beta1, beta2: decay of the first and second moment.
        eps: added to the root, after the correction.
        weight_decay: the L2 form: g <- g - weight_decay z, before the moments.

    Source: Kingma and Ba 2015, "Adam", algorithm 1.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check("beta1", self.beta1, 0.0, 1.0)
        _check("beta2", self.beta2, 0.0, 1.0)
        _check("eps", self.eps, 0.0, float("inf"))
        _check("weight_decay", self.weight_decay, 0.0, float("inf"))

    def init(self, z: Points) -> Moments:
        """The two moments."""
        return torch.zeros_like(z), torch.zeros_like(z)

    def update(
        self,
        state: Moments,
        grad: Points,
        z: Points,
        lr: float,
        step: int,
    ) -> tuple[Points, Moments]:
        """lr times the normalised first moment."""
        grad = grad - self.weight_decay * z
        move, state = _adam_move(state, grad, step, self.beta1, self.beta2, self.eps)
        return lr * move, state


@dataclass(frozen=True)
class AdamW(UpdateRule):
    """Adam whose weight decay is apart from the gradient: z <- (1 - lr weight_decay) z + Adam.

    Attributes:
        beta1, beta2: decay of the first and second moment.
        eps: added to the root, after the correction.
        weight_decay: the decoupled decay.

    Source: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2; the
    decay's default is torch.optim's.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        Adam(self.beta1, self.beta2, self.eps, self.weight_decay)

    def init(self, z: Points) -> Moments:
        """The two moments."""
        return torch.zeros_like(z), torch.zeros_like(z)

    def update(
        self,
        state: Moments,
        grad: Points,
        z: Points,
        lr: float,
        step: int,
    ) -> tuple[Points, Moments]:
        """lr times the normalised first moment, less the decay."""
        move, state = _adam_move(state, grad, step, self.beta1, self.beta2, self.eps)
        return lr * (move - self.weight_decay * z), state


@dataclass(frozen=True)
class RmsProp(UpdateRule):
    """z <- z + lr g / (sqrt(v) + eps), v the running mean of g^2; with momentum, a sum of those.

    Attributes:
        alpha: decay of v.
        eps: added to the root.
        momentum: of the normalised gradients.
        weight_decay: the L2 form: g <- g - weight_decay z.

    Source: Tieleman and Hinton 2012, lecture 6.5, as written in torch.optim.RMSprop.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check("alpha", self.alpha, 0.0, 1.0)
        _check("eps", self.eps, 0.0, float("inf"))
        _check("momentum", self.momentum, 0.0, 1.0)
        _check("weight_decay", self.weight_decay, 0.0, float("inf"))

    def init(self, z: Points) -> Moments:
        """The second moment, and the momentum where there is one."""
        v = torch.zeros_like(z)
        return (v, torch.zeros_like(z)) if self.momentum else (v,)

    def update(
        self,
        state: Moments,
        grad: Points,
        z: Points,
        lr: float,
        step: int,
    ) -> tuple[Points, Moments]:
        """lr times the gradient over its root mean square."""
        grad = grad - self.weight_decay * z
        v = self.alpha * state[0] + (1 - self.alpha) * grad * grad
        move = grad / (v.sqrt() + self.eps)
        if not self.momentum:
            return lr * move, (v,)
        buffer = self.momentum * state[1] + move
        return lr * buffer, (v, buffer)


@dataclass(frozen=True)
class Normalized(UpdateRule):
    """Every part s of z moves equally far, along its momentum, in Nesterov's form.

        m <- mu m + (1 - mu) g,      u = (1 - mu) g + mu m / (1 - mu^(t + 1))
        z_s <- z_s + lr sqrt(d_s) u_s / |u_s|

    A part is what stands at one place of the axis after the candidates', a step's noise of a
    trajectory; z [n, d] is one part. lr is the root mean square of a part's move, so it is in the
    unit of Adam's, but the numbers within a part keep the gradient's proportions, where Adam moves
    those that hardly matter as far as the others.

    Attributes:
        momentum: mu.
        eps: added to the root mean square of u: a part without a gradient stays.

    Source: Cutkosky and Mehta 2020, "Momentum improves normalized SGD", without the look ahead;
    part by part as in You et al. 2017, "Large batch training of convolutional networks".
    """

    momentum: float = 0.9
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check("momentum", self.momentum, 0.0, 1.0)
        _check("eps", self.eps, 0.0, float("inf"))

    def init(self, z: Points) -> Moments:
        """The momentum."""
        return (torch.zeros_like(z),)

    def update(
        self,
        state: Moments,
        grad: Points,
        z: Points,
        lr: float,
        step: int,
    ) -> tuple[Points, Moments]:
        """lr times the momentum ahead, each part at a root mean square of 1."""
        fresh = (1 - self.momentum) * grad
        m = self.momentum * state[0] + fresh
        ahead = fresh + self.momentum * m / (1 - self.momentum ** (step + 1))
        within = tuple(range(2 if z.ndim > 2 else 1, z.ndim))
        size = ahead.square().mean(dim=within, keepdim=True).sqrt()
        return lr * ahead / (size + self.eps), (m,)
