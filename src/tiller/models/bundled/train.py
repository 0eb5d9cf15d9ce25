"""The one training loop: autocast, warmup and decay, clipping, averaged weights, checkpoints.

Every random draw of a step comes from a CPU generator keyed by (seed, step), and every example is
addressed by its index: on a CPU a run that is killed and started again repeats the uninterrupted
one exactly, and on any device the data are the same. Checkpoints are safetensors, written beside
and renamed; one that a GPU wrote goes on on a CPU and the other way round.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tiller.core.errors import TillerError

from .advance import Advance, Batch, Loss
from .muon import Muon

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """What one stage learns, in the three parts that run in different places."""

    draw: Callable[[int], Arrays]
    """step -> the examples: on the CPU, where there are cores ahead of time in other processes."""
    prepare: Callable[[Batch, torch.Generator], Batch]
    """(examples, the step's randomness) -> what the loss takes: on the device, no gradients."""
    loss: Loss
    """(model, batch) -> named terms; "loss" is descended. A GPU replays it as a graph: its shapes
    are the same in every step there, it looks at no value and moves nothing between devices."""


@dataclass(frozen=True)
class Machine:
    """Where a stage runs, and how."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0  # processes that draw examples ahead; 0: drawn when they are needed
    graph: bool = True  # replay a GPU's steps as one graph
    until: float = math.inf  # on time.monotonic(): when to end, with fewer steps if need be

    @property
    def name(self) -> str:
        """What the model card calls it."""
        cuda = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if cuda else "CPU"


CPU = Machine()


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


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; a copy to a GPU does not wait for the work that is queued there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fit(
    name: str, model: nn.Module, task: Task, plan: Plan, work: Path, *, machine: Machine = CPU
) -> nn.Module:
    """Train `model` in place under the plan, from its checkpoint `work/name.safetensors` if any.

    Returns the model with the averaged weights if the plan keeps them, in evaluation mode, on the
    CPU. If the plan's steps do not fit before `machine.until`, the rate falls with the time that is
    left, and the training ends then.
    """
    path = work / f"{name}.safetensors"
    work.mkdir(parents=True, exist_ok=True)
    device = machine.device
    model.to(device)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(params, plan, capturable=device.type == "cuda" and machine.graph)
    average = [p.detach().clone() for p in params] if plan.ema else []
    done = _restore(path, model, optimizer, average) if path.exists() else Progress()
    step = done.step
    model.train()
    advance = Advance(name, model, task.loss, optimizer, clip=plan.clip, bf16=plan.bf16)
    log = _Log(name, plan)
    begun = saved = time.monotonic()
    with advance.stream():
        for arrays in drawn_ahead(task.draw, range(step, plan.steps), machine.workers):
            gone = (time.monotonic() - begun) / max(1e-9, machine.until - begun)  # of the time
            _set_rate(optimizer, plan.rate(max(step, int(min(1.0, gone) * plan.steps))))
            with torch.no_grad(), advance.autocast():
                batch = {k: moved(torch.from_numpy(v), device) for k, v in arrays.items()}
                batch = task.prepare(batch, generator(plan.seed, step))
            terms = advance(batch)
            step += 1
            if plan.ema:
                # a young average forgets its random start faster
                weight = 1.0 - min(plan.ema, (1.0 + step) / (10.0 + step))
                torch._foreach_lerp_(average, [p.detach() for p in params], weight)
            last = step == plan.steps or gone >= 1.0
            save = last or time.monotonic() - saved > plan.save_seconds
            if save or device.type == "cpu" or step % plan.log_every == 0:
                _check(terms["grad"], name, step, path)  # a look at a value waits for the GPU
            log.add(step, terms, last)
            if save:
                saved = time.monotonic()
                now = Progress(step, round(done.seconds + saved - begun, 1), machine.name)
                _save(path, model, optimizer, average, now)
            if last:
                break
        if plan.ema:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in params], average)
        return model.to("cpu").eval()


def _check(norm: Tensor, name: str, step: int, path: Path) -> None:
    if not torch.isfinite(norm):
        raise TillerError(
            f"expected finite gradients, got a norm of {float(norm)} in step {step} of {name}; "
            f"{path} is the last good state: try a smaller learning rate"
        )


def _optimizer(
    params: list[nn.Parameter], plan: Plan, *, capturable: bool
) -> torch.optim.Optimizer:
    # a graph reads the rate from the device, where every step writes it
    lr = torch.tensor(plan.lr, device=params[0].device) if capturable else plan.lr
    common: dict[str, Any] = {"betas": plan.betas, "weight_decay": plan.weight_decay}
    if plan.muon:
        return Muon(params, lr, capturable=capturable, **common)
    return torch.optim.AdamW(params, lr, fused=True, capturable=capturable, **common)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class _Draws(Dataset[Arrays]):
    """The examples of each step, for the loader."""

    def __init__(self, draw: Callable[[int], Arrays]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> Arrays:
        return self.draw(step)


def drawn_ahead(draw: Callable[[int], Arrays], steps: range, workers: int) -> Iterable[Arrays]:
    """`draw` of each step in turn, by so many processes that work ahead, or by this one."""
    if not workers or not steps:
        return map(draw, steps)
    # arrays, not tensors: those travel through shared memory, of which containers have little
    return DataLoader(
        _Draws(draw), sampler=steps, batch_size=None, collate_fn=_unchanged, num_workers=workers,
        prefetch_factor=4, multiprocessing_context="fork", generator=torch.Generator(),
    )  # fmt: skip


def _unchanged(arrays: Any) -> Any:
    return arrays


def write_atomically(tensors: dict[str, Tensor], path: Path, note: dict[str, str]) -> None:
    """Save safetensors beside `path`, then rename: the file is the old one or the new one."""
    beside = path.with_name(path.name + ".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(beside), metadata=note)
    beside.replace(path)


@dataclass(frozen=True)
class Progress:
    """What a checkpoint says about itself."""

    step: int = 0
    seconds: float = 0.0  # that all steps took together; 0 in checkpoints of older versions
    device: str = "CPU"  # of the latest steps


def progress(path: Path) -> Progress:
    """How far the training is that wrote this checkpoint."""
    with safe_open(str(path), framework="pt") as file:
        return Progress(**json.loads(file.metadata()["tiller"]))


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
    return progress(path).step


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
    now: Progress,
) -> None:
    tensors = {f"model.{k}": v.detach() for k, v in model.state_dict().items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(average)}
    for i, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{i}.{k}": v for k, v in slots.items()}
    # Copies: tied weights would share storage, which the format refuses.
    tensors = {k: v.to("cpu", copy=True) for k, v in tensors.items()}
    write_atomically(tensors, path, {"tiller": json.dumps(asdict(now))})


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]
) -> Progress:
    with safe_open(str(path), framework="pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  # no dict
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
    return progress(path)


class _Log:
    """One line every so often: means of the terms since the last line, speed, time left."""

    def __init__(self, name: str, plan: Plan) -> None:
        self.name, self.plan = name, plan
        self.sums: Batch = {}
        self.count, self.since = 0, time.monotonic()

    def add(self, step: int, terms: Batch, last: bool) -> None:
        for key, value in terms.items():  # summed on the device: to read them is to wait for it
            self.sums[key] = value.float() + self.sums.get(key, 0.0)
        self.count += 1
        if step % self.plan.log_every and not last:
            return
        means = " ".join(f"{k} {float(v) / self.count:.4f}" for k, v in self.sums.items())
        pace = (time.monotonic() - self.since) / self.count
        left = (self.plan.steps - step) * pace / 60
        print(
            f"{time.strftime('%H:%M:%S')} {self.name} {step}/{self.plan.steps} {means} "
            f"{pace * 1e3:.1f} ms/step {left:.1f} min left",
            flush=True,
        )
        self.sums, self.count, self.since = {}, 0, time.monotonic()
