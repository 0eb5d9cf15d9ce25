"""`tiller steer --method llm_rewrite` with a real server on this machine, and without one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ended import Tiller

from tiller.testing.fake_server import Answer, FakeServer, Script

FIELDS = {"n": 2, "iterations": 2, "noises": 1, "unseen": 0}
REWRITE = ("--method", "llm_rewrite", *(f"--set={k}={v}" for k, v in FIELDS.items()), "--json")

Serve = Callable[[Script], FakeServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Serve]:
    """`serve(script)`: the server that the environment names from then on."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TILLER_CACHE", str(tmp_path / "cache"))
    with ExitStack() as stack:

        def start(script: Script) -> FakeServer:
            server = stack.enter_context(FakeServer(script))
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            return server

        yield start


def said(*prompts: str) -> Answer:
    return Answer(json.dumps({"prompts": prompts}), tokens=(100, 20))


def journal(run: str) -> list[dict[str, Any]]:
    """The steps, without what two equal runs may differ in."""
    lines = map(json.loads, (Path(run) / "journal.jsonl").read_text().splitlines())
    kept = ("step", "score", "best_score", "scores", "image")
    return [{k: line[k] for k in kept} for line in lines if line["kind"] == "step"]


def test_tokens_are_reported_and_paid_once(steer: Tiller, serve: Serve) -> None:
    server = serve([said("a red kitty", "a crimson cat"), said("a big red cat")])
    first = steer("a red cat", *REWRITE)
    assert first.code == 0, first.err
    assert first.json["cost"]["tokens"] == 240
    assert first.json["cost"]["images"] == 4
    assert len(server.requests) == 2
    again = steer("a red cat", *REWRITE)
    assert again.json["cost"]["tokens"] == 0
    assert again.json["scores"] == first.json["scores"]
    assert len(server.requests) == 2


@pytest.mark.usefixtures("serve")
def test_without_a_server_nothing_is_drawn(steer: Tiller, tmp_path: Path) -> None:
    ended = steer("a red cat", *REWRITE)
    assert ended.code == 2
    assert "set OPENAI_BASE_URL" in ended.error
    assert "OPENAI_MODEL" in ended.error
    assert ended.json == {"error": ended.error.removeprefix("error: "), "run": None}
    assert not (tmp_path / "out").exists()


def test_a_server_that_dies_leaves_a_run_that_goes_on(
    steer: Tiller, tiller: Tiller, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = [said("a red kitty", "a crimson cat"), said("a big red cat")]
    serve([answers[0], Answer("no memory", status=500, headers={"X-Should-Retry": "false"})])
    ended = steer("a red cat", *REWRITE)
    assert ended.code == 2
    assert "failed with status 500 (no memory)" in ended.error
    cut = ended.json["run"]
    assert len(journal(cut)) == 2
    server = serve([answers[1]])
    resumed = tiller("resume", cut, "--json")
    assert resumed.code == 0, resumed.err
    assert len(server.requests) == 1, "the first reply came from the state, not from the server"
    monkeypatch.setenv("TILLER_CACHE", str(tmp_path / "other"))
    serve(answers)
    whole = steer("a red cat", *REWRITE).json["run"]
    assert journal(cut) == journal(whole)
    pictures = [Path(run, "images", "best.png").read_bytes() for run in (cut, whole)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (Answer("who are you?", status=401), "OPENAI_API_KEY"),
        (Answer("no such model", status=404), "knows no model 'fake' (no such model)"),
        (Answer("I would rather not."), "gave no usable answer in 3 tries"),
        (Answer(body=b"<html>"), "OPENAI_BASE_URL"),
    ],
    ids=["key", "model", "words", "page"],
)
def test_what_goes_wrong_is_one_line(
    steer: Tiller, serve: Serve, answer: Answer, wanted: str
) -> None:
    serve([answer] * 3)
    ended = steer("a red cat", *REWRITE)
    assert ended.code == 2
    assert wanted in ended.error


def test_promptist_without_its_model_says_what_to_do(steer: Tiller, tmp_path: Path) -> None:
    ended = steer("a red cat", "--method", "promptist")
    assert ended.code == 2
    assert "HF_HUB_OFFLINE=1" in ended.error
    assert "--set rewriter=FOLDER" in ended.error
    assert not (tmp_path / "out").exists()


WORDS = {"solver": "epo", "population": 2, "keep": 1, "mutants": 1, "crossovers": 0}
LADDER = (
    *("--method", "dpo_diff", "--budget", "images=6", "--json"),
    *(f"--set={k}={v}" for k, v in {**WORDS, "noises": 1, "unseen": 0, "llm": "true"}.items()),
)


def space_of(run: str) -> str:
    """What the run searched, as its journal says."""
    lines = map(json.loads, (Path(run) / "journal.jsonl").read_text().splitlines())
    return next(str(line["text"]) for line in lines if line["kind"] == "space")


def test_the_ladder_has_the_servers_rung(steer: Tiller, serve: Serve) -> None:
    server = serve(['{"cat": ["Xylo-cat"]}'])
    ended = steer("a red cat", *LADDER)
    assert ended.code == 0, ended.err
    assert "Xylo-cat (llm)" in space_of(ended.json["run"])
    (request,) = server.requests
    assert "must not show" in request["messages"][0]["content"]


def test_a_dead_server_costs_the_ladder_a_rung_and_a_notice(steer: Tiller, serve: Serve) -> None:
    serve([Answer("off", status=500, headers={"X-Should-Retry": "false"})] * 9)
    ended = steer("a red cat", *LADDER)
    assert ended.code == 0, ended.err
    assert "notice: no antonyms from the LLM" in ended.err
    assert "(llm)" not in space_of(ended.json["run"])


@pytest.mark.usefixtures("serve")
def test_a_rung_that_was_asked_for_needs_a_server(steer: Tiller, tmp_path: Path) -> None:
    ended = steer("a red cat", *LADDER)
    assert ended.code == 2
    assert "set OPENAI_BASE_URL" in ended.error
    assert not (tmp_path / "out").exists()
