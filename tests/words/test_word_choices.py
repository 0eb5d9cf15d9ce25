"""The user's file of word choices: read as documented, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiller.core.errors import InvalidInput
from tiller.words import load_choices
from tiller.words.choices import Choices, Edits, LibraryEdits, parse_choices


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(
        json.dumps(
            {
                "keep": ["Background"],
                "synonyms": {"veto": ["Pussycat"], "pin": {"Cat": ["kitty"]}},
                "antonyms": {"add": {"red": ["blue", " green "]}},
                "library": {"veto": ["Watermark"], "add": ["double exposure"]},
            }
        )
    )
    assert load_choices(path) == Choices(
        keep=frozenset({"background"}),
        synonyms=Edits(veto=frozenset({"pussycat"}), pin={"cat": ("kitty",)}),
        antonyms=Edits(add={"red": ("blue", "green")}),
        library=LibraryEdits(frozenset({"watermark"}), ("double exposure",)),
    )


def test_a_mark_at_the_files_beginning_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text('{"keep": ["cat"]}', encoding="utf-8-sig")
    assert load_choices(path).keep == {"cat"}


def test_an_empty_object_changes_nothing() -> None:
    assert parse_choices({}) == Choices()


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ([], "at w"),
        ("cat", "at w"),
        ({"keeep": []}, "'keeep'"),
        ({"keep": "cat"}, "at w: keep"),
        ({"keep": [1]}, "at w: keep"),
        ({"keep": ["  "]}, "at w: keep"),
        ({"synonyms": []}, "at w: synonyms"),
        ({"synonyms": {"vetoes": []}}, "'vetoes'"),
        ({"synonyms": {"veto": {}}}, "at w: synonyms.veto"),
        ({"antonyms": {"pin": ["cat"]}}, "at w: antonyms.pin"),
        ({"antonyms": {"pin": {"cat": "dog"}}}, "at w: antonyms.pin.cat"),
        ({"antonyms": {"add": {"cat": ["a\nb"]}}}, "at w: antonyms.add.cat"),
        ({"library": {"pin": []}}, "'pin'"),
        ({"library": {"add": [None]}}, "at w: library.add"),
    ],
)
def test_what_does_not_fit_is_named(tree: object, place: str) -> None:
    with pytest.raises(InvalidInput, match="expected") as caught:
        parse_choices(tree, "w")
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_not_json_are_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"words\.json") as caught:
        load_choices(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InvalidInput, match="cannot be read"):
            load_choices(path)
