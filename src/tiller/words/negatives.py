"""The library of generic negative prompts (the NPLib of DPO-Diff), in our own words.

About 200 short things that no picture should be, in groups (`negatives.json`). They stand in slots:
each slot takes whole groups, so that no entry is in two slots and the slots say different things.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff), section
4.2.2: a library of human-made negative prompts beside the antonyms. Theirs was not copied.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tiller.core.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Group:
    """Negative prompts about one thing."""

    name: str
    about: str
    entries: tuple[str, ...]


@cache
def negative_library() -> tuple[Group, ...]:
    """All groups, in the file's order.

    Example:
        >>> [group.name for group in negative_library()][:3]
        ['anatomy', 'face', 'blur']
    """
    file = resources.files("tiller.words") / "negatives.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    return tuple(Group(g["name"], g["about"], tuple(g["entries"])) for g in tree["groups"])


def library_slots(
    count: int,
    *,
    groups: Sequence[str] | None = None,
    veto: Collection[str] = (),
    add: Sequence[str] = (),
) -> tuple[tuple[str, ...], ...]:
    """The library dealt into `count` slots of about equal size, each of whole groups.

    Args:
        count: slots; 0 for none.
        groups: names of the groups to use; all by default.
        veto: lower-case entries to leave out.
        add: the user's own entries; they go to the first slot, at the front.

    Raises:
        InvalidInput: an unknown group, or not 0 <= count <= groups.

    Example:
        >>> [len(slot) for slot in library_slots(4)]
        [46, 46, 56, 56]
    """
    known = {group.name: group for group in negative_library()}
    names = list(known if groups is None else dict.fromkeys(groups))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInput(
            f"expected groups of {', '.join(known)}, got {unknown[0]!r}; see docs/negatives.md"
        )
    if not 0 <= count <= len(names):
        raise InvalidInput(
            f"expected 0 to {len(names)} slots of the library, one group at least for each, got "
            f"{count}; --set library=4 is the default"
        )
    if not count:
        return ()
    slots: list[list[str]] = [[] for _ in range(count)]
    kept = [[e for e in known[name].entries if e.lower() not in veto] for name in names]
    for entries in sorted(kept, key=len, reverse=True):  # largest first, to the smallest slot
        min(slots, key=len).extend(entries)
    slots[0][:0] = [text for text in dict.fromkeys(add) if all(text not in slot for slot in slots)]
    return tuple(tuple(slot) for slot in slots)
