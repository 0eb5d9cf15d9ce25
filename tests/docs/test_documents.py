"""What the documents promise is executed: code blocks run, commands exist, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
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
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=840
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
        tiller = Path(sys.executable).with_name("tiller")  # as installed: no PYTHONPATH
        done = run([str(tiller), *arguments[1:], *common], tmp_path)
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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["README.md", "docs/start.md"])
def test_the_commands_of_a_newcomer_run_as_they_stand(name: str, tmp_path: Path) -> None:
    """Each `tiller` line, in order; the placeholder of a run's folder is the newest run."""
    ran = 0
    (tmp_path / "PROMPTS.txt").write_text("a red cat\n")
    for body in blocks(ROOT / name, ""):
        for line in body.splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "tiller":
                continue
            newest = max((tmp_path / "runs").glob("2*"), key=os.path.getmtime, default=None)
            arguments = [
                str(newest) if word == "RUN" or word.startswith("runs/2") else word
                for word in words[1:]
            ]
            done = run([sys.executable, "-m", "tiller", *arguments], tmp_path)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            ran += 1
    assert ran >= 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run_as_they_stand(document: Path, tmp_path: Path) -> None:
    if document.name in ("extend.md", "rewards.md", "llm.md"):
        pytest.skip("its blocks have a test of their own")
    for body in blocks(document, "python"):
        done = run([sys.executable, "-W", "error::UserWarning", "-c", body], tmp_path)
        assert done.returncode == 0, f"{body}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_documents_use_options_that_exist(document: Path) -> None:
    helps: dict[str, str] = {}
    for body in blocks(document, ""):
        named = r"^(?:\.venv/bin/)?tiller ((?:(?:affix|concept) )?\w+)(.*)$"
        for line in re.findall(named, body, re.MULTILINE):
            command, rest = line
            if command not in helps:
                words = [sys.executable, "-m", "tiller", *command.split(), "--help"]
                shown = run(words, ROOT)
                assert shown.returncode == 0, f"{document.name}: tiller {command}: {shown.stderr}"
                helps[command] = shown.stdout
            for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", rest):
                assert option in helps[command], f"{document.name}: tiller {command} {option}"
