"""`concept learn`, `draw`, `convert`, `evaluate`: what they print, write and return."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ended import Ended, Tiller
from PIL import Image, ImageChops
from safetensors.torch import load_file

from tiller.commands.concept_view import ConceptLine
from tiller.concepts.run import Progress

SMALL = ["--init", "x", "--set", "popsize=4", "--set", "check_every=1", "--set", "preview_every=2"]
SMALL += ["--set", "held_out_draws=2", "--set", "draws=2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i, ground in enumerate(("white", "gray", "yellow")):
        image = Image.new("RGB", (20 + 10 * i, 24), ground)
        image.paste((200, 30, 60), (4, 4, 14, 16))
        image.save(folder / f"{i}.png")
        paths.append(folder / f"{i}.png")
    return paths


@pytest.fixture(scope="module")
def steps(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake model, which draws in two steps."""
    own = shutil.copytree(model, tmp_path_factory.mktemp("concept") / "fake")
    (own / "defaults.json").write_text(json.dumps({"num_inference_steps": 2}))
    return own


@pytest.fixture
def learn(tiller: Tiller, steps: Path, photos: list[Path], tmp_path: Path) -> Callable[..., Ended]:
    def run(*options: object, token: str = "<duck>", given: list[Path] | None = None) -> Ended:
        pictures = photos if given is None else given
        common = ["--model", steps, "--out", tmp_path / "runs", "--budget", "steps=2", *SMALL]
        return tiller("concept", "learn", *pictures, "--token", token, *common, *options)

    return run


