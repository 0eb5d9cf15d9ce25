"""What a user can get wrong: exit code 2 and one line that says what is wrong and what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from ended import Ended, Tiller


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--method", "dnoo"], ["unknown method 'dnoo'", "Did you mean 'dno'?"]),
        (["--reward", "brightnes"], ["unknown reward 'brightnes'", "Did you mean 'brightness'?"]),
        (["--reward", "colour"], ["colour"]),
        (["--reward", "brightness:0"], ["weight", "finite number other than 0"]),
        (["--held-out", "clp"], ["unknown reward 'clp'"]),
        (["--method", "dno", "--set", "lrr=1"], ["unknown field", "Did you mean 'lr'?"]),
        (["--method", "dno", "--set", "lr=fast"], ["dno.lr must be a number", "'fast'"]),
        (["--set", "lr"], ["--set field=value"]),
        (["--set", "lr=1", "--set", "lr=2"], ["--set lr", "twice"]),
        (["--set", "seed=1"], ["--set seed", "no field"]),
        (["--budget", "stepz=3"], ["budget", "stepz=3", "steps"]),
        (["--budget", "steps=0"], ["budget steps must be positive"]),
        (["--budget", ""], ["budget needs at least one limit"]),
        (["--budget", "steps=many"], ["budget steps must be a whole number"]),
        (["--seed", "three"], ["--seed", "integer", "`tiller steer --help`"]),
        (
            ["--method", "dno", "--reward", "jpeg", "--set", "estimator=autograd"],
            ["differentiable"],
        ),
        (["--reward", "nowhere.py:score"], ["nowhere.py", "cannot read the reward file"]),
        (["--no-such-option"], ["No such option: --no-such-option", "tiller steer --help"]),
        (["--reward", "clip:0,5"], ["cannot load the CLIP model '0,5'"]),
        (["--held-out", "clip:nowhere"], ["cannot load the CLIP model 'nowhere'"]),
        (["and", "a", "dog"], ["unexpected extra argument", "quotes"]),
        (["-5 cats"], ["No such option", "put -- before a prompt that begins with a dash"]),
        (
            ["--method", "best_of_n", "--set", "scheduler=dpm"],
            ["unknown name='dpm'", "Did you mean 'dpmsolver++'?"],
        ),
    ],
)
def test_a_bad_option_is_named_with_its_remedy(
    steer: Tiller, options: list[str], wanted: list[str], tmp_path: Path
) -> None:
    ended = steer("a red cat", *options)
    assert ended.code == 2
    assert ended.out == ""
    for text in wanted:
        assert text in ended.error
    assert not list(tmp_path.glob("out/*")), "nothing was drawn, so no run was started"


@pytest.mark.parametrize("prompt", ["", "  \t ", "\udcff\udcfe"])
def test_a_prompt_without_a_word_or_that_is_no_text_is_refused(steer: Tiller, prompt: str) -> None:
    ended = steer(prompt)
    assert ended.code == 2
    assert "prompt" in ended.error


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("emojii/none of this", "expected a model's folder"),
        ("./no-such-folder", "expected a model's folder"),
        ("model.ckpt", ".safetensors"),
        ("emojii", "Did you mean 'emoji'?"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused(tiller: Tiller, model: str, wanted: str) -> None:
    ended = tiller("steer", "a red cat", "--model", model, "--reward", "brightness")
    assert ended.code == 2
    assert wanted in ended.error


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("import no_such_module_at_all\n", "does not import"),
        ("def score(images:\n", "does not import"),
        ("def other(images):\n    return images.mean((1, 2, 3))\n", "other"),
        ("def score(images):\n    return images.mean()\n", "one score an image"),
        ("def score(images):\n    return images.mean((1, 2, 3)) * float('nan')\n", "finite"),
        ("def score(images):\n    raise KeyError('a\\nb \\x1b[31m')\n", "KeyError"),
    ],
)
def test_a_reward_file_that_does_not_work_is_refused(
    steer: Tiller, tmp_path: Path, source: str, wanted: str
) -> None:
    (tmp_path / "mine.py").write_text(source)
    ended = steer("a red cat", "--reward", f"{tmp_path / 'mine.py'}:score")
    assert ended.code == 2
    assert wanted in ended.error
    assert "\x1b" not in ended.err


def test_a_reward_that_turns_nan_ends_the_run_with_the_best_so_far_kept(
    steer: Tiller, tiller: Tiller, tmp_path: Path
) -> None:
    source = (
        "from pathlib import Path\n"
        "calls = 0\n"
        "def score(images):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    scores = images.mean((1, 2, 3))\n"
        "    down = calls > 8 and not Path(__file__).with_name('up').exists()\n"
        "    return scores * float('nan') if down else scores\n"
    )
    (tmp_path / "later.py").write_text(source)
    ended = steer(
        *("a red cat", "--reward", f"{tmp_path / 'later.py'}:score", "--method", "best_of_n"),
        *("--set", "batch=1", "--budget", "images=40", "--json"),
    )
    assert ended.code == 2
    assert ended.json.keys() == {"error", "run"}
    assert "finite" in ended.json["error"]
    run = Path(ended.json["run"])
    assert (run / "images" / "best.png").is_file()
    assert "tiller resume" in (run / "report.html").read_text()
    (kept,) = [line for line in ended.err.splitlines() if line.startswith("kept: ")]
    assert f"tiller resume {run}" in kept
    (tmp_path / "later.py").write_text("def score(images):\n    return images.mean((1, 2, 3))\n")
    changed = tiller("resume", run, "--budget", "images=10")
    assert changed.code == 2
    assert "later.py has changed since" in changed.error
    assert "kept: " not in changed.err
    (tmp_path / "later.py").write_text(source)
    (tmp_path / "up").touch()
    assert tiller("resume", run, "--budget", "images=10", "--json").code == 0


def test_a_reward_that_exits_is_an_error_like_any_other(steer: Tiller, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\ndef score(images):\n    sys.exit(3)\n")
    ended = steer("a red cat", "--reward", f"{tmp_path / 'mine.py'}:score", "--json")
    assert ended.code == 2
    assert "SystemExit: 3" in ended.json["error"]
    assert "mine.py, line 3" in ended.json["error"]


def test_with_json_an_error_is_the_one_object(steer: Tiller) -> None:
    for options in (["--method", "dnoo"], ["--no-such-option"]):
        ended = steer("a red cat", *options, "--json")
        assert ended.code == 2
        assert ended.json == {"error": ended.error.removeprefix("error: "), "run": None}


def test_an_output_folder_that_is_a_file_is_refused(steer: Tiller, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    ended = steer("a red cat", "--out", tmp_path / "taken")
    assert ended.code == 2
    assert "--out" in ended.error


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a read-only file system")
def test_an_output_folder_that_cannot_be_written_is_refused(steer: Tiller, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    # The superuser may write anywhere but here.
    folder = Path("/proc/self") if os.access(locked, os.W_OK) else locked
    ended = steer("a red cat", "--out", folder / "runs")
    assert ended.code == 2
    assert str(folder) in ended.error


@pytest.mark.parametrize("command", [["resume"], ["report"], ["export", "--to", "png"]])
def test_a_run_that_is_not_there_is_named(
    tiller: Tiller, tmp_path: Path, command: list[str]
) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        ended = tiller(command[0], folder, *command[1:])
        assert ended.code == 2
        assert str(folder) in ended.error


def test_a_run_in_use_is_not_resumed_a_second_time(steer: Tiller, tiller: Tiller) -> None:
    from tiller.runs.store import RunStore

    run = steer("a red cat", "--method", "raw", "--json").json["run"]
    with RunStore.open(run).lock():
        ended = tiller("resume", run, "--budget", "images=2")
    assert ended.code == 2
    assert str(os.getpid()) in ended.error


def test_a_run_of_a_python_reward_is_not_resumed_here(
    tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    from tiller import steer

    result = steer(
        model,
        "a red cat",
        reward=lambda images: images.mean((1, 2, 3)),
        held_out=["darkness"],
        method="raw",
        out=tmp_path,
    )
    ended = tiller("resume", result.run_dir)
    assert ended.code == 2
    assert "reward" in ended.error


@pytest.mark.parametrize("what", ["methods", "rewards"])
def test_an_unknown_name_in_a_listing_gets_a_suggestion(tiller: Tiller, what: str) -> None:
    near = {"methods": "best_of_m", "rewards": "brightnes"}[what]
    ended = tiller(what, near)
    assert ended.code == 2
    assert "Did you mean" in ended.error


def test_an_unknown_command_is_one_clean_line(tiller: Tiller) -> None:
    ended = tiller("stear", "a red cat")
    assert ended.code == 2
    assert ended.error.endswith("Did you mean 'steer'? See `tiller --help`.")


def test_a_budget_that_is_used_up_already_is_refused_and_the_record_stays(
    steer: Tiller, tiller: Tiller
) -> None:
    run = steer("a red cat", "--method", "best_of_n", "--budget", "images=3", "--json").json["run"]
    before = (Path(run) / "run.json").read_bytes()
    ended = tiller("resume", run, "--budget", "images=2")
    assert ended.code == 2
    assert "has used images=3" in ended.error
    assert "larger budget" in ended.error
    assert (Path(run) / "run.json").read_bytes() == before


def test_an_unknown_export_names_those_that_there_are(steer: Tiller, tiller: Tiller) -> None:
    run = steer("a red cat", "--method", "raw", "--json").json["run"]
    for to in ("gif", "a1111"):
        ended = tiller("export", run, "--to", to)
        assert ended.code == 2
        assert "png, prompt, python" in ended.error


class TestOurBugs:
    """Exit code 1 asks for a report; the traceback goes to a file."""

    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tiller.runs.store import RunStore

        def save_best(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("a \x1b[31mbug")

        monkeypatch.setattr(RunStore, "save_best", save_best)

    @pytest.mark.usefixtures("broken")
    def test_the_file_is_named_and_the_screen_has_one_line(self, steer: Tiller) -> None:
        ended = steer("a red cat", "--method", "raw", "--json")
        assert ended.code == 1
        assert r"this is a bug in tiller: ZeroDivisionError: a \x1b[31mbug" in ended.error
        kept = Path(ended.error.split("report it with ")[1].split("; ")[0].split(" and the run")[0])
        assert "Traceback" in kept.read_text()
        kept.unlink()
        assert ended.json["error"] == ended.error.removeprefix("error: ")

    @pytest.mark.usefixtures("broken")
    def test_debugging_shows_the_traceback(
        self, steer: Tiller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TILLER_DEBUG", "1")
        ended: Ended = steer("a red cat", "--method", "raw")
        assert ended.code == 1
        assert "Traceback" in ended.err

    def test_too_little_memory_is_not_a_bug(
        self, steer: Tiller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load_model(*_: Any, **__: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(sys.modules["tiller.api"], "load_model", load_model)
        ended = steer("a red cat")
        assert ended.code == 2
        assert "out of memory" in ended.error
