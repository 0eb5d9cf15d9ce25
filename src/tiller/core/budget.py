"""Budgets and the cost meter.

The units (one image = one candidate drawn completely):

- `steps`: rounds of the loop (one ask, one evaluate, one tell),
- `images`: candidates drawn to a decoded image,
- `forwards`: denoiser forwards, summed over images; guidance counts double,
- `backwards`: denoiser vector-Jacobian products, counted in the same way,
- `recomputes`: forwards done a second time to save memory (see `models.checkpointing`); kept apart
  so that a result's cost does not depend on how much memory the machine had,
- `reward_calls`: images scored, `tokens`: LLM tokens, `seconds`: wall time inside the loop.

Source: section 4 of the design; the equal-cost argument is the one made for DPO-Diff's figure 3,
except that a gradient step is billed as the forwards and backwards it makes.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace

from tiller.core.errors import InvalidInput
from tiller.core.settings import meant


@dataclass(frozen=True)
class Cost:
    """What a search has used so far. Costs add with `+`; peaks take the maximum.

    Example:
        >>> (Cost(steps=1, forwards=40) + Cost(steps=1, forwards=40)).forwards
        80
    """

    steps: int = 0
    images: int = 0
    forwards: int = 0
    backwards: int = 0
    recomputes: int = 0
    reward_calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)}
        summed["peak_memory_bytes"] = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Cost(**summed)

    def __sub__(self, other: Cost) -> Cost:
        """The cost since `other`; the peak stays that of the whole."""
        left = {f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(Cost)}
        left["peak_memory_bytes"] = self.peak_memory_bytes
        return Cost(**left)

    @property
    def model_calls(self) -> int:
        """Forwards plus backwards: the unit in which methods are compared at equal cost."""
        return self.forwards + self.backwards


@dataclass(frozen=True)
class Budget:
    """When to stop: at the first limit reached. An unset limit (None) does not bind.

    A round is never started once a limit is reached, and of a solver whose rounds can be divided
    (best of n) no more candidates are tried than `images` and `forwards` leave: such a search ends
    on its budget or less than a candidate below it, any other at most one round above.

    Args:
        steps: rounds.
        images: full generations, and estimates of them that are scored.
        forwards: denoiser forwards, summed over images, guidance counting double.
        seconds: wall time.

    Raises:
        InvalidInput: no limit is set, or one is not positive.

    Example:
        >>> Budget.parse("steps=30,images=64").steps
        30
    """

    steps: int | None = None
    images: int | None = None
    forwards: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        limits = {f.name: getattr(self, f.name) for f in fields(self)}
        if all(value is None for value in limits.values()):
            names = ", ".join(limits)
            raise InvalidInput(f"a budget needs at least one limit of {names}; got none")
        for name, value in limits.items():
            whole = name != "seconds"
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "a whole number" if whole else "a number"
                raise InvalidInput(f"budget {name} must be {kind}, got {value!r}")
            if not 0 < value < float("inf"):
                raise InvalidInput(f"budget {name} must be positive and finite, got {value!r}")

    @classmethod
    def of(cls, given: Budget | str) -> Budget:
        """A budget, or the one that a text says.

        Raises:
            InvalidInput: it is neither, or the text cannot be read.
        """
        if isinstance(given, str):
            return cls.parse(given)
        if not isinstance(given, Budget):
            raise InvalidInput(
                f"expected a budget like 'steps=30,images=64', as text or a Budget; got {given!r}"
            )
        return given

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `"steps=30,images=64,forwards=4000,seconds=60"`."""
        limits: dict[str, int | float] = {}
        allowed = [f.name for f in fields(cls)]
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in allowed or not value:
                raise InvalidInput(
                    f"expected a budget like 'steps=30,images=64' with {', '.join(allowed)}; "
                    f"got {part!r}.{meant(name, allowed)}"
                )
            if name in limits:
                raise InvalidInput(f"budget {name} was given twice, in {text!r}; give it once")
            kind, called = (float, "a number") if name == "seconds" else (int, "a whole number")
            try:
                limits[name] = kind(value)
            except ValueError:
                raise InvalidInput(f"budget {name} must be {called}, got {value!r}") from None
        return cls(**limits)  # type: ignore[arg-type]  # names and kinds were checked above

    def __str__(self) -> str:
        limits = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ",".join(f"{name}={_plain(value)}" for name, value in limits if value is not None)

    def reached(self, cost: Cost) -> str | None:
        """The reason to stop at `cost`, or None."""
        for f in fields(self):
            limit = getattr(self, f.name)
            if limit is not None and getattr(cost, f.name) >= limit:
                return f"budget: {f.name}={_plain(limit)}"
        return None

    def fraction(self, cost: Cost) -> float:
        """How much of the budget is used, 0 to 1: the largest share over its limits."""
        shares: list[float] = [
            getattr(cost, f.name) / getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) is not None
        ]
        return min(1.0, max(shares))

    def share(self, part: float) -> Budget:
        """The budget with every limit multiplied by `part`, at least one unit each."""
        scaled: dict[str, float] = {}
        for f in fields(self):
            limit = getattr(self, f.name)
            if limit is not None:
                scaled[f.name] = (
                    limit * part if f.name == "seconds" else max(1, round(limit * part))
                )
        return Budget(**scaled)  # type: ignore[arg-type]  # whole numbers by round()


def _plain(value: int | float) -> str:
    """All digits, so that `Budget.parse` reads it back: 1000000, 2.5, 60."""
    return repr(value).removesuffix(".0")


@dataclass
class Meter:
    """Counts what happens while it is active; see `metered` and `count`."""

    cost: Cost = field(default_factory=Cost)


_active: ContextVar[Meter | None] = ContextVar("tiller_meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Count everything done inside the block, wall time and peak memory included.

    What a block inside another counts, the outer one counts too.
    """
    meter, outer = Meter(), _active.get()
    token = _active.set(meter)
    started = time.perf_counter()
    try:
        yield meter
    finally:
        _active.reset(token)
        if outer is not None:  # its own clock covers the seconds
            outer.cost = outer.cost + meter.cost
        meter.cost = replace(
            meter.cost,
            seconds=meter.cost.seconds + time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(),
        )


def count(**amounts: int) -> None:
    """Add to the active meter: `count(forwards=2, images=1)`. Without a meter, do nothing."""
    meter = _active.get()
    if meter is not None:
        meter.cost = meter.cost + Cost(**amounts)


def peak_memory_bytes() -> int:
    """The process's peak: what the accelerator allocated where there is one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
