"""The journal: durable lines, a torn last one tolerated, any other damage named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiller.core.errors import RunError
from tiller.runs.journal import Journal


def filled(folder, steps=3):
    journal = Journal(folder / "journal.jsonl")
    for step in range(1, steps + 1):
        journal.append({"kind": "step", "step": step})
    journal.close()
    return journal


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Any text at all: control characters, emoji, halves of them.
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(entries=st.lists(st.dictionaries(st.text(), plain, max_size=3), max_size=4))
def test_what_is_appended_is_read(tmp_path_factory, entries):
    journal = Journal(tmp_path_factory.mktemp("j") / "journal.jsonl")
    for entry in entries:
        journal.append(entry)
    journal.close()
    assert journal.read() == entries
    if entries:
        lines = journal.path.read_bytes().split(b"\n")
        assert len(lines) == len(entries) + 1
        assert lines[-1] == b""


def test_no_file_is_an_empty_journal(tmp_path):
    assert Journal(tmp_path / "journal.jsonl").read() == []


def test_a_journal_torn_at_any_byte_reads_its_whole_lines_and_goes_on(tmp_path):
    whole = filled(tmp_path).path.read_bytes()
    for size in range(len(whole) + 1):
        journal = Journal(tmp_path / "journal.jsonl")
        journal.path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        assert [e["step"] for e in journal.read()] == list(range(1, lines + 1))
        notice = journal.repair()
        assert (notice is not None) == (size > 0 and whole[size - 1 : size] != b"\n")
        journal.append({"kind": "step", "step": 99})
        journal.close()
        assert [e["step"] for e in journal.read()] == [*range(1, lines + 1), 99]


def test_a_last_line_of_zeros_is_torn(tmp_path):
    """What some file systems leave after a power cut."""
    journal = filled(tmp_path)
    with journal.path.open("ab") as file:
        file.write(b"\0\0\0\0\n")
    assert len(journal.read()) == 3
    assert "dropped" in journal.repair()
    assert len(journal.path.read_bytes().splitlines()) == 3


@pytest.mark.parametrize("damage", [b"{oops", b"[1]", b"", b"\xff\xfe", b"17"])
def test_another_damaged_line_is_named(tmp_path, damage):
    journal = filled(tmp_path)
    lines = journal.path.read_bytes().split(b"\n")
    lines[1] = damage
    journal.path.write_bytes(b"\n".join(lines))
    with pytest.raises(RunError, match=r"journal\.jsonl, line 2: expected one JSON object"):
        journal.read()


def test_rewind_drops_what_came_after_the_step(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"kind": "baseline"})
    for step in (1, 2, 3):
        journal.append({"kind": "step", "step": step})
        journal.append({"kind": "notice", "text": f"after {step}"})
    journal.rewind(2)
    assert [e.get("step") or e.get("text") for e in journal.read()] == [
        None, 1, "after 1", 2, "after 2",
    ]  # fmt: skip
    journal.append({"kind": "step", "step": 3})
    journal.rewind(7)
    assert journal.read()[-1] == {"kind": "step", "step": 3}
    journal.rewind(0)
    assert journal.read() == [{"kind": "baseline"}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, b"bytes"])
def test_what_is_no_strict_json_is_refused_and_leaves_no_trace(tmp_path, value):
    journal = filled(tmp_path)
    with pytest.raises(RunError, match="plain data"):
        journal.append({"value": value})
    assert len(journal.read()) == 3
    for line in journal.path.read_text().splitlines():
        json.loads(line)
