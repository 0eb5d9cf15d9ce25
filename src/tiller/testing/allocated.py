"""How much memory a computation takes, counted by the tensors that it makes; on every device."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no types
    """The most bytes that tensors made under it held at one time.

    An allocator takes more: what it keeps for later, and what a library needs within a call.

    Attributes:
        peak: those bytes.

    Example:
        >>> with Allocated() as allocated:
        ...     _ = torch.zeros(1000) + 1
        >>> allocated.peak
        8000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.peak = self._now = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._now -= self._held.pop(key)
