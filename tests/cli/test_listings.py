"""`methods`, `rewards`, `models` and `doctor`: what they say agrees with the code."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from ended import Tiller

import tiller as package
from tiller import listing
from tiller.core.budget import Budget
from tiller.doctor import NEEDED
from tiller.methods._catalog import available as methods
from tiller.models.loader import BUNDLED
from tiller.rewards import available as rewards
from tiller.rewards import make_reward


def test_the_lists_hold_what_is_in_the_folders(tiller: Tiller) -> None:
    found = tiller("methods", "--json").json["methods"]
    assert [row["name"] for row in found] == list(methods())
    for row in found:
        assert row["needs_gradient"] == methods()[row["name"]].needs_gradient
        assert Budget.parse(row["default_budget"]) == methods()[row["name"]].default_budget
    found = tiller("rewards", "--json").json["rewards"]
    assert [row["name"] for row in found] == list(rewards())
    assert not next(row for row in found if row["name"] == "jpeg")["differentiable"]
    for what in ("methods", "rewards", "models"):
        shown = tiller(what)
        assert shown.code == 0
        assert all(row["name"] in shown.out for row in tiller(what, "--json").json[what])


@pytest.mark.parametrize(
    ("what", "name", "kind"),
    [
        *(("methods", name, kind) for name, kind in methods().items()),
        *(("rewards", name, kind) for name, kind in rewards().items()),
    ],
)
def test_every_field_has_its_type_default_and_sentence(
    tiller: Tiller, what: str, name: str, kind: type[Any]
) -> None:
    found = tiller(what, name, "--json").json
    declared = {f.name: f for f in dataclasses.fields(kind) if f.init}
    assert [field["name"] for field in found["fields"]] == list(declared)
    for field in found["fields"]:
        assert field["doc"], f"{name}.{field['name']} is not documented"
        assert field["type"] == declared[field["name"]].type
        if declared[field["name"]].default is not dataclasses.MISSING:
            assert field["default"] == declared[field["name"]].default
    assert found["idea"]
    assert found["about"]
    shown = tiller(what, name)
    assert all(field["name"] in shown.out for field in found["fields"])


@pytest.mark.parametrize("name", list(methods()))
def test_a_methods_example_is_a_command_that_can_be_read(tiller: Tiller, name: str) -> None:
    found = tiller("methods", name, "--json").json
    assert "citation" in found
    words = shlex.split(found["example"])
    if name == "attack":
        assert words[:2] == ["tiller", "attack"]
    else:
        assert words[:2] == ["tiller", "steer"]
        assert words[words.index("--method") + 1] == name
    if "--set" in words:
        field = words[words.index("--set") + 1].partition("=")[0]
        assert field in {field["name"] for field in found["fields"]}


def test_a_rewards_example_is_a_reward(tiller: Tiller) -> None:
    words = shlex.split(tiller("rewards", "jpeg", "--json").json["example"])
    assert make_reward(words[words.index("--reward") + 1]).name == "jpeg"


def test_field_sentences_are_read_from_the_whole_section() -> None:
    @dataclasses.dataclass
    class Documented:
        """An idea.

        Attributes:
            a: one, of
                two lines.
            b: another: with a colon.

        Raises:
            ValueError: no field.
        """

        a: int = 1
        b: str = "x"

    assert [(f["name"], f["doc"]) for f in listing.fields(Documented)] == [
        ("a", "one, of two lines."),
        ("b", "another: with a colon."),
    ]


def test_the_bundled_model_is_where_the_loader_looks() -> None:
    assert listing.bundled_folder() == BUNDLED["emoji"]


def test_the_bundled_model_is_shown_with_its_defaults(tiller: Tiller) -> None:
    found = tiller("models", "emoji", "--json").json
    if not found["installed"]:
        assert "python -m tiller.models.bundled" in found["remedy"]
        return
    assert found["defaults"]["num_inference_steps"] == 20
    assert found["megabytes"] <= 40


def test_another_model_is_loaded_to_be_shown(tiller: Tiller, model: Path) -> None:
    found = tiller("models", model, "--json").json
    assert found["source"] == str(model)
    assert found["latent_shape"] == [4, 8, 8]


def test_the_doctor_draws_a_picture_and_takes_a_gradient(tiller: Tiller, model: Path) -> None:
    ended = tiller("doctor", "--model", model, "--json")
    checks = {check["name"]: check for check in ended.json["checks"]}
    assert ended.code == 0, ended.out
    assert ended.json["ok"]
    assert set(NEEDED) < checks.keys()
    assert {"device", "hub", "current folder", "free disk", "extra ray"} < checks.keys()
    assert "with its gradient" in checks["self-test"]["found"]
    assert "offline" in checks["hub"]["found"]
    shown = tiller("doctor", "--model", model)
    assert shown.code == 0
    assert len([line for line in shown.out.splitlines() if line.startswith("ok ")]) == len(checks)


def test_the_doctor_says_what_to_do_where_something_is_wrong(
    tiller: Tiller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    monkeypatch.setattr("tiller.doctor._installed", lambda name: name not in ("cma", "openai"))
    monkeypatch.setattr("tiller.doctor.metadata.version", lambda name: "1.0")
    ended = tiller("doctor", "--json")
    assert ended.code == 1
    checks = {check["name"]: check for check in ended.json["checks"]}
    assert checks["cma"]["remedy"] == "pip install cma"
    assert checks["extra llm"]["remedy"] == "pip install -e '.[llm]'"
    assert not checks["self-test"]["ok"]


def test_the_doctor_says_why_a_model_cannot_be_tried(tiller: Tiller) -> None:
    ended = tiller("doctor", "--model", "./nowhere", "--json")
    assert ended.code == 1
    checks = {check["name"]: check for check in ended.json["checks"]}
    assert "expected a model's folder" in checks["self-test"]["found"]
    assert "extra bayes" in checks


def test_the_version_is_the_packages(tiller: Tiller) -> None:
    assert tiller("--version").out == f"tiller {package.__version__}\n"


def test_help_names_every_command(tiller: Tiller) -> None:
    for argv in ([], ["--help"]):
        shown = tiller(*argv)
        assert shown.code == 0
        for command in (
            "steer",
            "attack",
            "resume",
            "report",
            "export",
            "methods",
            "models",
            "doctor",
        ):
            assert f"  {command} " in shown.out
