"""The DPO-Diff benchmarks run from end to end, on a fake model and a few pictures."""

from __future__ import annotations

import importlib
import itertools
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tiller
from tiller.core.errors import InvalidInput
from tiller.runs.record import read_run
from tiller.testing.fake_pipeline import save_fake_pipeline
from tiller.testing.fake_server import FakeServer

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "dpo_diff"
PROMPTS = ["a cat", "a red pig", "a dog"]
QUICK = ["num_inference_steps=4", "iterations=4", "population=4"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:the prompt has"),  # the fake model reads 14 tokens
    pytest.mark.filterwarnings("ignore:the text encoder reads"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fake_pipeline(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    entries = [{"prompt": prompt, "kind": "", "score": 0.0, "faithful": 0.0} for prompt in PROMPTS]
    chosen = {"about": {}, "improve": entries, "attack": entries}
    (tmp_path / "hard.json").write_text(json.dumps(chosen))
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), str(SCRIPTS.parent), *sys.path])
    return importlib.import_module("measured")


def lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line."""
    return [json.loads(line) for line in file.read_text().splitlines()]


class Bench:
    """Runs a script on the fake model; its printed object."""

    def __init__(self, model: Path, folder: Path, monkeypatch: Any, capsys: Any) -> None:
        self.common = ["--model", str(model), "--json", "--noises", "2", "--unseen", "2"]
        self.common += ["--out", str(folder / "runs"), "--figures", str(folder / "figures")]
        self.common += ["--hard", str(folder / "hard.json"), "--set", *QUICK]
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, name: str, *options: str) -> dict[str, Any]:
        self.monkeypatch.setattr(sys, "argv", [name, *options, *self.common])
        self.monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        found: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        assert found["about"]["claim"]
        for row in found["table"].values():
            for cell in row.values():
                assert cell["low"] <= cell["value"] <= cell["high"]
        return found


@pytest.fixture
def bench(
    model: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Bench:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Bench(model, folder, monkeypatch, capsys)


def test_hard_prompts_lie_beyond_their_thresholds_and_are_the_same_again(
    bench: Bench, folder: Path
) -> None:
    def chosen(below: float, above: float, prompts: int) -> dict[str, Any]:
        limits = [f"--below={below}", f"--above={above}", "--prompts", str(prompts)]
        bench("hard", *limits, "--batch", "8", "--images", "64")
        tree: dict[str, Any] = json.loads((folder / "hard.json").read_text())
        return tree

    with pytest.raises(InvalidInput, match="move a threshold"):
        chosen(0.0, 1.0, 4)  # every score is below, none above
    file = folder / "runs" / "pictures.jsonl"
    drawn = [line["scores"]["spherical_clip"] for line in lines(file)]
    scores = sorted(sum(drawn[i : i + 2]) / 2 for i in range(0, len(drawn), 2))
    below, above = scores[7], scores[-8]
    found = chosen(below, above, 4)
    assert all(one["score"] <= below for one in found["improve"])
    assert all(one["score"] >= above for one in found["attack"])
    prompts = [one["prompt"] for task in ("improve", "attack") for one in found[task]]
    assert len(set(prompts)) == 8
    assert found == chosen(below, above, 4)
    assert len(lines(file)) == len(drawn)  # nothing was drawn again


def test_shortcuts_are_compared_with_what_words_do(bench: Bench, folder: Path) -> None:
    found = bench("shortcuts", "--prompts", "2", "--options", "4", "--draws", "20")
    assert {"t=0.5", "t=0.5, k=2", "whole"} < set(found["table"])
    values = [row["rank correlation"]["value"] for row in found["table"].values()]
    assert all(-1 <= value <= 1 for value in values)
    assert len(set(values)) > 1, "no gradient reached the words"
    assert (folder / "figures" / "shortcuts.svg").exists()


def test_an_attack_is_told_apart_by_its_sign(bench: Bench, folder: Path) -> None:
    found = bench("attack", "--prompts", "3", "--images", "12", "--solvers", "epo", "random")
    assert list(found["table"]) == ["user's prompt", "attack, epo", "attack, random"]
    for name in ("attack, epo", "attack, random"):
        row = found["table"][name]
        assert row["least similarity"]["value"] >= 0.9
        assert row["change"]["value"] <= 0  # its own words are among those that it compares
        assert row["wrong way"]["value"] == 0
        assert row["right way"]["value"] + row["nothing worse found"]["value"] == pytest.approx(1)
    assert found["table"]["user's prompt"]["change"]["value"] == 0
    assert [one["prompt"] for one in found["prompts"]] == PROMPTS
    assert (folder / "figures" / "attack.svg").stat().st_size > 10_000  # holds pictures


def test_improvements_stand_beside_their_baselines_at_equal_cost(
    bench: Bench, folder: Path, measured: ModuleType
) -> None:
    found = bench("improve", "--prompts", "2", "--images", "12")
    table = found["table"]
    assert list(table) == ["user's prompt", "best_of_n", "manual", "dpo_diff, epo"]
    assert table["dpo_diff, epo"]["wrong way"]["value"] == 0
    assert table["best_of_n"]["wrong way"]["value"] == 0
    one_picture_each = 2 * 2 * 4  # noises, guidance, steps
    costs = [table[name]["calls"]["value"] for name in ("best_of_n", "dpo_diff, epo")]
    assert costs[0] == pytest.approx(costs[1], abs=one_picture_each / 2)
    assert costs[1] <= 12 * 2 * 4  # an evolution draws pictures and nothing else
    for one in found["prompts"]:  # drawn anew, the words are worth what their run said
        best = [s["best_score"] for s in read_run(one["run"]).steps][-1]
        words = [one["prompt"], *one["words"], 0]
        again = [
            line["scores"]["spherical_clip"]
            for line in lines(folder / "runs" / "pictures.jsonl")
            if json.loads(line["key"])[1:5] == words and json.loads(line["key"])[5] < 2
        ]
        assert sum(again) / 2 == pytest.approx(best, abs=1e-5)


def test_a_language_model_joins_where_a_server_is_configured(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = itertools.count()

    def rewritten(request: Any) -> str:
        return json.dumps({"prompts": [f"a cat {next(answers)}{letter}" for letter in "abcde"]})

    monkeypatch.setenv("TILLER_CACHE", str(folder / "cache"))
    with FakeServer(rewritten) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        table = bench("improve", "--prompts", "1", "--images", "8")["table"]
        assert server.requests
    row = table["llm_rewrite"]
    assert row["wrong way"]["value"] == 0
    assert row["calls"]["value"] == pytest.approx(table["dpo_diff, epo"]["calls"]["value"], abs=8)


def test_spaces_are_compared_by_their_random_prompts(bench: Bench) -> None:
    table = bench("spaces", "--prompts", "2", "--images", "8")["table"]
    assert {"positive", "negative", "antonyms", "both", "negative less positive"} < table.keys()
    gap = table["negative less positive"]["samples"]["value"]
    means = [table[name]["samples less the user's"]["value"] for name in ("negative", "positive")]
    assert gap == pytest.approx(means[0] - means[1])
    assert table["negative"]["samples"]["value"] == 3  # the user's own words are the fourth


def test_solvers_are_compared_where_their_gradient_steps_are_paid_for(
    bench: Bench, folder: Path
) -> None:
    options = ["--prompts", "1", "--seeds", "2", "--images", "32"]
    whole = bench("solvers", *options)
    table = whole["table"]
    for name in ("random", "epo", "gpo", "gpo+es"):
        row = table[name]
        assert 0 <= row["8"]["value"] <= row["16"]["value"]
        assert row["16, paper's count"]["value"] >= row["16"]["value"]
        assert row["at the end: calls"]["value"] <= 16 * 2 * 2 * 4  # the budget, exactly kept
    assert table["random"]["16"] == table["random"]["16, paper's count"]
    gaps = table["gpo less epo"], table["gpo+es less epo"]
    for gap, (mine, other) in zip(gaps, (("gpo", "epo"), ("gpo+es", "epo")), strict=True):
        assert gap["16"]["value"] == pytest.approx(
            table[mine]["16"]["value"] - table[other]["16"]["value"]
        )
    assert (folder / "figures" / "solvers.svg").exists()
    parts = [folder / "epo.json", folder / "others.json"]
    for file, kept in zip(parts, ("epo", None), strict=True):
        runs = dict(whole["runs"])
        for name in ("gains", "free_steps"):
            runs[name] = {k: v for k, v in runs[name].items() if (k == "epo") == (kept == "epo")}
        file.write_text(json.dumps({"runs": runs}))
    merged = bench("solvers", "--merge", *map(str, parts))["table"]
    assert merged["gpo less epo"] == table["gpo less epo"]
    assert merged["random"]["16"] == table["random"]["16"]


def test_an_ascent_costs_what_was_planned(measured: ModuleType, model: Path, folder: Path) -> None:
    solvers = importlib.import_module("solvers")
    loaded = tiller.load_model(str(model))
    settings = {"num_inference_steps": 10, "iterations": 6, "noises": 3, "k": 2}
    result = tiller.steer(
        loaded, "a red pig", method="dpo_diff", reward="spherical_clip", budget="images=30",
        solver="gpo+es", out=folder, unseen=0, gradient_share=1.0, **settings,
    )  # fmt: skip
    steps = read_run(result.run_dir).steps
    ends = [k for k, step in enumerate(steps) if step["phase"] == "gradient"]
    costs = [steps[k]["cost"] for k in (ends[0] - 1, ends[-1])]
    before, after = (one["forwards"] + one["backwards"] for one in costs)
    ascent = solvers.Ascent(10, 3 * 2, {"t_first": 0.3, "t_end": 0.5, "k": 2})
    assert len(ends) == 6
    assert ascent.calls(6) == after - before
    assert ascent.affordable(ascent.calls(6), 20) < 7
    assert ascent.affordable(ascent.calls(1) - 1, 20) == 0


def test_pictures_are_remembered_and_do_not_depend_on_their_batch(
    measured: ModuleType, model: Path, folder: Path
) -> None:
    gallery = importlib.import_module("gallery")
    loaded = tiller.load_model(str(model))
    _, raw = measured.make_method("raw", {"num_inference_steps": 3})
    asked = [
        gallery.Asked("a cat", words, seed, index)
        for words in (("a cat", ""), ("a dog", "blurry"))
        for seed, index in ((0, 0), (0, 1), (1, 0))
    ]
    whole = gallery.Gallery(loaded, raw, folder / "a", batch=6)
    parts = gallery.Gallery(loaded, raw, folder / "b", batch=2)
    values = [
        torch.tensor([[one.value(name) for name in gallery.REWARDS] for one in some.look(asked)])
        for some in (whole, parts)
    ]
    torch.testing.assert_close(*values, atol=1e-5, rtol=0)
    assert len(values[0][:, 0].unique()) == len(asked)
    file = folder / "a" / "pictures.jsonl"
    file.write_text(file.read_text() + '{"key": "torn')
    again = gallery.Gallery(loaded, raw, folder / "a", batch=6)
    assert again.look(asked) == whole.look(asked)
    assert again.drawn == 0
    again.look([gallery.Asked("a cat", ("a cat", ""), 2, 0)])
    whole = [line for line in file.read_text().splitlines() if line and "torn" not in line]
    assert len(whole) == len(asked) + 1
    assert gallery.Gallery(loaded, raw, folder / "a").look(asked[:1]) == again.look(asked[:1])


def test_too_few_prompts_are_said(bench: Bench, folder: Path) -> None:
    with pytest.raises(InvalidInput, match="expected 9 prompts for 'attack'"):
        bench("attack", "--prompts", "9")
    (folder / "hard.json").unlink()
    with pytest.raises(InvalidInput, match=r"run hard\.py first"):
        bench("attack")


def test_costs_are_ratios_of_what_took_turns(bench: Bench) -> None:
    found = bench("cost", "--rounds", "2", "--images", "4", "--clock", "cpu")
    assert len(found["step_seconds"]) == 4
    assert all(cell["value"] > 0 for cell in found["table"]["seconds"].values())
