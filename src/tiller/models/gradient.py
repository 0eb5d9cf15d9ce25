"""Which steps of a trajectory carry a gradient."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tiller.core.errors import InvalidInput

Mode = Literal["none", "full", "last", "shortcut"]


@dataclass(frozen=True)
class Window:
    """Steps [0, stop) are run, those from `start` on with a graph.

    With `closed_form` the last of them ends on its x0 estimate instead of the scheduler's step.
    """

    start: int
    stop: int
    closed_form: bool

    @property
    def steps(self) -> int:
        """How many steps carry a graph."""
        return self.stop - self.start


@dataclass(frozen=True)
class Gradient:
    """The gradient mode of one trajectory of T steps.

    - `none()`: no graph at all.
    - `full()`: the exact gradient, through every step (DNO, arXiv 2405.18881).
    - `last(k)`: through the last k steps; what comes before is a constant (DRaFT-K, arXiv
      2309.17400, section 3.2; IPGO).
    - `shortcut(t, k)`: steps 0 to t - 1 are constants, the k steps t to t + k - 1 carry the
      gradient, the last of them ends on the closed form x0 = (x_t - sigma_t eps) / alpha_t, and
      the trajectory stops there (DPO-Diff, arXiv 2407.01606, section 4.3). t + k denoiser calls.

    A step is one of the scheduler's timesteps; PNDM has more of them than `num_inference_steps`.

    Example:
        >>> Gradient.parse("shortcut(15, 1)") == Gradient.shortcut(15, 1)
        True
        >>> str(Gradient.last(2))
        'last(2)'
    """

    mode: Mode = "none"
    k: int = 0
    t: int = 0

    @classmethod
    def none(cls) -> Gradient:
        """No graph."""
        return cls()

    @classmethod
    def full(cls) -> Gradient:
        """Through every step."""
        return cls("full")

    @classmethod
    def last(cls, k: int) -> Gradient:
        """Through the last `k` steps."""
        return cls("last", k=k)

    @classmethod
    def shortcut(cls, t: int, k: int = 1) -> Gradient:
        """Through `k` steps from step index `t` on, then x0 in closed form."""
        return cls("shortcut", k=k, t=t)

    @classmethod
    def parse(cls, text: str) -> Gradient:
        """Read what `str` writes: `none`, `full`, `last(3)` or `shortcut(25, 1)`."""
        found = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?\s*", text)
        name, first, second = found.groups() if found else ("", None, None)
        if name == "none" and first is None:
            return cls.none()
        if name == "full" and first is None:
            return cls.full()
        if name == "last" and first is not None and second is None:
            return cls.last(int(first))
        if name == "shortcut" and first is not None:
            return cls.shortcut(int(first), int(second or 1))
        raise InvalidInput(
            f"expected a gradient mode: none, full, last(K) or shortcut(t, K); got {text!r}"
        )

    def __str__(self) -> str:
        if self.mode == "last":
            return f"last({self.k})"
        return f"shortcut({self.t}, {self.k})" if self.mode == "shortcut" else self.mode

    def window(self, steps: int) -> Window:
        """Where the gradient runs in a trajectory of `steps` steps.

        Raises:
            InvalidInput: the mode reaches beyond the trajectory.
        """
        if self.mode == "none":
            return Window(steps, steps, closed_form=False)
        if self.mode == "full":
            return Window(0, steps, closed_form=False)
        if self.mode == "last":
            if not 1 <= self.k <= steps:
                raise InvalidInput(f"last(K) needs 1 <= K <= {steps} steps, got {self}")
            return Window(steps - self.k, steps, closed_form=False)
        if self.mode == "shortcut":
            if not (self.t >= 0 and self.k >= 1 and self.t + self.k <= steps):
                raise InvalidInput(
                    f"shortcut(t, K) needs t >= 0, K >= 1 and t + K <= {steps} steps, got {self}"
                )
            return Window(self.t, self.t + self.k, closed_form=True)
        raise InvalidInput(f"unknown gradient mode {self.mode!r}; expected none, full, last(K) or "
                           "shortcut(t, K)")  # fmt: skip
