"""docs/llm.md runs as it stands, against a fake server at another address."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tiller.testing.fake_server import FakeServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "llm.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def answer(request: dict[str, Any]) -> str:
    """What the question asks for, by its form."""
    asked = request["messages"][0]["content"]
    if '"prompts"' in asked:
        animals = ("one cat that is red, one dog that is blue", "red cat, blue dog", "a blue dog")
        return json.dumps({"prompts": [f"{text}, {request['seed']}" for text in animals]})
    return 'Here you are: {"red": ["scarlet"], "cat": ["kitty"], "dog": ["puppy"]}'


def test_its_commands_and_its_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiller.cli import main

    blocks = BLOCK.findall(DOCUMENT.read_text())
    commands = [line for kind, body in blocks if not kind for line in body.splitlines()]
    set_there = {line.split("=")[0].split()[1] for line in commands if line.startswith("export ")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILLER_CACHE", str(tmp_path / "cache"))
    with FakeServer(answer) as server:
        assert set_there == {"OPENAI_BASE_URL", "OPENAI_MODEL"} <= server.environment.keys()
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        steered = [shlex.split(line) for line in commands if line.startswith("tiller ")]
        assert len(steered) == 3
        for words in steered:
            quick = ("num_inference_steps=2", "noises=1", "unseen=0")
            monkeypatch.setattr(sys, "argv", [*words, *(f"--set={field}" for field in quick)])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0, f"{words}: {capsys.readouterr().err}"
        models = [request["model"] for request in server.requests]
        assert models[0] == server.environment["OPENAI_MODEL"]
        assert models[-1] == "OTHER-MODEL"
        capsys.readouterr()
        (code,) = (body for kind, body in blocks if kind == "python")
        exec(compile(code, DOCUMENT.name, "exec"), {})
        assert "kitty (llm)" in capsys.readouterr().out
