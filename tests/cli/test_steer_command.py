"""`steer`, `resume`, `report` and `export`: what they print, write and return."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
from ended import Tiller
from PIL import Image

KEYS = ["run", "method", "prompt", "image", "scores", "baseline_scores", "cost", "stopped"]
KEYS += ["probability", "best_prompt", "best_negative_prompt"]  # the others are the design's


def test_json_is_one_object_with_the_contracts_keys_and_a_better_score(steer: Tiller) -> None:
    ended = steer("a red cat", "--method", "dno", "--budget", "steps=4", "--json")
    assert ended.code == 0
    found = ended.json
    assert list(found) == KEYS
    assert (found["method"], found["prompt"]) == ("dno", "a red cat")
    assert found["stopped"] == "budget: steps=4"
    assert found["scores"].keys() == found["baseline_scores"].keys() == {"brightness", "darkness"}
    assert found["scores"]["brightness"] > found["baseline_scores"]["brightness"]
    assert found["cost"]["steps"] == 4
    assert found["cost"]["backwards"] > 0
    with Image.open(found["image"]) as image:
        assert image.size == (16, 16)
    assert (Path(found["run"]) / "report.html").stat().st_size > 1000


def test_without_json_the_table_and_the_next_commands_are_on_stdout(steer: Tiller) -> None:
    ended = steer("a red cat", "--method", "dno", "--budget", "steps=2")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["reward", "baseline", "best", "change"]
    assert lines[1].split()[0] == "brightness"
    assert lines[2].split()[0] == "darkness"
    assert lines[2].endswith("held out")
    for wanted in ("report.html", "best.png", "tiller report ", "--to python", "--budget steps=4"):
        assert wanted in ended.out
    assert "step 2/2" in ended.err
    assert "brightness" in ended.err
    assert "darkness" in ended.err


def test_quiet_says_nothing_on_stderr(steer: Tiller) -> None:
    ended = steer("a red cat", "--method", "raw", "--quiet")
    assert ended.code == 0
    assert ended.err == ""
    assert "tiller report" in ended.out
    assert "tiller resume" not in ended.out, "raw has nothing to go on with"


def test_a_models_precision_is_asked_for_and_kept_for_resume(steer: Tiller, tiller: Tiller) -> None:
    ended = steer(
        "a red cat", "--method", "dno", "--dtype", "float64", "--budget", "steps=1", "--json"
    )
    assert ended.code == 0, ended.err
    folder = Path(ended.json["run"])
    assert (
        json.loads((folder / "run.json").read_text())["spec"]["model_options"]["dtype"] == "float64"
    )
    again = tiller("resume", folder, "--budget", "steps=2", "--json")
    assert again.json["cost"]["steps"] == 2
    refused = steer("a red cat", "--dtype", "half8")
    assert refused.code == 2
    assert "dtype must be float32, float16, bfloat16 or float64, got 'half8'" in refused.err


def test_rewards_that_know_the_bundled_models_scenes_alone_are_told(steer: Tiller) -> None:
    """Another model's pictures mean nothing to them; a pixel reward knows any picture."""
    ended = steer("a red cat", "--method", "raw", "--held-out", "clip")
    assert ended.code == 0, ended.err
    assert "notice: clip: trained on the bundled model's 64x64 emoji scenes" in ended.err
    assert "--reward clip:openai/clip-vit-large-patch14" in ended.err
    assert "emoji scenes" not in steer("a red cat", "--method", "raw").err


def test_auto_says_what_it_picked(steer: Tiller) -> None:
    ended = steer("a red cat", "--budget", "steps=1", "--json")
    assert ended.json["method"] == "dno"
    assert "--method auto picked dno" in ended.err


