"""The picture benchmarks of DNO run from end to end, on a fake model and a few pictures."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tiller.core.budget import Budget
from tiller.methods._catalog import make_method
from tiller.testing.fake_pipeline import save_fake_pipeline

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "dno"
SMALL = {
    "ood": ["--prompts", "2", "--steps", "2"],
    "ode_sde": ["--prompts", "1", "--steps", "2"],
    "rewards": [
        *("--prompts", "1", "--steps", "6", "--rewards", "preference"),
        *("--methods", "raw", "best_of_n", "dno", "dno_combined"),
    ],
    "black_box": ["--prompts", "2", "--calls", "100"],
    "ablation": ["--prompts", "1", "--steps", "1", "--rows", "gamma=0", "k=1", "b=1"],
}

BEFORE = {"black_box": [["--time", "--repeat", "1"]]}


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
    common = ["--model", str(model), "--seeds", "1", "--json"]
    folders = ["--out", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures")]
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    for before in BEFORE.get(name, []):
        monkeypatch.setattr(sys, "argv", [name, *before, *SMALL[name], *common, *folders])
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        assert not capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name], *common, *folders])
    runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    assert found["about"]["claim"]
    assert found["table"]
    for row in found["table"].values():
        for cell in row.values():
            assert cell["low"] <= cell["value"] <= cell["high"]


def test_each_arm_of_the_table_is_a_method_with_its_fields() -> None:
    arms = runpy.run_path(str(SCRIPTS / "rewards.py"))["arms"](steps=20, forwards=40)
    for settings in arms.values():
        fields = {k: v for k, v in settings.items() if k not in ("method", "budget")}
        name, _ = make_method(settings["method"], fields)
        assert name == settings["method"]
        Budget.parse(settings.get("budget", "images=1"))


def test_the_cost_script_runs_on_a_fake_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "cost.svg"
    options = ["--tiny", "--dtypes", "fp32", "--steps", "3", "--budgets", "15", "--repeat", "1"]
    monkeypatch.setattr(sys, "argv", ["cost", *options, "--figure", str(figure), "--json"])
    runpy.run_path(str(SCRIPTS / "cost.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"]
    assert "15 GB are enough" in found["about"]["claim"]
    assert figure.read_text().startswith("<?xml")
    cases = [row["case"] for row in rows]
    assert cases[:2] == ["plain picture", "gradient step, all recomputed"]
    assert "gradient step within 15 GB" in cases
    assert all(row["seconds"] > 0 for row in rows)
