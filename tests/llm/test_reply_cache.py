"""Replies on disk: found by the whole request, never half written, never trusted blindly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiller.core.errors import TillerNotice
from tiller.llm import Message, Reply, Request
from tiller.llm.cache import ReplyCache, default_folder

REQUEST: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": 'Ünïcode\n"quoted" 🐱'}],
    "temperature": 0.7,
    "seed": None,
    "json": True,
}
REPLY = Reply("prêt 🐱", 12, 3)


def test_what_is_saved_comes_back_marked(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "deep" / "folder")
    assert cache.load(REQUEST) is None
    cache.save(REQUEST, REPLY)
    assert cache.load(REQUEST) == Reply("prêt 🐱", 12, 3, cached=True)
    assert [path.suffix for path in cache.folder.iterdir()] == [".json"], "nothing half written"
    cache.drop(REQUEST)
    cache.drop(REQUEST)
    assert cache.load(REQUEST) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"messages": []},
        {"temperature": 0.8},
        {"seed": 0},
        {"json": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_request_counts(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = ReplyCache(tmp_path)
    cache.save(REQUEST, REPLY)
    assert cache.load(REQUEST | change) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"request": null, "reply": null}',
        b"[" * 100_000,
    ],
    ids=range(7),
)
def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    cache = ReplyCache(tmp_path)
    cache.save(REQUEST, Reply("old"))
    cache.path(REQUEST).write_bytes(content)
    assert cache.load(REQUEST) is None
    cache.save(REQUEST, REPLY)
    loaded = cache.load(REQUEST)
    assert loaded is not None
    assert loaded.text == REPLY.text


@pytest.mark.parametrize(
    "reply",
    [
        {"text": 3, "prompt_tokens": 1, "completion_tokens": 1},
        {"text": "a", "prompt_tokens": "1", "completion_tokens": 1},
        {"text": "a", "prompt_tokens": 1, "completion_tokens": -1},
        {"text": "a", "prompt_tokens": True, "completion_tokens": 1},
        {"text": "a"},
        "a",
    ],
    ids=range(6),
)
def test_a_file_of_another_form_is_a_miss(tmp_path: Path, reply: object) -> None:
    cache = ReplyCache(tmp_path)
    cache.path(REQUEST).write_text(json.dumps({"request": REQUEST, "reply": reply}))
    assert cache.load(REQUEST) is None


def test_a_file_of_another_request_under_this_name_is_a_miss(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    cache.save(REQUEST | {"seed": 1}, REPLY)
    cache.path(REQUEST | {"seed": 1}).replace(cache.path(REQUEST))
    assert cache.load(REQUEST) is None


def test_a_folder_that_cannot_be_made_is_a_notice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ReplyCache(tmp_path / "file" / "llm")
    with pytest.warns(TillerNotice, match="TILLER_CACHE"):
        cache.save(REQUEST, REPLY)
    assert cache.load(REQUEST) is None


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILLER_CACHE", "~/mine")
    assert default_folder() == Path.home() / "mine" / "llm"
    monkeypatch.delenv("TILLER_CACHE")
    assert default_folder() == Path.home() / ".cache" / "tiller" / "llm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "tiller" / "llm"


def test_a_chat_without_a_folder_keeps_its_replies_there(serve: Any) -> None:
    _, chat = serve(["Hi."], folder=None)
    chat.reply(Request((Message("user", "Hello"),)))
    assert len(list(default_folder().glob("*.json"))) == 1
    assert default_folder().is_relative_to(os.environ["TILLER_CACHE"])


WRITER = """
import sys
from pathlib import Path
from tiller.llm import Reply
from tiller.llm.cache import ReplyCache
for _ in range(100):
    ReplyCache(Path(sys.argv[1])).save({"model": "m"}, Reply(sys.argv[2] * 5000, 1, 1))
"""


def test_two_processes_that_write_leave_a_whole_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, text]) for text in "ab"]
    cache, seen, there = ReplyCache(tmp_path), set(), False
    while any(writer.poll() is None for writer in writers):
        loaded = cache.load({"model": "m"})
        assert loaded is not None or not there, "a file was gone or half written"
        if loaded is not None:
            there = True
            seen.add(loaded.text)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 5000, "b" * 5000}
    assert len(list(tmp_path.iterdir())) == 1
