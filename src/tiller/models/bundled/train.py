"""The one training loop: autocast, warmup and decay, clipping, averaged weights, checkpoints.

Every random draw of a step comes from a generator keyed by (seed, step), and every example is
addressed by its index, so a run that is killed and started again repeats the uninterrupted one
exactly. Checkpoints are safetensors, written beside and renamed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tiller.core.errors import TillerError

from .muon import Muon

Loss = Callable[[nn.Module, int, torch.Generator], dict[str, Tensor]]
"""(model, step, generator) -> named terms; the sum to descend is the term "loss"."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast one stage trains."""

    steps: int
    lr: float
    warmup: int = 100
    decay: float = 0.35  # last fraction of the steps, over which the rate falls to lr / 50
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    seed: int = 0
    bf16: bool = True
    muon: bool = False  # Muon for the matrices instead of AdamW
    save_seconds: float = 120.0
    log_every: int = 50

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warmup, constant, then half a cosine."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        start = self.steps * (1.0 - self.decay)
        done = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return self.lr * warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one training step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def fit(name: str, model: nn.Module, loss: Loss, plan: Plan, work: Path) -> nn.Module:
    """Train `model` in place under the plan, from its checkpoint `work/name.safetensors` if any.

    Returns the model with the averaged weights if the plan keeps them, in evaluation mode.
    """
    path = work / f"{name}.safetensors"
    work.mkdir(parents=True, exist_ok=True)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(params, plan)
    average = [p.detach().clone() for p in params] if plan.ema else []
    step = _restore(path, model, optimizer, average) if path.exists() else 0
    model.train()
    clock = _Log(name, plan, step)
    saved = time.monotonic()
    while step < plan.steps:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            terms = loss(model, step, generator(plan.seed, step))
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]  # of torch
        norm = nn.utils.clip_grad_norm_(params, plan.clip)
        if not torch.isfinite(norm):
            raise TillerError(
                f"expected finite gradients, got a norm of {float(norm)} in step {step} of {name}; "
                f"{path} is the last good state: try a smaller learning rate"
            )
        optimizer.step()
        step += 1
        if plan.ema:
            # a young average forgets its random start faster
            weight = 1.0 - min(plan.ema, (1.0 + step) / (10.0 + step))
            torch._foreach_lerp_(average, [p.detach() for p in params], weight)
        clock.add(step, terms, norm)
        if step == plan.steps or time.monotonic() - saved > plan.save_seconds:
            _save(path, model, optimizer, average, step)
            saved = time.monotonic()
    if plan.ema:
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in params], average)
    return model.eval()


def _optimizer(params: list[nn.Parameter], plan: Plan) -> torch.optim.Optimizer:
    if plan.muon:
        return Muon(params, plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
    return torch.optim.AdamW(
        params, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay, fused=True
    )


def write_atomically(tensors: dict[str, Tensor], path: Path, note: dict[str, str]) -> None:
    """Save safetensors beside `path`, then rename: the file is the old one or the new one."""
    beside = path.with_name(path.name + ".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(beside), metadata=note)
    beside.replace(path)


def steps_done(path: Path) -> int:
    """The step that a checkpoint was written after."""
    with safe_open(str(path), framework="pt") as file:
        return int(json.loads(file.metadata()["tiller"])["step"])


def averaged(path: Path, model: nn.Module) -> int:
    """Load a checkpoint's averaged weights (or its weights) into the model; its step."""
    with safe_open(str(path), framework="pt") as file:
        keys = set(file.keys())
        state = {k[6:]: file.get_tensor(k) for k in keys if k.startswith("model.")}
        model.load_state_dict(state)
        trained = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            for i, p in enumerate(trained):
                if f"ema.{i}" in keys:
                    p.copy_(file.get_tensor(f"ema.{i}"))
    return steps_done(path)


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor], step: int
) -> None:
    tensors = {f"model.{k}": v.detach() for k, v in model.state_dict().items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(average)}
    for i, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{i}.{k}": v for k, v in slots.items()}
    # Copies: tied weights would share storage, which the format refuses.
    tensors = {k: v.clone() for k, v in tensors.items()}
    write_atomically(tensors, path, {"tiller": json.dumps({"step": step})})


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]
) -> int:
    with safe_open(str(path), framework="pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  # no dict
        step = int(json.loads(file.metadata()["tiller"])["step"])
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for i, value in enumerate(average):
        value.copy_(tensors[f"ema.{i}"])
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optim."):
            _, i, slot = key.split(".")
            slots.setdefault(int(i), {})[slot] = value
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})
    return step


class _Log:
    """One line every so often: means of the terms since the last line, speed, time left."""

    def __init__(self, name: str, plan: Plan, step: int) -> None:
        self.name, self.plan, self.first = name, plan, step
        self.sums: dict[str, float] = {}
        self.count, self.since = 0, time.monotonic()

    def add(self, step: int, terms: dict[str, Tensor], norm: Tensor) -> None:
        for key, value in (*terms.items(), ("grad", norm)):
            self.sums[key] = self.sums.get(key, 0.0) + float(value.detach())
        self.count += 1
        if step % self.plan.log_every and step != self.plan.steps:
            return
        pace = (time.monotonic() - self.since) / self.count
        means = " ".join(f"{k} {v / self.count:.4f}" for k, v in self.sums.items())
        left = (self.plan.steps - step) * pace / 60
        print(
            f"{time.strftime('%H:%M:%S')} {self.name} {step}/{self.plan.steps} {means} "
            f"{pace * 1e3:.0f} ms/step {left:.1f} min left",
            flush=True,
        )
        self.sums, self.count, self.since = {}, 0, time.monotonic()
