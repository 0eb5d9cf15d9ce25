"""The benchmarks of concepts run from end to end, on a fake model and a handful of forwards."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tiller.testing.fake_pipeline import save_fake_pipeline

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "concepts"
TINY = ["--concepts", "1", "--seeds", "1", "--calls", "16", "--images", "1"]
FIELDS = ["--set", "draws=2", "held_out_draws=2", "check_every=1", "init=x"]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Any]:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])

    def script(name: str, *options: str) -> Any:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *options, "--json"])
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        return json.loads(capsys.readouterr().out)

    return script


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_fake_pipeline(tmp_path_factory.mktemp("fake"))
    (folder / "defaults.json").write_text(json.dumps({"num_inference_steps": 1}))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    places = {"--out": "runs", "--rows": "cells", "--figures": "figures"}
    return [text for name, place in places.items() for text in (name, str(tmp_path / place))]


@pytest.mark.filterwarnings("ignore:the prompt has")  # the fake model reads 14 tokens
def test_variants_and_convergence_share_their_cells(
    run: Callable[..., Any], folders: list[str], model: Path, tmp_path: Path
) -> None:
    wanted = ["--variants", "word", "pca", "2 tokens", "--model", str(model)]
    fields = [*FIELDS, "popsize=4"]
    found = run("variants", *TINY, *fields, *folders, *wanted)
    assert list(found["table"]) == ["word", "pca", "2 tokens"]
    assert found["table"]["pca"]["model_calls"]["value"] == 16
    assert found["claims"]["pca reconstructs better than the best plain word"]["runs"] == 1
    assert (tmp_path / "figures" / "variants.svg").is_file()
    cells = tmp_path / "cells" / "cells.jsonl"
    lines = cells.read_text().splitlines()
    assert len(lines) == 3
    assert run("variants", *TINY, *fields, *folders, *wanted) == found
    assert cells.read_text().splitlines() == lines


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_parts_of_the_grid_write_files_of_their_own(
    run: Callable[..., Any],
    folders: list[str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two processes make a concept each, a third reads what both have kept, and only that."""
    tiny = [*TINY, "--concepts", "3", *FIELDS, "popsize=4", *folders, "--model", str(model)]
    wanted = ["--variants", "word", "pca", "d=32"]
    for part in ("1/3", "2/3"):
        with pytest.raises(SystemExit) as ended:
            run("variants", *tiny, *wanted, "--only", part)
        assert ended.value.code == 0
    kept = sorted(path.name for path in (tmp_path / "cells").glob("*.jsonl"))
    assert kept == ["cells1-3.jsonl", "cells2-3.jsonl"]
    found = run("variants", *tiny, *wanted, "--kept")
    assert {row["reconstruction"]["runs"] for row in found["table"].values()} == {2}


