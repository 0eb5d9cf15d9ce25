"""Ctrl-C and `kill -9`, on processes of their own: nothing is lost, and `resume` goes on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ended import Tiller, small
from spawned import Child, start

STEPS = 16
KILLS = 5
TIMING = ("time", "cost")


def rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds in the journal of the run in `folder`, without what time measures."""
    journal = next(folder.glob("*/journal.jsonl"), None)
    if journal is None:
        return []
    found = []
    for line in journal.read_text().splitlines(keepends=True):
        if line.endswith("\n") and (entry := json.loads(line))["kind"] == "step":
            found.append({k: v for k, v in entry.items() if k not in TIMING})
    return found


def dno(model: Path, out: Path, *options: str) -> list[str]:
    return ["steer", "a red cat", *small(model, out), "--method", "dno", "--json", *options]


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Processes that a failed test must not leave behind."""
    started: list[Child] = []
    yield started
    for child in started:
        if child.process.is_alive():
            child.process.kill()
            child.process.join()


@pytest.mark.timeout(600)
def test_ctrl_c_ends_after_the_step_and_the_run_goes_on_where_it_stood(
    model: Path, tmp_path: Path, tiller: Tiller, children: list[Child]
) -> None:
    out = tmp_path / "out"
    child = start(dno(model, out, "--budget", "seconds=100"), tmp_path)
    children.append(child)
    child.until(lambda: len(rounds(out)) >= 2)
    child.signal(signal.SIGINT)
    code, stdout, stderr = child.wait()
    assert code == 130
    found = json.loads(stdout)
    assert found["stopped"] == "interrupted"
    assert "notice: stopping after this step" in stderr
    assert "Traceback" not in stderr
    run = Path(found["run"])
    assert "tiller resume" in (run / "report.html").read_text()
    done = rounds(out)
    assert done[-1]["stopped"] == "interrupted"
    more = len(done) + 2
    resumed = tiller("resume", run, "--budget", f"steps={more}", "--json")
    assert resumed.code == 0
    assert [entry["step"] for entry in rounds(out)] == list(range(1, more + 1))


@pytest.mark.timeout(600)
def test_a_second_ctrl_c_ends_at_once_and_keeps_the_last_step(
    model: Path, tmp_path: Path, children: list[Child]
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def score(images):\n"
        f"    asked = Path({str(tmp_path / 'asked')!r})\n"
        "    asked.write_text(asked.read_text() + '.' if asked.exists() else '.')\n"
        "    time.sleep(0 if len(asked.read_text()) < 8 else 100)\n"
        "    return images.mean((1, 2, 3))\n"
    )
    reward = f"{tmp_path / 'slow.py'}:score"
    options = ["--method", "best_of_n", "--set", "batch=1", "--reward", reward, "--json"]
    out = tmp_path / "out"
    child = start(["steer", "a red cat", *small(model, out), *options], tmp_path)
    children.append(child)
    child.until(lambda: (tmp_path / "asked").exists() and (tmp_path / "asked").stat().st_size >= 8)
    child.signal(signal.SIGINT)
    child.until(lambda: "stopping after this step" in child.stderr.read_text())
    started = time.monotonic()
    child.signal(signal.SIGINT)
    code, stdout, _ = child.wait()
    assert time.monotonic() - started < 30
    assert code == 130
    assert "tiller resume" in json.loads(stdout)["error"]
    assert len(rounds(out)) >= 1


@pytest.mark.timeout(600)
def test_killed_at_random_moments_and_resumed_a_run_ends_as_if_nothing_had_happened(
    model: Path, tmp_path: Path, children: list[Child]
) -> None:
    budget = ["--budget", f"steps={STEPS}"]
    whole = tmp_path / "whole"
    started = time.monotonic()
    assert start(dno(model, whole, *budget), tmp_path / "a").wait()[0] == 0
    seconds = time.monotonic() - started
    moments = random.Random(0)
    killed = tmp_path / "killed"
    child = start(dno(model, killed, *budget), tmp_path / "b")
    children.append(child)
    child.until(lambda: any(killed.glob("*/run.json")))
    (run,) = killed.iterdir()
    for kill in range(KILLS):
        # Somewhere in or after one of the next rounds, and at least once before the first.
        wanted = 0 if kill == 0 else len(rounds(killed)) + moments.randint(1, 2)
        child.until(lambda least=wanted: len(rounds(killed)) >= least)
        time.sleep(moments.uniform(0, seconds / STEPS))
        assert child.process.is_alive(), "the kills must hit a run under way"
        child.signal(signal.SIGKILL)
        child.process.join()
        child = start(["resume", str(run), "--json"], tmp_path / "b")
        children.append(child)
    code, stdout, stderr = child.wait()
    assert code == 0, stderr
    assert rounds(killed) == rounds(whole)
    (other,) = whole.iterdir()
    for name in ("images/best.png", "images/baseline.png", "best.safetensors"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    expected = json.loads((tmp_path / "a" / "stdout.txt").read_text())
    assert json.loads(stdout)["scores"] == expected["scores"]


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = "import sys; from tiller.cli import main; sys.argv = ['tiller', 'models']; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        said = child.stderr.read().decode()
    assert child.returncode == 141
    assert said == ""
