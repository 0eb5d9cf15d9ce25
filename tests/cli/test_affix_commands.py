"""`tiller affix`, `--affix` and `tiller resume` of a training, as a shell sees them."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ended import Tiller
from PIL import Image
from safetensors.torch import save_file

from tiller.methods._affix_files import load_affixes
from tiller.models.loader import load_model
from tiller.models.trajectory import Trajectory
from tiller.runs.png import to_image
from tiller.spaces.insertion import Words
from tiller.testing.fake_pipeline import (
    fake_lcm_pipeline,
    fake_pipeline,
    save_fake_pipeline,
    save_fake_sdxl_pipeline,
)

PROMPTS = "a red cat\na dog\nan owl\na blue dog\na pig\n"
REWARDS = ["--reward", "brightness", "--held-out", "darkness"]
SMALL = ["--set", "num_inference_steps=2", "--set", "rank=3", "--set", "prefix=2"]


def train(folder: Path, model: Path, *more: str) -> list[str]:
    (folder / "prompts.txt").write_text(PROMPTS)
    files = [str(folder / "prompts.txt"), "--out", str(folder / "a.safetensors")]
    common = ["--model", str(model), "--runs", str(folder / "runs"), *REWARDS, *SMALL]
    return ["affix", "train", *files, *common, "--batch", "2", "--epochs", "2", *more]


def asked(tiller: Tiller, *arguments: str) -> dict[str, Any]:
    ended = tiller(*arguments, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def ran(script: Path, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")


def pixels(path: Path | str) -> Any:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture
def file(tiller: Tiller, model: Path, tmp_path: Path) -> Path:
    """An affix trained on three of the five prompts."""
    asked(tiller, *train(tmp_path, model, "--hold-out", "0.4", "--epochs", "1"))
    return tmp_path / "a.safetensors"


def test_training_answers_with_the_file_and_what_it_does_for_unseen_prompts(
    tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    answer = asked(tiller, *train(tmp_path, model, "--hold-out", "0.4"))
    assert answer["file"] == str(tmp_path / "a.safetensors")
    assert answer["cost"]["images"] == 6, "three prompts, twice; two are held back"
    assert answer["scores"].keys() == {"brightness", "darkness"}
    found = answer["unseen"]["brightness"]
    assert found["gain"]["value"] == pytest.approx(
        answer["scores"]["brightness"] - answer["baseline_scores"]["brightness"], abs=1e-6
    )
    assert found["wins"].keys() == {"value", "low", "high"}
    page = (Path(answer["run"]) / "report.html").read_text()
    assert "tiller affix train" in page
    shown = asked(tiller, "affix", "show", answer["file"])
    assert (shown["prefix"], shown["suffix"], shown["prompts"]) == (2, 10, 3)
    again = asked(tiller, "resume", answer["run"])
    assert again["unseen"] == answer["unseen"], "it is over: the same answer"
    more = asked(tiller, "resume", answer["run"], "--budget", "steps=6")
    assert more["stopped"] == "budget: steps=6"
    refused = tiller("export", answer["run"], "--to", "python")
    assert refused.code == 2
    assert "tiller affix export FILE" in refused.err
    assert "a.safetensors" in refused.err


def test_a_precision_may_be_asked_for_and_a_typing_error_does_not_wait_for_the_model(
    tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    answer = asked(tiller, *train(tmp_path, model, "--hold-out", "0", "--dtype", "float64"))
    spec = json.loads((Path(answer["run"]) / "run.json").read_text())["spec"]
    assert spec["model_options"]["dtype"] == "float64"
    for wrong in ("--set", "rnak=3"), ("--reward", "brihgtness"):
        refused = tiller(*train(tmp_path, Path("no/such-model"), *wrong))
        assert refused.code == 2
        assert wrong[1].split("=")[0] in refused.err
        assert "no/such-model" not in refused.err


def test_people_get_a_table_and_the_next_command(
    tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "others.txt").write_text("a fox\n")
    ended = tiller(*train(tmp_path, model, "--unseen", str(tmp_path / "others.txt")))
    assert ended.code == 0, ended.err
    for text in ("brightness", "gain", "--affix", "budget: steps=6"):
        assert text in ended.out
    assert "[" not in ended.out, "one prompt has no interval"
    assert "1 unseen prompts in" in ended.err
    assert "there is no interval over them; give 5 or more" in " ".join(ended.err.split())
    assert "drawing 1 unseen prompts" in ended.err
    assert "step 6/6" in ended.err
    assert ", about " in ended.err


def test_one_unseen_prompt_gets_values_and_no_intervals(
    tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    answer = asked(tiller, *train(tmp_path, model, "--epochs", "1"))
    assert all(one.keys() == {"value"} for one in answer["unseen"]["brightness"].values())


def test_an_affix_goes_with_a_learned_word(
    tiller: Tiller, model: Path, file: Path, tmp_path: Path
) -> None:
    word = tmp_path / "owl.safetensors"
    save_file({"<owl>": torch.ones(16)}, word)
    words = ["steer", "a <owl>", "--method", "raw", "--model", str(model), *REWARDS]
    words += ["--set", "num_inference_steps=2", "--out", str(tmp_path / "out")]
    runs = [
        asked(tiller, *words, "--concept", str(word), *more)
        for more in ([], ["--affix", str(file)])
    ]
    assert len({Path(run["image"]).read_bytes() for run in runs}) == 2


def test_an_export_replaces_nothing_that_is_not_its_own(
    tiller: Tiller, file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    words = ["affix", "export", str(file), "--to", "diffusers", "--out", str(folder)]
    script = Path(asked(tiller, *words)["path"])
    asked(tiller, *words)
    for there in (script, folder / file.name):
        kept = there.read_bytes()
        there.write_bytes(kept + b"#")
        refused = tiller(*words)
        assert refused.code == 2
        assert f"{there.name} is there already and says something else" in refused.error
        assert there.read_bytes() == kept + b"#"
        there.write_bytes(kept)


def test_every_held_out_reward_is_looked_at_and_few_prompts_are_a_word_worth(
    tiller: Tiller, model: Path, tmp_path: Path
) -> None:
    arguments = train(tmp_path, model, "--held-out", "jpeg", "--epochs", "1", "--json")
    ended = tiller(*arguments)
    assert json.loads(ended.out)["scores"].keys() == {"brightness", "darkness", "jpeg"}
    assert "1 of 5 prompts held back" in ended.err
    none = tiller(*arguments, "--hold-out", "0", "--out", str(tmp_path / "b.safetensors"))
    assert "held back" not in none.err, "that was asked for"


def test_any_method_draws_within_the_affix_and_its_script_redraws_it(
    tiller: Tiller, file: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--model", str(model), *REWARDS, "--set", "num_inference_steps=2"]
    plain = ["steer", "a red cat", *common, "--out", str(tmp_path / "out"), "--method", "raw"]
    runs = [
        asked(tiller, *plain, *more)
        for more in ([], ["--affix", str(file)], ["--affix", f"{file}:0.5", "--affix", str(file)])
    ]
    assert len({Path(run["image"]).read_bytes() for run in runs}) == 3
    assert len({json.dumps(run["baseline_scores"]) for run in runs}) == 1
    asked(tiller, "export", runs[2]["run"], "--to", "python")
    script = Path(runs[2]["run"]) / "exports" / "python" / "redraw.py"
    ran(script, [], monkeypatch)
    assert np.abs(pixels(script.with_name("best.png")) - pixels(runs[2]["image"])).max() <= 1


@pytest.mark.parametrize("saved", [save_fake_pipeline, save_fake_sdxl_pipeline], ids=["sd", "xl"])
def test_a_steered_affix_is_redrawn_in_plain_diffusers(
    saved: Callable[[Path], Path], tiller: Tiller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path / "model")
    words = ["steer", "a red cat", "--method", "ipgo", "--model", str(model), *REWARDS, *SMALL]
    words += ["--budget", "steps=4", "--set", "lr=0.2", "--set", "gamma=0"]
    run = asked(tiller, *words, "--out", str(tmp_path))
    assert run["scores"]["brightness"] > run["baseline_scores"]["brightness"]
    asked(tiller, "export", run["run"], "--to", "python")
    script = Path(run["run"]) / "exports" / "python" / "redraw.py"
    assert "prompt_embeds" in script.read_text()
    for to, says in (("a1111", "before the text encoder"), ("diffusers", "take --to python")):
        refused = tiller("export", run["run"], "--to", to)
        assert refused.code == 2
        assert says in " ".join(refused.err.split())
    ran(script, [], monkeypatch)
    assert np.abs(pixels(script.with_name("best.png")) - pixels(run["image"])).max() <= 1


def halved(folder: Path) -> Path:
    """Weights in half precision on the disk, as the bundled model's are."""
    fake_pipeline().to(torch.float16).save_pretrained(folder)
    return folder