def test_the_best_start_is_found_once_a_concept(
    monkeypatch: pytest.MonkeyPatch, folders: list[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    cells, concepts = import_module("cells"), import_module("concepts")
    options = cells.arguments("").parse_args([*TINY, *folders])
    grid, made = cells.Cells(options), concepts.CONCEPTS[0]

    def start(variant: str, began: list[str]) -> dict[str, str]:
        values = dict.fromkeys(cells.Cell.__dataclass_fields__)
        grid.known[grid.key(made, "pca", 0)] = cells.Cell(**(values | {"began": began}))
        found: dict[str, str] = grid.start(made, variant, 0)
        return found

    assert start("prior", ["pink"]) == {"init": "pink"}
    assert start("prior", ["pink", "rosy", "dog", "cat", "car"]) == {"init": "clip"}, "the mix"
    assert start("ti, drawn", ["pink"]) == {"init": "pink"}
    for other in ("default", "2 tokens", "no init", "ti", "denoising, near"):
        assert start(other, ["pink"]) == {}, other


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_convergence_draws_its_curves(
    run: Callable[..., Any], folders: list[str], model: Path, tmp_path: Path
) -> None:
    found = run("convergence", *TINY, *FIELDS, "clip=emoji", *folders, "--model", str(model))
    assert set(found["curves"]) == {
        "gfti, from the best word",
        "gfti, from CLIP's mix",
        "gfti, from any word",
        "gradients, from the best word",
    }
    assert all(points[0][0] == 0 for points in found["curves"].values())
    assert (tmp_path / "figures" / "convergence.svg").is_file()


def test_the_distribution_of_the_increment(run: Callable[..., Any], folders: list[str]) -> None:
    found = run("distribution", *folders)
    assert found["words"]["deviation"] == pytest.approx(1.0, rel=0.01)
    assert found["prior"]["deviation"] == pytest.approx(1.0, rel=0.1)
    assert found["random"]["deviation"] > 3
    assert found["random"]["ks"] > found["prior"]["ks"]


def test_what_a_generation_costs(run: Callable[..., Any], model: Path) -> None:
    found = run("cost", "--model", str(model), "--rounds", "2", "--set", "popsize=4", "draws=2")
    assert found["candidates x draws"] == [4, 2]
    assert found["generation / bare forwards"] > 0
    assert 0 < found["CMA-ES share"] < 1


def test_what_the_clips_find_alike(run: Callable[..., Any]) -> None:
    found = run("likeness", "--concepts", "1", "--images", "1")
    seen = found["likeness"]["unicorn"]
    assert set(seen) == {"pink", "a white horse"}
    gap = seen["a white horse"]["emoji-heldout"] - seen["pink"]["emoji-heldout"]
    assert found["by eye less the word"]["emoji-heldout"]["value"] == pytest.approx(gap)


@pytest.mark.filterwarnings("ignore:the prompt has")  # the fake model reads 14 tokens
def test_a_runs_pictures_side_by_side(run: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    import tiller
    from tiller.concepts.learn import learn_concept

    given = sorted((SCRIPTS / "pictures" / "unicorn").glob("*.png"))
    settings: dict[str, Any] = {"draws": 2, "held_out_draws": 2, "popsize": 4, "preview_every": 1}
    folder = learn_concept(
        tiller.load_model(str(model)),
        given,
        "<new>",
        budget="forwards=16",
        init="x",
        out=tmp_path,
        **settings,
    ).run_dir
    picture = tmp_path / "figures" / "eye.png"
    found = run("by_eye", str(folder), str(folder), "--out", str(picture))
    assert picture.is_file()
    assert [line["start"] for line in found["runs"]] == ["x", "x"]
    assert all(len(line["losses"]) == 2 for line in found["runs"])


def test_learned_words_beside_plain_ones(run: Callable[..., Any], tmp_path: Path) -> None:
    """All that would be drawn is kept already; each CLIP has a word of its own."""
    import argparse

    import tiller

    options = argparse.Namespace(rows=tmp_path, images=2, calls=12_000, concepts=1, seeds=[0, 1])
    parts = runpy.run_path(str(SCRIPTS / "words.py"))
    model = tiller.load_model("emoji")

    def line(asked: Any, phrase: str, images: int, first: float, judge: float) -> dict[str, Any]:
        seen = {"emoji": first, "emoji-heldout": judge}
        whole = {"emoji": judge, "emoji-heldout": first}
        found: dict[str, Any] = json.loads(asked.key(phrase, images))
        return {**found, "placed": seen, **({"reconstruction": whole} if images > 1 else {})}

    for seed in options.seeds:
        measuring = parts["Measuring"](model, parts["CONCEPTS"][0], seed, options)
        phrases = measuring.phrases()
        assert phrases[:2] == ["horse", "a horse"]

        last = len(phrases) - 1
        lines = [
            line(measuring, phrase, 1, i / 100, (last - i) / 100)
            for i, phrase in enumerate(phrases)
        ]
        for i in (0, 1, 2, 3, 4, 6, last - 3, last - 2, last - 1, last):
            # The judge has the first word highest with one seed, and low in the mean.
            judge = (last - i) / 50 - (i == 0 and seed)
            lines.append(line(measuring, phrases[i], 2, i / 50, judge))
        lines.append(line(measuring, parts["TOKEN"], 2, 0.9, 0.8))
        (tmp_path / f"{seed}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    found = run(
        *("words", "--rows", str(tmp_path), "--images", "2", "--concepts", "1", "--seeds", "0", "1")
    )
    placed = found["table"]["placed"]["unicorn"]
    assert placed["phrases"] == [phrases[last], phrases[1], phrases[2]]
    assert placed["learned"] == [0.8, 0.8]
    assert placed["the first CLIP's phrase"] == [0.0, 0.0]
    assert placed["the held-out CLIP's word"] == [(last - 2) / 50] * 2
    gaps = found["differences"]
    assert gaps["placed, less the first CLIP's phrase"]["value"] == pytest.approx(0.8)
    by_judge = gaps["reconstruction, less the held-out CLIP's phrase"]["value"]
    assert by_judge == pytest.approx(0.9 - last / 50)
    assert len((tmp_path / "1.jsonl").read_text().splitlines()) == len(lines)
