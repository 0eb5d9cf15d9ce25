"""Muon: momentum whose matrices are orthogonalised, AdamW for everything that is not a matrix.

For a weight W [out, in] (a convolution's kernel is flattened to one) with gradient G:

    M <- b M + (1 - b) G,    W <- W - lr (0.2 sqrt(max(out, in)) NS(b M + (1 - b) G) + decay W)

NS replaces the singular values by about one, with five Newton-Schulz iterations of the quintic
a X + b (X X^T) X + c (X X^T)^2 X. The factor 0.2 sqrt(max(out, in)) gives the step the size that
AdamW's has, so that learning rates carry over. Source: Jordan et al. 2024, "Muon"; Liu et al. 2025,
"Muon is scalable for LLM training", section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """See the module. The state of each parameter has AdamW's names: exp_avg, exp_avg_sq, step."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                    state["step"] = torch.tensor(0.0)
                state["step"] += 1
                if group["weight_decay"]:
                    p.mul_(1.0 - group["lr"] * group["weight_decay"])
                update = _matrix if p.ndim >= 2 else _adam
                p.add_(update(p.grad, state, group), alpha=-group["lr"])


def _matrix(grad: Tensor, state: dict[str, Tensor], group: dict[str, float]) -> Tensor:
    momentum = group["momentum"]
    state["exp_avg"].lerp_(grad, 1.0 - momentum)
    ahead = grad.lerp(state["exp_avg"], momentum).flatten(1)  # Nesterov
    scale = 0.2 * max(ahead.shape) ** 0.5
    update: Tensor = (orthogonalise(ahead) * scale).view_as(grad)
    return update


def _adam(grad: Tensor, state: dict[str, Tensor], group: dict[str, tuple[float, float]]) -> Tensor:
    one, two = group["betas"]
    state["exp_avg"].lerp_(grad, 1.0 - one)
    state["exp_avg_sq"].lerp_(grad.square(), 1.0 - two)
    step = float(state["step"])
    mean = state["exp_avg"] / (1.0 - one**step)
    update: Tensor = mean / ((state["exp_avg_sq"] / (1.0 - two**step)).sqrt() + 1e-8)
    return update


def orthogonalise(matrix: Tensor) -> Tensor:
    """The matrix [m, n] with its singular values moved to about one (within .7 to 1.2)."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    back: Tensor = (x if wide else x.T).to(matrix.dtype)
    return back
