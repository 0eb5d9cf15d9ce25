"""The benchmarks of IPGO run from end to end, on a fake model and a few pictures."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tiller.models.bundled.captions import parse
from tiller.testing.fake_pipeline import save_fake_pipeline

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "ipgo"
SMALL = {
    "table": ["--prompts", "4", "--images", "3", "--methods", "raw", "ipgo", "--rewards", "mix"],
    "batch": ["--prompts", "4", "--images", "4", "--every", "2", "--batches", "2"],
    "transfer": ["--prompts", "3", "--rewards", "preference", "--arms", "batch=2 epochs=1"],
    "ablation": ["--prompts", "1", "--steps", "1", "--parts", "rotation", "prompt"],
    "drowning": ["--prompts", "1", "--steps", "1"],
    "cost": ["--rounds", "2"],
    "tune": ["--prompts", "1", "--steps", "1", "--arms", "", "lr=0.01"],
    "phrases": ["--prompts", "2", "--phrases", "a big"],
    "raised": ["--prompts", "2", "--steps", "5", "--reward", "brightness"],
}
MORE = {"batch": ["--rewards", "preference"], "ablation": ["--reward", "preference"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fake_pipeline(tmp_path_factory.mktemp("fake"))


@pytest.mark.filterwarnings("ignore:the prompt has")  # the fake model reads 14 tokens
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SMALL)
def test_the_script_prints_one_object(
    name: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["--model", str(model), "--seeds", "1", "--sampling-steps", "2", "--json"]
    folders = ["--out", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures")]
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name], *MORE.get(name, []), *common, *folders])
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    assert found["about"]["claim"]
    assert found["table"]
    for row in found["table"].values():
        for cell in row.values():
            assert cell["low"] <= cell["value"] <= cell["high"]


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_rows_that_are_kept_are_not_run_again(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    rows = tmp_path / "rows"

    def table(few: int, out: str) -> tuple[dict[str, object], int]:
        argv = ["table", "--methods", "raw", "--rewards", "mix", "--prompts", "8"]
        argv += ["--few-methods", "raw", "--few", str(few)]
        argv += ["--model", str(model), "--sampling-steps", "2", "--json", "--rows", str(rows)]
        monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path / out)])
        runpy.run_path(str(SCRIPTS / "table.py"), run_name="__main__")
        found = json.loads(capsys.readouterr().out)
        return found["table"], len(list((tmp_path / out).glob("2*")))

    first, ran = table(4, "a")
    assert ran == 4
    again, ran = table(4, "b")
    assert ran == 0
    assert again == first
    more, ran = table(8, "c")
    assert ran == 4
    assert more != first
    assert len((rows / "mix-raw.jsonl").read_text().splitlines()) == 8


def test_groups_and_halves_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    material = runpy.run_path(str(SCRIPTS / "material.py"))
    groups = material["grouped"](15)
    assert sum(len(set(texts)) for texts in groups.values()) == 60
    specs = {group: [parse(text) for text in texts] for group, texts in groups.items()}
    assert all(len(spec.subjects) == 2 for spec in specs["two"])
    assert all(spec.background is None for spec in specs["plain"] + specs["rare"])
    assert all(spec.background for spec in specs["background"])
    first, second = material["halves"](12)
    named = [{parse(text).subjects[0][0] for text in texts} for texts in (first, second)]
    assert named[0].isdisjoint(named[1])
    assert len(set(first)) == len(set(second)) == 12
