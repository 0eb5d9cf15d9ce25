"""Reading a run's spec: plain data that `steer` writes and that reports, exports and PNGs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flattened(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with the sampler's settings beside the rest, and the method by its name.

    Example:
        >>> flattened({"method": {"name": "dno", "settings": {}}, "sampler": {"eta": 1.0}})
        {'method': 'dno', 'eta': 1.0}
    """
    flat = {name: value for name, value in spec.items() if name != "sampler"}
    flat |= spec.get("sampler") or {}
    if isinstance(flat.get("method"), Mapping):
        flat["method"] = flat["method"].get("name", "")
    return flat


def texts(value: Any) -> list[str]:
    """A text or a list of them, as a list; None is none."""
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]
