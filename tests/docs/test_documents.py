"""What the documents promise is executed: code blocks run, commands exist, links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiller.testing.fake_pipeline import save_fake_pipeline

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(document.read_text()) if kind == language]


def run(arguments: list[str], folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


def test_extend_shows_a_reward_a_solver_and_a_method_that_run(tmp_path: Path) -> None:
    for body in blocks(ROOT / "docs" / "extend.md", "python"):
        name = re.match(r"# (\w+\.py)\n", body)
        assert name is not None, f"a block of extend.md names no file: {body[:60]!r}"
        (tmp_path / name[1]).write_text(body)
    model = save_fake_pipeline(tmp_path / "model")
    common = ["--model", str(model), "--held-out", "darkness", "--json"]
    for command in blocks(ROOT / "docs" / "extend.md", ""):
        words = re.findall(r'"[^"]*"|\S+', command.strip())
        arguments = [word.strip('"') for word in words]
        assert arguments[0] == "tiller"
        if "--reward" not in arguments:
            arguments += ["--reward", "brightness"]
        done = run([sys.executable, "-m", *arguments, *common], tmp_path, tmp_path)
        assert done.returncode == 0, done.stderr
    check = (
        "from annealing import Annealing\n"
        "from tiller.testing.conformance import check_solver\n"
        "from tiller.testing.fakes import FakeQuadratic\n"
        "quadratic = FakeQuadratic(dimension=3)\n"
        "check_solver(Annealing(), quadratic.space, quadratic)\n"
    )
    done = run([sys.executable, "-c", check], tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_documents_use_options_that_exist(document: Path) -> None:
    helps: dict[str, str] = {}
    for body in blocks(document, ""):
        for line in re.findall(r"^(?:\.venv/bin/)?tiller (\w+)(.*)$", body, re.MULTILINE):
            command, rest = line
            if command not in helps:
                shown = run([sys.executable, "-m", "tiller", command, "--help"], ROOT)
                assert shown.returncode == 0, f"{document.name}: tiller {command}: {shown.stderr}"
                helps[command] = shown.stdout
            for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", rest):
                assert option in helps[command], f"{document.name}: tiller {command} {option}"
