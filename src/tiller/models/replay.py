"""Denoiser calls recorded once as CUDA graphs, and replayed by one launch each.

A GPU waits for Python on small batches: a UNet's call is about a thousand kernels, of which each
takes less time than its launch. Weights are frozen and shapes repeat, so a call and its pullback
(the gradient of <grad, f(x)> to the inputs, which runs f again) are recorded the second time that a
shape comes, and from then on copied in, replayed and copied out. Rows are rounded up, so that
populations of similar sizes share a recording. Where nothing can be recorded, calls go on as
before, one kernel at a time.
"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import TillerNotice
from tiller.models.guidance import Denoiser

MOST = 16  # recordings that are kept; the one unused for longest goes
WARM = 2  # calls before a recording: libraries choose their kernels and workspaces
Recorder = Callable[[Callable[[], Sequence[Tensor]], Any], tuple[Callable[[], None], list[Tensor]]]
"""(function, memory pool) -> (replay, the tensors that a replay fills)."""


def record(
    function: Callable[[], Sequence[Tensor]], pool: Any
) -> tuple[Callable[[], None], list[Tensor]]:
    """Record what `function` launches as one CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # of torch
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # other threads may allocate meanwhile: autograd's do
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = list(function())
    return graph.replay, out


class Recording:
    """One denoiser at one shape: its call, and its pullback to the inputs that want a gradient.

    Results are copied out, so that recordings can share their memory.
    """

    def __init__(self, denoiser: Denoiser, rows: int, shape: Sequence[int], t: Tensor) -> None:
        branches, like = denoiser.branches, denoiser.inputs
        self._denoiser, self._rows = denoiser, rows
        self._t = t.clone()
        self._latents = torch.zeros(rows, *shape, dtype=denoiser.model.dtype, device=t.device)
        self._inputs = [v.new_zeros(branches * rows, *v.shape[1:]) for v in like]
        self._grad = torch.zeros_like(self._latents)
        self._forward: Callable[[], None] = lambda: None
        self._pull: Callable[[], None] = lambda: None
        self._out: list[Tensor] = []
        self._grads: list[Tensor] = []
        self._wanted: tuple[bool, ...] = ()
        self.faster = False

    def record(self, recorder: Recorder, pool: Any, wanted: tuple[bool, ...] | None) -> None:
        """Record the call and, but for None, its pullback to latents and the `wanted` inputs."""
        with torch.no_grad():
            self._forward, self._out = recorder(
                lambda: [self._denoiser(self._latents, self._t, *self._inputs)], pool
            )
        if wanted is None:
            return
        self._wanted = wanted
        with torch.enable_grad():
            eager = _seconds(self._pulled)  # before the recording, which holds as much memory
            self._pull, self._grads = recorder(self._pulled, pool)
        self.faster = _seconds(self._forward, self._pull) <= eager

    def _pulled(self) -> Sequence[Tensor]:
        leaves = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(self._inputs, self._wanted, strict=True)
        ]
        latents = self._latents.detach().requires_grad_()
        out = self._denoiser(latents, self._t, *leaves)
        return torch.autograd.grad(
            out, [latents, *(v for v in leaves if v.requires_grad)], self._grad
        )

    def call(self, latents: Tensor, t: Tensor, *inputs: Tensor) -> Tensor:
        """The guided prediction [n, C, h, w], without a graph."""
        self._feed(latents, t, inputs)
        self._forward()
        return self._out[0][: len(latents)].clone()

    def pull(
        self, latents: Tensor, t: Tensor, inputs: Sequence[Tensor], grad: Tensor
    ) -> list[Tensor | None]:
        """d <grad, call> / d of the latents and each of the inputs; None where none is wanted."""
        n = len(latents)
        self._feed(latents, t, inputs)
        self._grad[:n].copy_(grad)
        self._pull()
        found = iter(self._grads)
        first = next(found)[:n].clone()
        return [first, *(self._out_rows(next(found), n) if w else None for w in self._wanted)]

    def _feed(self, latents: Tensor, t: Tensor, inputs: Sequence[Tensor]) -> None:
        """Copy the inputs in; the rows behind them keep what they have, and are not read out."""
        n = len(latents)
        self._latents[:n].copy_(latents)
        self._t.copy_(t)
        for own, given in zip(self._inputs, inputs, strict=True):
            rows = own.view(self._denoiser.branches, self._rows, *own.shape[1:])
            rows[:, :n].copy_(given.reshape(self._denoiser.branches, n, *own.shape[1:]))

    def _out_rows(self, grad: Tensor, n: int) -> Tensor:
        rows = grad.view(self._denoiser.branches, self._rows, *grad.shape[1:])
        return rows[:, :n].flatten(0, 1).clone()


class Replays:
    """The recordings of one model, whose `denoise` depends on its arguments alone.

    Args:
        recorder: records a function.
    """

    def __init__(self, recorder: Recorder = record) -> None:
        self._recorder = recorder
        self._pool: Any = None
        self._seen: set[Any] = set()
        self._failed: set[Any] = set()
        self._kept: OrderedDict[Any, Recording] = OrderedDict()

    def another(self) -> Replays:
        """Empty, for a copy of the model that draws with other weights."""
        return Replays(self._recorder)

    def find(
        self, denoiser: Denoiser, latents: Tensor, t: Tensor, *, graph: bool
    ) -> Recording | None:
        """The recording for latents [n, C, h, w], from the second time that one is asked for.

        Args:
            denoiser: under its conditioning, whose tensors say what wants a gradient.
            graph: whether a gradient will be asked for.
        """
        rows, shape = _rounded(len(latents)), tuple(latents.shape[1:])
        wanted = tuple(v.requires_grad for v in denoiser.inputs) if graph else None
        about = (denoiser.guidance_scale, denoiser.branches, denoiser.names, wanted)
        told = tuple(tuple(v.shape[1:]) for v in denoiser.inputs)
        key = (*about, rows, shape, told, t.dtype)  # a sampler's times may be whole numbers
        if key not in self._seen or key in self._failed:
            self._seen.add(key)
            return None
        if key not in self._kept:
            self._make(key, denoiser, rows, shape, t, wanted)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _make(
        self,
        key: Any,
        denoiser: Denoiser,
        rows: int,
        shape: tuple[int, ...],
        t: Tensor,
        wanted: tuple[bool, ...] | None,
    ) -> None:
        made = Recording(denoiser, rows, shape, t)
        try:
            if self._pool is None and t.device.type == "cuda":
                self._pool = torch.cuda.graph_pool_handle()
            # what is recorded is what the current device is given
            with torch.cuda.device_of(t):  # type: ignore[no-untyped-call]  # of torch
                made.record(self._recorder, self._pool, wanted)
        except RuntimeError as error:
            self._failed.add(key)
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            warnings.warn(
                f"denoiser calls go on one kernel at a time, no CUDA graph could be made: {reason}",
                TillerNotice,
                stacklevel=4,
            )
            return
        self._kept[key] = made
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)


def _rounded(n: int) -> int:
    """n up to 8; from there on in steps of an eighth to a quarter, so that few shapes are met."""
    step = 1 << max(0, (n - 1).bit_length() - 3)
    return -(-n // step) * step


def _seconds(*calls: Callable[[], Any]) -> float:
    """How long the calls take, one after another, the second time."""
    spent = 0.0
    for _ in range(2):
        _synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        _synchronize()
        spent = time.perf_counter() - start
    return spent


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
