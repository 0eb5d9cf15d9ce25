"""Recomputation: memory for time, over the denoiser alone.

A gradient over K steps costs K forwards and K backwards with everything kept, and K forwards more
with everything recomputed. Weights are frozen, so a backward is about one forward: the floors are
2 and 3 forwards a step. Between them, the last `kept` steps keep their activations: their
backwards come first, so they are freed before the first recomputation starts, and the peak is
max(kept, 1) steps' activations.

Only the denoiser is recomputed. The scheduler's arithmetic stays in the graph: it is cheap, and
multistep schedulers have a state that a second call of `step` would corrupt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tiller.core.errors import InvalidInput

Checkpoint = Literal["auto", "recompute", "keep"] | int
"""How many of the last steps keep their activations: all, none, a number, or what fits."""

MEMORY_SHARE = 0.5  # of the free memory, the default budget of activations


Pullback = Callable[[Sequence[Tensor], Tensor], Sequence[Tensor | None]]
"""(latents and inputs, grad) -> d <grad, function> / d of each; None where none is wanted."""


class _Recomputed(torch.autograd.Function):
    """function(latents, *inputs), whose backward runs it again with a graph."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        counted: Callable[[], None],
        pullback: Pullback | None,
        latents: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.function, ctx.counted, ctx.pullback = function, counted, pullback
        ctx.save_for_backward(latents, *inputs)
        return function(latents, *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[3:]
        if ctx.pullback is not None:
            ctx.counted()
            pulled = ctx.pullback(ctx.saved_tensors, grad)
            found = (g if need else None for g, need in zip(pulled, wanted, strict=True))
            return None, None, None, *found
        leaves = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            out = ctx.function(*leaves)
        ctx.counted()
        needed = [leaf for leaf in leaves if leaf.requires_grad]
        grads = iter(torch.autograd.grad(out, needed, grad))
        return None, None, None, *(next(grads) if need else None for need in wanted)


def recomputed(
    function: Callable[..., Tensor],
    latents: Tensor,
    inputs: tuple[Tensor, ...],
    counted: Callable[[], None],
    pullback: Pullback | None = None,
) -> Tensor:
    """function(latents, *inputs), keeping only the inputs for the backward.

    `function` must be deterministic and reach nothing else that needs a gradient. `counted` is
    called once for each recomputation. `pullback` stands in for running the function again.
    """
    out: Tensor = _Recomputed.apply(function, counted, pullback, latents, *inputs)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class Plan:
    """What is kept and what is recomputed in one trajectory.

    Attributes:
        steps: how many carry a gradient.
        kept: the last so many of these keep their activations.
        step_bytes: activations of one step for the whole batch; None where it was not measured.
        budget_bytes: what `auto` had to fit into; None where the choice was the caller's.
        replayed: recomputed because replaying recorded calls is faster than keeping.
    """

    steps: int
    kept: int
    step_bytes: int | None = None
    budget_bytes: int | None = None
    replayed: bool = False

    @property
    def recomputed(self) -> int:
        """How many steps run a second time."""
        return self.steps - self.kept

    def __str__(self) -> str:
        if not self.steps:
            return "no gradient: nothing is kept"
        text = f"activations of {self.kept} of {self.steps} steps are kept"
        if self.recomputed:
            text += f", {self.recomputed} are recomputed"
        if self.replayed:
            text += " (replayed from a recording, which is faster here than keeping)"
        if self.step_bytes is not None and self.budget_bytes is not None:
            text += (
                f" ({_mb(self.step_bytes)} a step, {_mb(max(self.kept, 1) * self.step_bytes)} of "
                f"a budget of {_mb(self.budget_bytes)})"
            )
        return text


def chosen(
    checkpoint: Checkpoint,
    steps: int,
    *,
    measure: Callable[[], int],
    memory_budget: int | None,
    device: torch.device,
) -> Plan:
    """The plan for `steps` gradient steps; `measure` gives one step's bytes and is called late.

    Raises:
        InvalidInput: `checkpoint` is none of the choices.
    """
    if steps == 0:
        return Plan(0, 0)
    if checkpoint == "keep":
        return Plan(steps, steps)
    if checkpoint == "recompute":
        return Plan(steps, 0)
    if isinstance(checkpoint, int) and not isinstance(checkpoint, bool) and checkpoint >= 0:
        return Plan(steps, min(steps, checkpoint))
    if checkpoint != "auto":
        raise InvalidInput(
            "checkpoint must be 'auto', 'recompute', 'keep' or the number of steps to keep, "
            f"got {checkpoint!r}"
        )
    if steps == 1:  # one step's activations are needed in any case
        return Plan(1, 1)
    budget = memory_budget
    if budget is None:
        budget = int(MEMORY_SHARE * free_bytes(device))
    step_bytes = measure()
    return Plan(steps, min(steps, max(1, budget // max(1, step_bytes))), step_bytes, budget)


def saved_bytes(function: Callable[[], Tensor]) -> int:
    """The bytes that autograd keeps for the backward of `function`, each storage once."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # alive until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(storages.values())


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device, within this process's limits."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - used
        return max(0, min(free + torch.cuda.memory_reserved(device) - used, allowed))
    candidates = [_available_bytes()]
    with contextlib.suppress(OSError, ValueError):  # unlimited, or no control group
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        candidates.append(limit - int((group / "memory.current").read_text()))
    return max(0, min(candidates))


def _available_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30  # a cautious guess where the system does not say


def _mb(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB" if number >= 2**20 else f"{number / 2**10:,.0f} KiB"
