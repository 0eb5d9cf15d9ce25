"""The library of negative prompts: what it holds, how it fills slots, and that its page is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiller.core.errors import InvalidInput
from tiller.words import library_slots, negative_library

PAGE = Path(__file__).parents[2] / "docs" / "negatives.md"
ENTRIES = [entry for group in negative_library() for entry in group.entries]


def test_about_two_hundred_short_entries_each_once() -> None:
    assert 180 <= len(ENTRIES) <= 220
    assert len({entry.lower() for entry in ENTRIES}) == len(ENTRIES)
    assert len(negative_library()) >= 10
    for entry in ENTRIES:
        assert entry == entry.strip().lower()
        assert entry.isprintable()
        assert "," not in entry  # commas join entries
        assert 1 <= len(entry.split()) <= 6


def test_the_page_lists_the_library() -> None:
    listed = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    assert listed == [
        f"| `{group.name}` | {group.about} | {', '.join(group.entries)} |"
        for group in negative_library()
    ], "copy the expected lines into docs/negatives.md"
    assert f"{len(ENTRIES)} entries in {len(negative_library())} groups" in PAGE.read_text()


@pytest.mark.parametrize("count", [1, 2, 4, 14])
def test_slots_deal_out_whole_groups(count: int) -> None:
    slots = library_slots(count)
    assert len(slots) == count
    assert sorted(entry for slot in slots for entry in slot) == sorted(ENTRIES)
    for group in negative_library():
        assert sum(not set(slot).isdisjoint(group.entries) for slot in slots) == 1
    if count <= 4:
        assert max(map(len, slots)) - min(map(len, slots)) <= 18  # the largest group


def test_slots_of_some_groups() -> None:
    (slot,) = library_slots(1, groups=["blur"])
    assert "blurry" in slot
    assert set(slot) < set(ENTRIES)


def test_no_slots() -> None:
    assert library_slots(0) == ()


@pytest.mark.parametrize(
    ("count", "groups"), [(-1, None), (99, None), (2, ["blur"]), (1, ["blurr"])]
)
def test_slots_that_cannot_be_filled_are_refused(count: int, groups: list[str] | None) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        library_slots(count, groups=groups)


def test_the_users_entries_and_vetoes() -> None:
    slots = library_slots(2, veto={"blurry"}, add=["double exposure", "watermark"])
    texts = [entry for slot in slots for entry in slot]
    assert "blurry" not in texts
    assert texts.count("watermark") == 1
    assert slots[0][0] == "double exposure"