def test_settings_rewards_and_the_negative_prompt_reach_the_run(
    tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    ended = tiller(
        *("steer", "a red cat", "--model", model, "--out", tmp_path, "--json", "--seed", "7"),
        *("--reward", "brightness:2", "--reward", "colour:red", "--held-out", "jpeg"),
        *("--held-out", "darkness", "--method", "dno", "--budget", "steps=1,seconds=100"),
        *("--set", "num_inference_steps=2", "--set", "lr=0.5", "--set", "eta=0"),
        *("--negative", "blurred"),
    )
    assert ended.code == 0
    assert ended.json["scores"].keys() == {"brightness", "colour:red", "jpeg", "darkness"}
    spec = json.loads((Path(ended.json["run"]) / "run.json").read_text())["spec"]
    assert spec["negative_prompt"] == "blurred"
    assert spec["seed"] == 7
    assert spec["budget"] == "steps=1,seconds=100"
    assert "0.5" in json.dumps(spec["method"])


def test_whatever_a_reward_prints_or_warns_stays_off_stdout(steer: Tiller, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os, sys, warnings\n"
        "def score(images):\n"
        "    print('from python')\n"
        "    os.system('echo from a child process')\n"
        "    warnings.warn('two\\nlines \\x1b[31mred', UserWarning)\n"
        "    return images.mean(dim=(1, 2, 3))\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        ended = steer(
            *("a red cat", "--reward", f"{tmp_path / 'loud.py'}:score", "--json"),
            *("--method", "best_of_n", "--budget", "images=2"),
        )
    assert ended.code == 0
    assert ended.json["scores"].keys() >= {"loud.py:score"}
    assert "from python" in ended.err
    assert "from a child process" in ended.err
    assert ended.err.count(r"notice: two lines \x1b[31mred") == 1
    assert "\x1b" not in ended.err


def test_resume_goes_on_with_a_larger_budget_as_one_run_would(
    steer: Tiller, tiller: Tiller
) -> None:
    short = steer("a red cat", "--method", "dno", "--budget", "steps=2", "--json").json
    whole = steer("a red cat", "--method", "dno", "--budget", "steps=5", "--json").json
    longer = tiller("resume", short["run"], "--budget", "steps=5", "--json")
    assert longer.code == 0
    assert longer.json["run"] == short["run"]
    assert longer.json["scores"] == whole["scores"]
    assert longer.json["stopped"] == "budget: steps=5"
    assert Path(longer.json["image"]).read_bytes() == Path(whole["image"]).read_bytes()


def test_a_finished_run_is_shown_again_and_that_is_said(steer: Tiller, tiller: Tiller) -> None:
    first = steer("a red cat", "--method", "best_of_n", "--budget", "images=2", "--json")
    assert "nothing was left to do" not in first.err
    for options in ([], ["--budget", "images=2"]):
        again = tiller("resume", first.json["run"], *options, "--json")
        assert again.code == 0
        assert again.json == first.json
        assert "nothing was left to do" in again.err


def test_report_takes_runs_or_the_newest_of_a_folder_of_runs(
    steer: Tiller, tiller: Tiller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = steer("a red cat", "--method", "raw", "--json").json["run"]
    second = steer("a blue dog", "--method", "raw", "--json").json["run"]
    (Path(second) / "report.html").unlink()
    newest = tiller("report", tmp_path / "out", "--json")
    assert newest.code == 0
    assert newest.json == {"report": str(Path(second) / "report.html"), "runs": [second]}
    assert "taking the newest" in newest.err
    assert "a blue dog" in (Path(second) / "report.html").read_text()
    monkeypatch.chdir(tmp_path)
    both = tiller("report", first, second)
    assert both.code == 0
    assert both.out.splitlines()[-1] == "report: report.html"
    page = (tmp_path / "report.html").read_text()
    assert "a red cat" in page
    assert "a blue dog" in page
    inside = tiller("report", first, second, "--out", tmp_path / "out")
    assert inside.code == 0
    assert (tmp_path / "out" / "report.html").read_text() == page
    lines = [line for line in inside.out.splitlines() if "brightness" in line]
    assert lines[0].index("brightness") < lines[0].index("darkness"), "what was optimized first"


def test_export_writes_files_or_prints_the_words(
    steer: Tiller, tiller: Tiller, tmp_path: Path
) -> None:
    run = steer("a red cat", "--method", "raw", "--json", "--negative", "blurred").json["run"]
    words = tiller("export", run, "--to", "prompt")
    assert words.out.splitlines()[0] == "a red cat"
    assert "blurred" in words.out
    picture = tiller("export", run, "--to", "png", "--out", tmp_path / "here", "--json").json
    with Image.open(picture["path"]) as image:
        assert "parameters" in image.text  # type: ignore[attr-defined]  # PNG files have it
    assert Path(picture["path"]).parent == tmp_path / "here"
    script = tiller("export", run, "--to", "python", "--json").json
    assert "tiller" not in Path(script["path"]).read_text().split('"""')[2]
    assert script["text"] == Path(script["path"]).read_text()
    printed = tiller("export", run, "--to", "python")
    assert printed.out == script["text"]
    assert "run it with: python" in printed.err


def test_a_prompt_of_500_words_is_drawn_with_a_notice(steer: Tiller) -> None:
    ended = steer(" ".join(["rabbit"] * 500), "--method", "raw", "--json")
    assert ended.code == 0
    assert ended.json["prompt"].count("rabbit") == 500
    assert all(math.isfinite(score) for score in ended.json["scores"].values())
    assert "notice: " in ended.err


@pytest.mark.parametrize(
    "prompt", ["🐇👩‍👩‍👧 ❤️ 🇩🇪", "a \x1b[31mred\x1b[0m\x07 cat\r\nrm\t\x9b2J", "猫 \u202e tac"]
)
def test_strange_characters_are_drawn_and_never_reach_the_terminal_raw(
    steer: Tiller, tiller: Tiller, prompt: str
) -> None:
    ended = steer(prompt, "--method", "raw", "--json")
    assert ended.code == 0
    assert ended.json["prompt"] == prompt
    words = tiller("export", ended.json["run"], "--to", "prompt")
    for text in (ended.out, ended.err, words.out):
        assert not set(text) & set("\x1b\x07\r\t\x9b\u202e")
    plain = steer(prompt, "--method", "raw")
    assert not set(plain.out + plain.err) & set("\x1b\x07\r\t\x9b\u202e")


def test_steering_needs_no_options_but_a_prompt_and_a_model(
    tiller: Tiller, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--reward", "brightness", "--held-out", "darkness", "--budget", "steps=1"]
    ended = tiller("steer", "a red cat", "--model", model, *options, "--json")
    assert ended.code == 0
    assert Path(ended.json["run"]).parent == tmp_path / "runs"
