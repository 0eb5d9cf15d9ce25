"""`tiller batch`: many prompts from a file, one answer, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ended import Tiller, small


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red cat\n\n  a blue dog  \n")
    return path


def test_one_object_with_every_run(
    tiller: Tiller, prompts: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = tiller(
        "batch", prompts, *small(model, out), "--budget", "steps=2", "--seeds", 2, "--json"
    )
    assert ended.code == 0, ended.err
    runs = json.loads(ended.out)["runs"]
    assert [run["prompt"] for run in runs] == ["a red cat"] * 2 + ["a blue dog"] * 2
    assert all(Path(run["image"]).is_file() for run in runs)
    assert all(run["scores"].keys() == run["baseline_scores"].keys() for run in runs)


def test_people_get_a_table(tiller: Tiller, prompts: Path, model: Path, tmp_path: Path) -> None:
    ended = tiller("batch", prompts, *small(model, tmp_path / "out"), "--budget", "steps=2")
    assert ended.code == 0, ended.err
    assert "mean of runs" in ended.out
    assert "a blue dog" in ended.out
    assert "2 of 2 runs under way, 2 over" in ended.err


def test_a_line_that_is_there_twice_is_one_run(tiller: Tiller, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\na red cat\n")
    ended = tiller(
        *("batch", tmp_path / "prompts.txt", *small(model, tmp_path / "out")),
        *("--budget", "steps=2", "--json"),
    )
    assert ended.code == 0, ended.err
    first, second = ended.json["runs"]
    assert first == second
    assert "1 of 1 runs under way, 1 over" in ended.err
    assert "notice: 'a red cat' is there 2 times and counts once" in ended.err


def test_the_table_counts_each_run_once_and_by_its_weights_sign(
    tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("# animals\na red cat\na red cat\n")
    ended = tiller(
        *("batch", tmp_path / "prompts.txt", *small(model, tmp_path / "out")),
        *("--reward", "jpeg:-2", "--method", "best_of_n", "--budget", "images=3"),
    )
    assert ended.code == 0, ended.err
    assert "notice: left out 1 line of" in ended.err
    assert "begins with #, as a comment" in ended.err
    rows = {line.split("   ")[0].strip(): line for line in ended.out.splitlines()}
    assert "/1 lowered" in rows["-2 jpeg"]
    assert "/1 raised" in rows["brightness"]
    assert "1/1 raised" in rows["sum"]
    page = (next((tmp_path / "out").glob("*/run.json")).parent,)
    report = tiller("report", *page, "--out", tmp_path)
    assert report.code == 0
    scores = (tmp_path / "report.html").read_text()
    assert '-2 jpeg <span class="tag">lowered' in scores
    assert 'sum <span class="tag">optimized' in scores


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read the prompts"),
        (b"\n \n", "expected a prompt a line"),
        (b"\xff\xfe\x00", "not text in UTF-8; save it as UTF-8"),
        (b"# animals\n", "expected a prompt a line"),
    ],
)
def test_bad_files_are_one_line(
    content: bytes | None, expected: str, tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    ended = tiller("batch", path, *small(model, tmp_path / "out"), "--budget", "steps=2")
    assert ended.code == 2
    assert expected in ended.err
    assert not (tmp_path / "out").exists()