def test_learn_prints_one_object_and_leaves_a_page(
    learn: Callable[..., Ended], photos: list[Path]
) -> None:
    ended = learn("--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert (found["token"], found["method"]) == ("<duck>", "gfti")
    assert found["stopped"] == "budget: steps=2"
    assert found["cost"]["forwards"] == 2 * 4 * 2
    assert found["aside"] == (1 + 2 + 2 + 2) * 2  # e0, two looks at two, the report at two
    assert (found["began"], found["vectors"]) == (["x"], 1)
    assert list(load_file(found["file"])) == ["<duck>"]
    assert all(Path(path).is_file() for path in found["images"])
    page = Path(found["report"]).read_text()
    assert "&lt;duck&gt;" in page
    assert all(path.name in page for path in photos)
    assert "centre crop, 40% cut off" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/") >= len(photos) + 4
    assert "Denoising loss on trials that chose nothing" in page
    assert "Forwards aside" in page
    assert "--crop" not in page


def test_the_page_names_what_was_lowered_and_repeats_the_crop(
    learn: Callable[..., Ended], photos: list[Path]
) -> None:
    drawn = ["--set", "loss=drawn", "--set", "clip=emoji", "--set", "sketch_steps=1"]
    ended = learn("--json", "--crop", "pad", "--background", "#ff8800", *drawn, given=photos[:1])
    assert ended.code == 0, ended.err
    page = Path(ended.json["report"]).read_text()
    assert "Drawn loss on trials that chose nothing" in page
    assert "Denoising loss" not in page
    assert "--crop pad --background &#39;#ff8800&#39;" in page
    assert "from 1 picture," in page
    card = (Path(ended.json["run"]) / "README.md").read_text()
    assert "learned from 1 picture:" in card
    assert ended.json["cost"]["images"] == 2 * 4 * 2


def test_without_json_people_see_the_files_and_what_to_do_next(
    learn: Callable[..., Ended], tiller: Tiller
) -> None:
    ended = learn("--method", "ti")
    assert ended.code == 2
    assert "unknown field of method ti 'popsize'" in ended.err
    ended = learn()
    assert ended.code == 0
    for wanted in (
        "token    <duck>",
        "began    at x · 1 vector",
        "aside    14 forwards",
        "learned_embeds.safetensors",
        "report.html",
        "tiller concept draw",
    ):
        assert wanted in ended.out
    assert "held-out loss" in ended.err
    assert "round 2/2" in ended.err
    assert "pictures: 3 · choosing where to begin" in ended.err
    assert "run · " in ended.err
    assert re.search(r"drawn · .*sample-0002-1\.png, .*sample-0002-2\.png", ended.err)
    assert learn("--quiet").err == ""


def test_a_second_ctrl_c_says_how_to_go_on(
    learn: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(line: ConceptLine, progress: Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ConceptLine, "update", press)
    ended = learn("--json")
    assert ended.code == 130
    assert "the best so far is kept. Go on with: tiller resume " in ended.err
    assert Path(ended.json["run"], "learned_embeds.safetensors").is_file()


def test_resume_and_report_know_a_concepts_run(
    learn: Callable[..., Ended], tiller: Tiller, tmp_path: Path
) -> None:
    run = learn("--json").json["run"]
    longer = tiller("resume", run, "--budget", "steps=3", "--json")
    assert longer.code == 0, longer.err
    assert longer.json["run"] == run
    assert longer.json["cost"]["steps"] == 3
    shown = tiller("report", run, "--json")
    assert shown.code == 0
    assert Path(shown.json["report"]).is_file()
    both = tiller("report", run, run, "--out", tmp_path / "both.html")
    assert both.code == 2
    assert "compares pictures that were steered" in both.err
    for to in ("diffusers", "a1111", "comfyui", "python"):
        ended = tiller("export", run, "--to", to)
        assert ended.code == 2
        assert "`tiller concept convert RUN --to diffusers`" in ended.err
    assert tiller("export", run, "--to", "png").code == 0
    (Path(run) / "space.safetensors").unlink()
    cut = tiller("resume", run)
    assert cut.code == 2
    assert "was cut off before its search began; learn it again" in cut.err


def test_draw_writes_pictures_that_say_how_they_were_made(
    learn: Callable[..., Ended], tiller: Tiller, tmp_path: Path
) -> None:
    run = learn("--json").json["run"]
    (tmp_path / "second").mkdir()
    shutil.copy(f"{run}/learned_embeds.safetensors", tmp_path / "second")
    ended = tiller(
        *("concept", "draw", "a <duck> and <two>", "--concept", run, "-n", "2", "--seed", "5"),
        *("--concept", f"{tmp_path / 'second'}=<two>", "--out", tmp_path / "drawn", "--json"),
    )
    assert ended.code == 0, ended.err
    names = [Path(path).name for path in ended.json["images"]]
    assert names == ["a-duck-and-two-5.png", "a-duck-and-two-6.png"]
    assert "notice: 1/2: " in ended.err
    with Image.open(ended.json["images"][0]) as image:
        parameters = image.text["parameters"]  # type: ignore[attr-defined]  # PNG files have it
    assert "a <duck> and <two>" in parameters
    assert "Seed: 5" in parameters
    again = tiller(
        "concept", "draw", "a <duck> and <two>", "--concept", run, "--seed", "6",
        "--concept", f"{tmp_path / 'second'}=<two>", "--out", tmp_path / "again", "--json",
    )  # fmt: skip
    assert Path(again.json["images"][0]).read_bytes() == Path(ended.json["images"][1]).read_bytes()


def test_another_picture_of_the_same_name_is_kept(
    learn: Callable[..., Ended], tiller: Tiller, steps: Path, tmp_path: Path
) -> None:
    run = learn("--json").json["run"]

    def draw(prompt: str) -> str:
        common = ["--concept", run, "--model", steps, "--out", tmp_path / "drawn", "--json"]
        return Path(tiller("concept", "draw", prompt, *common).json["images"][0]).name

    names = [draw(prompt) for prompt in ("a <duck>", "a duck", "a <duck>", "a Duck!")]
    assert names == ["a-duck-0.png", "a-duck-0-2.png", "a-duck-0.png", "a-duck-0-3.png"]


def test_a_seed_that_no_picture_can_have_is_refused(
    learn: Callable[..., Ended], tiller: Tiller, tmp_path: Path
) -> None:
    ended = learn("--seed", 1 << 64)
    assert ended.code == 2
    assert "the seed of a picture lies between -2^63 and 2^64" in ended.err
    assert not (tmp_path / "runs").exists()
    run = learn("--json").json["run"]
    for command in (["draw", "a <duck>", "--concept", run], ["evaluate", run, "--clip", "emoji"]):
        ended = tiller("concept", *command, "--seed", 1 << 64)
        assert ended.code == 2
        assert "the seed of a picture" in ended.err


def test_clashes_and_words_that_are_not_named(
    learn: Callable[..., Ended], tiller: Tiller, tmp_path: Path, steps: Path
) -> None:
    run = learn("--json").json["run"]
    twice = tiller("concept", "draw", "a <duck>", "--concept", run, "--concept", run)
    assert twice.code == 2
    assert "two concepts use the token '<duck>'" in twice.err
    named = tiller("concept", "draw", "a cat", "--concept", run, "--out", tmp_path / "drawn")
    assert named.code == 0
    assert "the prompt names none of <duck>" in named.err
    kept = tiller(
        *("concept", "draw", "a cat", "--negative", "a <DUCK>!", "--concept", run),
        *("--out", tmp_path / "drawn"),
    )
    assert "names none" not in kept.err
    other = tiller("concept", "draw", "a <duck>", "--concept", run, "--model", "emoji")
    assert other.code == 2
    assert "it was learned for another model" in other.err
    odd = tiller("concept", "draw", "a <duck>", "--concept", run, "--set", "steps=3")
    assert odd.code == 2
    assert "unknown field of the sampler 'steps'" in odd.err


def test_convert_writes_what_others_read(
    learn: Callable[..., Ended], tiller: Tiller, tmp_path: Path
) -> None:
    run = learn("--json").json["run"]
    ended = tiller("concept", "convert", run, "--to", "a1111", "--json")
    assert ended.code == 0, ended.err
    (file,) = ended.json["files"]
    assert Path(file) == Path(run) / "a1111" / "duck.safetensors"
    assert list(load_file(file)) == ["emb_params"]
    back = tiller(
        *("concept", "convert", file, "--to", "diffusers", "--token", "<goose>"),
        *("--out", tmp_path / "back", "--json"),
    )
    assert list(load_file(back.json["files"][0])) == ["<goose>"]
    wrong = tiller("concept", "convert", run, "--to", "onnx")
    assert wrong.code == 2
    assert "unknown format 'onnx'; expected one of diffusers, a1111, comfyui" in wrong.err


def test_evaluate_takes_the_runs_own_pictures(learn: Callable[..., Ended], tiller: Tiller) -> None:
    run = learn("--json").json["run"]
    ended = tiller(
        *("concept", "evaluate", run, "--images", "1", "--clip", "emoji", "--word", "x", "--json")
    )
    assert ended.code == 0, ended.err
    assert ended.json["concept"]["token"] == "<duck>"
    assert ended.json["words"][0]["token"] == "x"
    assert -1 <= ended.json["concept"]["reconstruction"] <= 1
    assert ended.err.splitlines()[:1] == ["notice: 1/18: drawing 1 of 'a photo of <duck>'"]
    for option, value, message in (
        ("--clip", "/nowhere", "cannot load the CLIP model '/nowhere'"),
        ("--word", "", "expected a word to compare with"),
    ):
        wrong = tiller(
            "concept", "evaluate", run, "--images", "1", "--clip", "emoji", option, value
        )
        assert wrong.code == 2
        assert message in wrong.err
        assert "drawing" not in wrong.err  # minutes of it, on a real model
    bare = tiller("concept", "evaluate", f"{run}/learned_embeds.safetensors", "--images", "1")
    assert bare.code == 2
    assert "expected the pictures that learned_embeds.safetensors was learned from" in bare.err


def test_a_steered_picture_may_name_a_concept_and_be_resumed(
    learn: Callable[..., Ended],
    tiller: Tiller,
    steps: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = learn("--set", "tokens=2", "--json").json["run"]
    common = ["--reward", "brightness", "--held-out", "darkness", "--method", "best_of_n"]
    common += ["--model", steps, "--out", tmp_path / "out", "--budget", "images=2", "--json"]
    taught = tiller("steer", "a <duck>", "--concept", run, *common)
    assert taught.code == 0, taught.err
    plain = tiller("steer", "a <duck>", *common)
    assert taught.json["scores"] != plain.json["scores"]
    assert "names none" not in taught.err
    assert "another word" not in taught.err
    capital = tiller("steer", "a <Duck>", "--concept", run, *common)
    assert "notice: of <Duck> diffusers would read another word; write <duck>" in capital.err
    unnamed = tiller("steer", "a cat", "--concept", run, *common)
    assert "notice: the prompt names none of <duck>: 'a cat'" in unnamed.err
    script = Path(tiller("export", taught.json["run"], "--to", "python", "--json").json["path"])
    monkeypatch.setattr("sys.argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")  # plain diffusers, which knows no <duck>
    with (
        Image.open(script.with_name("best.png")) as again,
        Image.open(taught.json["image"]) as best,
    ):
        difference = ImageChops.difference(again.convert("L"), best.convert("L")).getextrema()
    assert difference in ((0, 0), (0, 1))  # 8 bits: at the edge of two values it may fall to either
    longer = tiller("resume", taught.json["run"], "--budget", "images=4", "--json")
    assert longer.code == 0, longer.err
    assert longer.json["cost"]["images"] == 4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"token": "a"}, "is a word that the model knows"),
        ({"token": ""}, "a concept needs a token"),
        ({"token": "my duck"}, "no blanks"),
    ],
)
def test_bad_tokens_are_one_line(
    bad: dict[str, str], message: str, learn: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = learn(**bad)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_bad_pictures_are_one_line_and_can_be_left_out(
    learn: Callable[..., Ended], photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "paper.png").write_bytes(b"%PDF-1.4")
    given = [*photos, tmp_path / "empty.png", tmp_path / "paper.png"]
    ended = learn(given=given)
    assert ended.code == 2
    assert ended.err.strip() == (
        "error: 2 of 5 pictures cannot be used: empty.png: is empty (0 bytes); paper.png: is a "
        "PDF, expected a picture (PNG, JPEG, WEBP, GIF, BMP, TIFF, ...); put them right, or leave "
        "them out with --skip-broken"
    )
    ended = learn("--skip-broken", "--json", given=given)
    assert ended.code == 0, ended.err
    assert "notice: left out: empty.png: is empty (0 bytes)" in ended.err
    spec = json.loads((Path(ended.json["run"]) / "run.json").read_text())["spec"]
    assert [item["name"] for item in spec["pictures"]] == [path.name for path in photos]
    assert len(spec["left_out"]) == 2
    assert "Left out: empty.png" in Path(ended.json["report"]).read_text()


@pytest.mark.parametrize("name", ["gfti", "ti"])
def test_the_methods_fields_are_shown_by_name(tiller: Tiller, name: str) -> None:
    found = tiller("methods", name, "--json").json
    named = {row["name"] for row in found["fields"]}
    assert {"draws", "patience", "lr" if name == "ti" else "projection"} <= named
    assert all(row["doc"] for row in found["fields"])
    assert "tiller concept learn" in found["example"]


def test_a_concepts_model_is_known_to_its_run_and_named_by_others(
    learn: Callable[..., Ended], tiller: Tiller, steps: Path, tmp_path: Path
) -> None:
    run = Path(learn("--json").json["run"])
    own = run / "learned_embeds.safetensors"
    assert str(steps).encode() not in own.read_bytes()
    for file in (run, own):  # the run's record says where the model lies
        drawn = tiller("concept", "draw", "a <duck>", "--concept", file, "--out", tmp_path / "d")
        assert drawn.code == 0, drawn.err
    shared = shutil.copytree(run, tmp_path / "shared")
    (shared / "run.json").unlink()
    bare = tiller("concept", "draw", "a <duck>", "--concept", shared)
    assert bare.code == 2
    assert "the file of <duck> names no model that it was learned on" in bare.err
    assert "name it: --model MODEL" in bare.err
    record = (run / "run.json").read_text()
    (shared / "run.json").write_text(record.replace(str(steps), str(tmp_path / "gone")))
    gone = tiller("concept", "evaluate", shared, "--images", "1", "--clip", "emoji")
    assert gone.code == 2
    assert f"<duck> was learned on '{tmp_path / 'gone'}', says shared, and that cannot" in gone.err
    assert "Name the model: --model MODEL" in gone.err
    assert len(gone.err.strip().splitlines()) == 1


def test_evaluate_crops_as_the_run_did(
    learn: Callable[..., Ended], tiller: Tiller, photos: list[Path], tmp_path: Path
) -> None:
    run = learn("--json", "--crop", "pad", "--background", "#ff8800").json["run"]
    (tmp_path / "empty.png").write_bytes(b"")

    def measured(*options: object) -> float:
        common = ["--images", "1", "--clip", "emoji", "--quiet", "--json"]
        ended = tiller("concept", "evaluate", run, *options, *common)
        assert ended.code == 0, ended.err
        assert ("left out: empty.png" in ended.err) == ("--skip-broken" in options)
        return float(ended.json["concept"]["reconstruction"])

    cropped = measured()
    assert measured(*photos) == cropped
    assert measured(*photos, tmp_path / "empty.png", "--skip-broken") == cropped
    assert measured(*photos, "--crop", "centre") != cropped
    assert measured(*photos, "--background", "blue") != cropped


def test_a_home_folder_and_a_token_of_the_shells_are_taken_as_they_are(
    learn: Callable[..., Ended], tiller: Tiller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = learn(token="<$HOME>")
    assert "tiller concept draw 'a photo of <$HOME>' --concept " in ended.out
    (run,) = (tmp_path / "runs").iterdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    common = ["--images", "1", "--clip", "emoji", "--quiet"]
    found = tiller("concept", "evaluate", f"~/runs/{run.name}", *common)
    assert found.code == 0, found.err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--crop", "left"), "crop must be centre or pad, got 'left'"),
        (("--kind", "person"), "'person'"),
        (("--budget", "step=2"), "step"),
    ],
)
def test_a_typing_error_does_not_wait_for_the_model(
    learn: Callable[..., Ended], option: tuple[str, str], said: str
) -> None:
    ended = learn(*option, "--model", "no/such-model")
    assert ended.code == 2
    assert said in ended.err
    assert "no/such-model" not in ended.err


def test_a_precision_may_be_asked_for(
    learn: Callable[..., Ended], tiller: Tiller, tmp_path: Path
) -> None:
    run = learn("--dtype", "float64", "--json").json["run"]
    spec = json.loads((Path(run) / "run.json").read_text())["spec"]
    assert spec["model_options"]["dtype"] == "float64"
    for command in ("draw", "a <duck>", "--concept", run, "--out", tmp_path / "d"), (
        "evaluate", run, "--images", "1", "--clip", "emoji", "--quiet"
    ):  # fmt: skip
        assert tiller("concept", *command, "--dtype", "float64").code == 0
        refused = tiller("concept", *command, "--dtype", "half8")
        assert refused.code == 2
        assert "dtype must be float32, float16, bfloat16 or float64, got 'half8'" in refused.err


def test_a_token_without_brackets_is_told(learn: Callable[..., Ended]) -> None:
    ended = learn(token="zor")
    assert ended.code == 0, ended.err
    assert "notice: diffusers finds zor inside other words too" in ended.err
