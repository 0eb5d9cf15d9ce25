"""Muon: momentum whose matrices are orthogonalised, AdamW for everything that is not a matrix.

For a weight W [out, in] (a convolution's kernel is flattened to one) with gradient G:

    M <- b M + (1 - b) G,    W <- W - lr (0.2 sqrt(max(out, in)) NS(b M + (1 - b) G) + decay W)

NS replaces the singular values by about one, with five Newton-Schulz iterations of the quintic
a X + b (X X^T) X + c (X X^T)^2 X. The factor 0.2 sqrt(max(out, in)) gives the step the size that
AdamW's has, so that learning rates carry over. Source: Jordan et al. 2024, "Muon"; Liu et al. 2025,
"Muon is scalable for LLM training", section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """See the module. The state of each parameter has AdamW's names: exp_avg, exp_avg_sq, step."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        capturable: bool = False,
    ) -> None:
        """`capturable` as torch's optimizers mean it: `lr` and "step" are tensors on the device."""
        settings = {
            "lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay,
            "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, settings)

    # torch overloads its own step by whether a closure is given
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self._begin(p, group["capturable"])
                if group["weight_decay"]:
                    p.mul_(1.0 - group["lr"] * group["weight_decay"])
            matrices = [p for p in params if p.ndim >= 2]
            steps = orthogonalise(self._momenta(matrices, group["momentum"]))
            for p, step in zip(matrices, steps, strict=True):
                _descend(p, step.view_as(p), group["lr"], 0.2 * max(step.shape) ** 0.5)
            vectors = [p for p in params if p.ndim < 2]
            for p, step in zip(vectors, self._adam(vectors, group["betas"]), strict=True):
                _descend(p, step, group["lr"], 1.0)

    def _begin(self, p: Tensor, capturable: bool) -> None:
        state = self.state[p]
        if not state:
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
            state["step"] = torch.tensor(0.0, device=p.device if capturable else None)
        state["step"] += 1

    def _momenta(self, matrices: list[Tensor], momentum: float) -> list[Tensor]:
        """Gradients looked at from one step ahead (Nesterov), as matrices [out, in]."""
        if not matrices:
            return []
        grads = [_grad(p) for p in matrices]
        averages = [self.state[p]["exp_avg"] for p in matrices]
        torch._foreach_lerp_(averages, grads, 1.0 - momentum)
        return [m.flatten(1) for m in torch._foreach_lerp(grads, averages, momentum)]

    def _adam(self, vectors: list[Tensor], betas: tuple[float, float]) -> list[Tensor]:
        """AdamW's steps, for a rate of one."""
        if not vectors:
            return []
        one, two = betas
        grads = [_grad(p) for p in vectors]
        means = [self.state[p]["exp_avg"] for p in vectors]
        squares = [self.state[p]["exp_avg_sq"] for p in vectors]
        torch._foreach_lerp_(means, grads, 1.0 - one)
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1.0 - two)
        # all vectors are of one age: they had a gradient in every step
        age = self.state[vectors[0]]["step"]
        if age.device.type == "cpu":
            age = float(age)
        roots = torch._foreach_sqrt(torch._foreach_div(squares, 1.0 - two**age))
        return list(
            torch._foreach_div(
                torch._foreach_div(means, 1.0 - one**age), torch._foreach_add(roots, 1e-8)
            )
        )


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _descend(p: Tensor, step: Tensor, rate: float | Tensor, scale: float) -> None:
    if isinstance(rate, Tensor):
        p.sub_(step * (rate * scale))
    else:
        p.add_(step, alpha=-rate * scale)


def orthogonalise(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix [m, n] with its singular values moved to about one (most to within .7 to 1.2).

    The polynomial of X is one of its Gram matrix times X, so the iterations run on the Gram
    matrices alone, those of one size together: half the time of iterating on X one by one. They
    need float32: rounded to bfloat16 (or to a GPU's TF32, which torch leaves off for products of
    matrices), a Gram matrix gets negative eigenvalues, and those diverge.
    """
    a, b, c = COEFFICIENTS
    flat = [_wide(m.float()) for m in matrices]
    flat = [x / (x.norm() + 1e-7) for x in flat]
    sizes: dict[int, list[int]] = {}
    for i, x in enumerate(flat):
        sizes.setdefault(len(x), []).append(i)
    out: list[Tensor] = list(flat)
    for members in sizes.values():
        gram = torch.stack([flat[i] @ flat[i].T for i in members])
        whole = torch.eye(gram.shape[-1], device=gram.device).expand_as(gram)
        for _ in range(5):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            whole = factor @ whole
            gram = factor @ gram @ factor
        for i, polynomial in zip(members, whole.bfloat16(), strict=True):
            x = (polynomial @ flat[i].bfloat16()).to(matrices[i].dtype)
            out[i] = x if matrices[i].shape[0] <= matrices[i].shape[1] else x.T
    return out


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
