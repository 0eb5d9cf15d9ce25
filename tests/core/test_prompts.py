"""Files of prompts: marks, blank lines and comments left out, what cannot be read said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiller.core.errors import InvalidInput, TillerNotice
from tiller.core.prompts import prompts_in


def test_prompts_are_read_from_a_file(tmp_path: Path) -> None:
    marked = tmp_path / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbfa dog\r\n\r\nan owl\r\n")
    assert prompts_in(str(marked)) == ["a dog", "an owl"]
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert prompts_in(str(file)) == ["a cat", "a dog"]
    for content, message in ((b"\n \n", "found none"), (b"\xff\xfe", "not text in UTF-8")):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match=message):
            prompts_in(str(file))
    with pytest.raises(InvalidInput, match="No such file"):
        prompts_in(str(tmp_path / "none.txt"))


def test_comments_are_left_out_with_a_notice(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# cats\na cat\n#a dog\n", encoding="utf-8")
    with pytest.warns(TillerNotice, match="left out 2 lines"):
        assert prompts_in(file) == ["a cat"]
