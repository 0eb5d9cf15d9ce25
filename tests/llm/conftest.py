"""A fake LLM server on this machine, and a folder of its own for the replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tiller.llm import OpenAIChat
from tiller.testing.fake_server import FakeServer, Script

Serve = Callable[..., tuple[FakeServer, OpenAIChat]]


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TILLER_CACHE", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(script, **fields)`: a fake server and a chat with it that does not wait long."""
    with ExitStack() as stack:

        def start(script: Script, **fields: object) -> tuple[FakeServer, OpenAIChat]:
            server = stack.enter_context(FakeServer(script))
            settings = {"folder": tmp_path / "replies", "timeout": 10.0} | fields
            return server, OpenAIChat("fake", server.url, **settings)  # type: ignore[arg-type]

        yield start
