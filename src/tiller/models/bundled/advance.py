"""One step of training on a batch that is drawn: forward, backward, clipping, update.

A model as small as these leaves a GPU waiting for the launches of some two thousand kernels a step.
So on CUDA the step is recorded once as a graph and then replayed by a single launch. Where it
cannot be recorded, steps go on one kernel at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], dict[str, Tensor]]
EAGER = 3  # steps before the recording: libraries and optimizers allocate what they keep


def autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """bfloat16 where the device computes in it: a CPU that has to emulate it is 17 times slower."""
    native = device.type != "cpu" or any(
        there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and native)


class Advance:
    """Called with a batch, it trains `model` by one step and returns the loss's terms and "grad".

    The terms are detached; "grad" is the gradient's norm before clipping. All work, the caller's
    too, has to be done inside `stream`: a recording sees one stream only. The optimizer has to be
    `capturable` for a recording.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float,
        bf16: bool,
    ) -> None:
        self.name, self.model, self.loss, self.optimizer = name, model, loss, optimizer
        self.clip, self.bf16 = clip, bf16
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.params[0].device
        self._wanted = self.device.type == "cuda" and optimizer.param_groups[0]["capturable"]
        self._seen = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Batch = {}
        self._terms: Batch = {}

    def stream(self) -> AbstractContextManager[object]:
        """The stream that everything runs on; nothing on a CPU."""
        if self.device.type != "cuda":
            return nullcontext()
        torch.cuda.synchronize(self.device)
        own = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # of torch
        return torch.cuda.stream(own)

    def autocast(self) -> AbstractContextManager[object]:
        """Half precision where the plan wants it, and the device has it."""
        return autocast(self.device, self.bf16)

    def __call__(self, batch: Batch) -> Batch:
        """See the class."""
        self._seen += 1
        if self._wanted and self._seen > EAGER:
            self._wanted = False
            self._record(batch)
        if self._graph is None:
            return self._step(batch)
        for name, value in batch.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        return self._terms

    def _step(self, batch: Batch) -> Batch:
        with self.autocast():
            terms = self.loss(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]  # of torch
        norm = nn.utils.clip_grad_norm_(self.params, self.clip)
        self.optimizer.step()
        return {**{name: term.detach() for name, term in terms.items()}, "grad": norm}

    def _record(self, batch: Batch) -> None:
        """Record the step as a graph; recording runs nothing, so no state moves."""
        graph = torch.cuda.CUDAGraph()
        inputs = {name: value.clone() for name, value in batch.items()}
        try:
            # other threads and processes may allocate meanwhile
            with torch.cuda.graph(
                graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
            ):
                terms = self._step(inputs)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            print(f"{self.name}: no CUDA graph, one kernel at a time ({reason})", flush=True)
            self.optimizer.zero_grad(set_to_none=True)
            return
        self._graph, self._inputs, self._terms = graph, inputs, terms
        print(f"{self.name}: steps replayed as one CUDA graph", flush=True)
