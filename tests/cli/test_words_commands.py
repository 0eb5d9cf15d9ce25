"""`attack`, and `steer` with words: answers, dry runs, and what cannot be searched."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from ended import Ended, Tiller, small

from tiller.commands import steering
from tiller.commands.options import Options
from tiller.core.budget import Budget
from tiller.methods._catalog import available
from tiller.testing.fake_pipeline import save_fake_pipeline

QUICK = (
    *("--set", "noises=2", "--set", "unseen=3", "--set", "iterations=2", "--set", "population=4"),
    *("--set", "leave_one_out=0.3", "--budget", "images=24"),
)
PROMPT = "a green car on a pink background"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fake model that reads whole prompts, a token a letter."""
    return save_fake_pipeline(tmp_path_factory.mktemp("words") / "fake", length=77)


@pytest.fixture
def attack(tiller: Tiller, model: Path, tmp_path: Path) -> Tiller:
    """`attack(prompt, *options)`: a small quick attack on the fake model."""

    def run(prompt: str, *options: object) -> Ended:
        return tiller("attack", prompt, *small(model, tmp_path / "out"), *options)

    return run


def test_an_attack_lowers_the_score_with_similar_words(attack: Tiller) -> None:
    ended = attack(PROMPT, *QUICK, "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert found["method"] == "attack"
    assert found["scores"]["brightness"] < found["baseline_scores"]["brightness"]
    assert found["best_prompt"] != PROMPT
    assert 0.9 <= found["similarity"] < 1
    assert found["cost"]["images"] <= 24
    assert found["unseen"]["noises"] == 3
    assert found["unseen"]["change"].keys() == {"brightness", "darkness"}
    assert len(found["unseen"]["scores"]["brightness"]) == 3
    assert found["gains"], "words were put back"
    for gain in found["gains"]:
        assert PROMPT[gain["start"] : gain["end"]] == gain["word"]
        assert gain["option"] in found["best_prompt"]
    page = (Path(found["run"]) / "report.html").read_text()
    assert "Attacked" in page
    assert found["best_prompt"] in page


def test_people_read_the_words_and_which_way_is_good(attack: Tiller) -> None:
    ended = attack(PROMPT, *QUICK)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[1].split()[0] == "brightness"
    assert lines[1].rstrip().endswith("lowered")
    assert "(lowered)" in ended.err
    said = {line.split(maxsplit=1)[0]: line for line in lines if line.strip()}
    assert said.keys() >= {"prompt", "worth", "similar", "unseen", "method", "report"}
    assert "3 other noises" in said["unseen"]
    assert "95 % interval" in said["unseen"]
    assert "P(z)" not in ended.out, "the noise was not searched"


def test_a_search_for_negative_words_prints_them(steer: Tiller, tiller: Tiller) -> None:
    ended = steer("a red cat", "--method", "dpo_diff", *QUICK, "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert found["best_prompt"] == "a red cat"
    assert found["best_negative_prompt"]
    assert found["similarity"] is None
    printed = tiller("report", found["run"])
    assert f"not: {found['best_negative_prompt']!r}" in printed.out
    words = tiller("export", found["run"], "--to", "prompt")
    assert found["best_negative_prompt"] in words.out


def test_a_batch_shows_the_words_of_each(tiller: Tiller, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\na blue dog\n")
    options = [*small(model, tmp_path / "out"), *QUICK, "--set", "solver=epo"]
    ended = tiller("batch", tmp_path / "prompts.txt", *options, "--method", "attack")
    assert ended.code == 0, ended.err
    assert "best words" in ended.out
    assert "lowered" in ended.out.splitlines()[0]


@pytest.mark.parametrize("name", list(available()))
def test_a_dry_run_of_every_method_draws_nothing(
    steer: Tiller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run draws nothing")

    monkeypatch.setattr("tiller.models.trajectory.Trajectory.run", draw)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_MODEL", "none")
    ended = steer("a red cat", "--method", name, "--dry-run", "--json")
    if name == "promptist":  # it says at once that its weights are not here
        assert ended.code == 2
        return
    assert ended.code == 0, ended.err
    found = ended.json
    assert found["method"] == name
    assert found["space"]
    assert found["space"].startswith("affixes:") is name.startswith("ipgo")
    assert Budget.parse(found["budget"]) == available()[name].default_budget
    assert found["estimate"]["forwards_per_image"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("best_of_n", ["--budget", "images=6"]),
        ("dno", ["--budget", "steps=3"]),
        ("dno", ["--budget", "steps=2", "--set", "estimator=hybrid2"]),
        ("random", ["--budget", "steps=3"]),
    ],
)
def test_an_estimate_is_what_the_run_then_costs(
    steer: Tiller, method: str, options: list[str]
) -> None:
    wanted = ["a red cat", "--method", method, *options, "--json"]
    estimate = steer(*wanted, "--dry-run").json["estimate"]
    cost = steer(*wanted).json["cost"]
    for name in ("images", "forwards", "backwards"):
        assert estimate[name] == cost[name], name


def test_an_estimate_of_a_search_for_words_is_its_upper_bound(attack: Tiller) -> None:
    planned = attack(PROMPT, *QUICK, "--dry-run", "--json").json
    assert planned["size"] > 1
    assert {slot["word"] for slot in planned["words"]} <= set(PROMPT.split())
    assert all(option["source"] for slot in planned["words"] for option in slot["options"])
    assert planned["estimate"]["images_outside"] == 2 + 2 * 3
    cost = attack(PROMPT, *QUICK, "--json").json["cost"]
    assert cost["images"] <= planned["estimate"]["images"] == 24
    assert cost["forwards"] <= planned["estimate"]["forwards"]
    assert cost["backwards"] == planned["estimate"]["backwards"]


def test_a_dry_run_shows_the_words_and_where_they_come_from(attack: Tiller) -> None:
    shown = attack(PROMPT, "--dry-run").out
    assert "green" in shown
    assert "(wordnet-" in shown
    assert "prompts" in shown
    assert "brightness (lowered); held out: darkness" in shown
    assert "images=96" in shown
    assert "forwards a picture" in shown


@pytest.mark.parametrize("prompt", ["the of and", "qwxz zzkv", "🦉"])
def test_a_prompt_without_words_to_replace_is_refused(
    attack: Tiller, tmp_path: Path, prompt: str
) -> None:
    ended = attack(prompt)
    assert ended.code == 2
    assert "has a substitute" in ended.error
    assert "--set choices=words.json" in ended.error
    assert ended.err.count("\n") == 1, "one line"
    assert not (tmp_path / "out").exists()
    assert attack(prompt, "--dry-run").code == 0, "what there is can be looked at"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"syn', "JSON"),
        ('{"synonyms": {"vetoo": []}}', "expected only veto, pin, add"),
        ('{"keep": "cat"}', "expected a list of texts"),
        (None, "cannot be read"),
    ],
    ids=["json", "name", "kind", "missing"],
)
def test_a_file_of_choices_with_errors_is_named(
    attack: Tiller, tmp_path: Path, text: str | None, wanted: str
) -> None:
    path = tmp_path / "words.json"
    if text is not None:
        path.write_text(text)
    ended = attack("a red cat", "--set", f"choices={path}")
    assert ended.code == 2
    assert wanted in ended.error
    assert "words.json" in ended.error
    assert not (tmp_path / "out").exists()


def test_an_empty_prompt_and_an_unknown_space_are_refused(attack: Tiller) -> None:
    for prompt in ("", " \t"):
        ended = attack(prompt, "--json")
        assert ended.code == 2
        assert "expected a prompt with at least one word" in ended.json["error"]
    assert "must be one of auto, positive" in attack("a red cat", "--set", "space=no").error


def test_without_its_server_a_search_has_the_dictionary(
    attack: Tiller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TILLER_CACHE", str(tmp_path / "cache"))
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    unset = attack("a red cat", "--set", "llm=true", "--dry-run")
    assert unset.code == 2
    assert "set OPENAI_BASE_URL" in unset.error


def test_commands_that_search_share_their_options() -> None:
    names = set(inspect.signature(Options).parameters)
    shared = [inspect.signature(c).parameters for c in
              (steering.steer, steering.attack, steering.batch)]  # fmt: skip
    for name in names:
        first, *others = (parameters[name] for parameters in shared)
        assert all(other == first for other in others), name
    assert "method" not in shared[1]