def consistent(folder: Path) -> Path:
    fake_lcm_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "saved",
    [save_fake_pipeline, save_fake_sdxl_pipeline, halved, consistent],
    ids=["sd", "xl", "half", "lcm"],
)
def test_the_exported_script_draws_any_prompt_with_the_affix(
    saved: Callable[[Path], Path], tiller: Tiller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the trajectory draws it here, from the noise of the script's seed.

    The model and the sampling are by default those of the training, wherever the script is run,
    and whatever the file is called.
    """
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "model")
    file = tmp_path / 'a """\\N.safetensors'
    own = ["--set", "scheduler=ddim", "--set", "guidance_scale=2", "--epochs", "1"]
    asked(tiller, *train(tmp_path, Path("model"), *own, "--out", str(file)))
    folder = tmp_path / "elsewhere"
    found = asked(tiller, "affix", "export", str(file), "--to", "diffusers", "--out", str(folder))
    monkeypatch.chdir(folder)
    options = ["--seed", "4", "--device", "cpu"]
    ran(Path(found["path"]), ["a fox", "--weight", "0.5", *options], monkeypatch)
    loaded = load_model(str(tmp_path / "model"))
    (affix,) = load_affixes(f"{file}:0.5", loaded)
    words = Words.of(loaded.encode(["a fox"]), *loaded.token_counts(["a fox"]))
    settings = replace(loaded.defaults, num_inference_steps=2, guidance_scale=2.0, scheduler="ddim")
    path = Trajectory(loaded, settings)
    noise = torch.randn(path.noise_shape[1:], generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        picture = loaded.decode(path.run(noise[None, None], words.conditioning(affix)))
    drawn = pixels(folder / "affixed.png")
    assert np.abs(drawn - np.asarray(to_image(picture)).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["steer", "x", "--affix", "none.safetensors"], "cannot read the affix"),
        (["steer", "x", "--affix", "prompts.txt"], "damaged or no safetensors file"),
        (["steer", "x", "--affix", "a.safetensors:0"], "weight must be positive"),
        (["steer", "x", "--affix", "a,b.safetensors"], "a comma in an affix's path"),
        (["affix", "export", "a.safetensors", "--to", "a1111"], "before the text encoder"),
        (["affix", "export", "a.safetensors", "--to", "comfyui"], "use --to diffusers"),
        (["affix", "export", "a.safetensors", "--to", "webui"], "unknown target"),
        (["affix", "train", "none.txt"], "cannot read the prompts"),
        (["affix", "train", "prompts.txt", "--set", "lr=-1"], "lr must be positive"),
        (["affix", "train", "prompts.txt", "--set", "patience=2"], "got patience=2; leave it out"),
        (["affix", "train", "prompts.txt", "--held-out", "clip"], "clip cannot be held out"),
        (["affix", "train", "prompts.txt", "--out", "."], "is a folder, expected a file"),
    ],
    ids=[
        "missing", "text", "zero", "comma", "a1111", "comfyui", "webui", "prompts", "lr",
        "patience", "held-out", "out",
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str],
    says: str,
    tiller: Tiller,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    from tiller.methods._affix_files import encode_affix
    from tiller.spaces.affixes import Affix

    tokens = torch.ones(1, 2, 16)
    data = encode_affix(Affix(tokens, tokens), load_model(str(model)), {})
    (tmp_path / "a.safetensors").write_bytes(data)
    more = [] if arguments[:2] == ["affix", "export"] else ["--model", str(model)]
    ended = tiller(*arguments, *more)
    assert ended.code == 2
    assert says in " ".join(ended.err.split())
    assert len([line for line in ended.err.splitlines() if line.startswith("error:")]) == 1
