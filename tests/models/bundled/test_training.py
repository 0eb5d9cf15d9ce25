"""Every stage trains, and a run that is killed repeats the uninterrupted one bit for bit."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tiller.core.errors import InvalidInput
from tiller.models.bundled import scenes as scene_module

pytestmark = pytest.mark.skipif(
    not scene_module.FONT.exists(), reason="the package fonts-noto-color-emoji is not installed"
)

from tiller.models.bundled import __main__ as main  # noqa: E402
from tiller.models.bundled import (  # noqa: E402
    clip,
    judge_training,
    preference,
    stages,
    tokenizer,
    train,
    unet,
    vae,
    weights_dir,
)
from tiller.models.bundled.train import Machine  # noqa: E402


def many_processes(test: Any) -> Any:
    """Without the warnings about one core, and about a fork beside torch's sleeping threads."""
    for message in ("This DataLoader will create", ".*multi-threaded.*fork"):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same stages with small batches, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for module in (vae, unet, judge_training, preference):
        monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(preference, "EXAMPLES", 32)
    monkeypatch.setattr(preference, "UNSEEN", 16)
    monkeypatch.setattr(vae, "MEASURED", 8)
    yield
    torch.set_num_threads(threads)


def _stage(name: str, work: Path, on: Machine = train.CPU) -> Callable[[int], nn.Module]:
    words = tokenizer.write(work / "tokenizer")
    small = replace(
        clip.FIRST, hidden=32, heads=2, text_layers=1, vision_layers=1, families=3, twins=1
    )
    if name == "vae":
        return lambda steps: vae.train(work, steps, on)
    if name == "clip":
        return lambda steps: clip.train(small, work, vae.build(), words, steps, on)
    if name == "judge":
        return lambda steps: judge_training.train(work, vae.build(), steps, on)
    tower = clip.build(small, words)
    if name == "preference":
        return lambda steps: preference.train(work, tower, steps, on)
    return lambda steps: unet.train(work, vae.build(), tower.text_model, words, steps, 16, on)


@pytest.mark.parametrize("name", ["vae", "clip", "judge", "preference", "unet"])
def test_a_killed_stage_resumes_bit_exactly(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _stage(name, tmp_path / "whole")(3)

    # Killed after its second step, with the checkpoint of that step on the disk.
    write = train._save

    def save_then_die(path: Path, *rest: Any) -> None:
        write(path, *rest)
        if rest[-1].step == 2:
            raise KeyboardInterrupt

    run = _stage(name, tmp_path / "killed")
    plan_time = train.Plan.__dataclass_fields__["save_seconds"]
    assert plan_time.default == 120.0
    with monkeypatch.context() as patch:
        patch.setattr(train, "_save", save_then_die)
        patch.setattr(train.time, "monotonic", _every_call_two_minutes_later())
        with pytest.raises(KeyboardInterrupt):
            run(3)
    resumed = run(3)
    assert resumed is not whole
    expected, got = whole.state_dict(), resumed.state_dict()
    assert [key for key in expected if not torch.equal(expected[key], got[key])] == []


def _every_call_two_minutes_later() -> Callable[[], float]:
    now = [0.0]

    def clock() -> float:
        now[0] += 121.0
        return now[0]

    return clock


def test_a_finished_stage_extends_with_more_steps(tmp_path: Path) -> None:
    run = _stage("judge", tmp_path)
    first = {k: v.clone() for k, v in run(1).state_dict().items()}
    longer = run(2).state_dict()
    assert any(not torch.equal(first[k], longer[k]) for k in first)


def test_the_loss_of_the_autoencoder_falls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "PLAN", replace(vae.PLAN, warmup=5, log_every=5))
    vae.train(tmp_path, 25)
    losses = [float(x) for x in re.findall(r" loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 5
    assert losses[-1] < 0.9 * losses[0]


def test_the_rate_warms_up_stays_and_decays() -> None:
    plan = train.Plan(steps=1000, lr=1.0, warmup=10, decay=0.5)
    assert plan.rate(0) == pytest.approx(0.1)
    assert plan.rate(9) == plan.rate(499) == 1.0
    assert plan.rate(750) == pytest.approx(0.51)
    assert plan.rate(1000) == pytest.approx(0.02)


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for value in (1.0, 2.0):
        train.write_atomically({"a": torch.full((2,), value)}, path, {})
        assert load_file(str(path))["a"].tolist() == [value, value]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_tokenizer_is_learned_the_same_every_time() -> None:
    assert tokenizer.learn() == tokenizer.learn()


def test_near_twins_differ_and_stay_in_the_split() -> None:
    for index in range(50):
        first, *twins = clip.family(clip.FIRST, index)
        assert len(twins) == clip.FIRST.twins
        assert all(t != first or t in twins for t in twins)


def test_a_caption_matches_every_picture_it_is_true_of() -> None:
    cat, same = (("cat", "red"),), (("cat", None),)
    shown = [clip.Spec(cat, "white"), clip.Spec(cat, "blue"), clip.Spec(same, "blue")]
    named = [clip.Spec(cat, None), clip.Spec(cat, "blue"), clip.Spec(same, "blue")]
    expected = [[True, True, False], [False, True, False], [False, False, True]]
    assert clip.matches(shown, named).tolist() == expected


def test_the_contrastive_loss_is_the_closed_form() -> None:
    texts = torch.eye(3)[:2]
    images = torch.eye(3)  # the third picture is described by no caption
    scale = torch.tensor(2.0)
    got = clip.contrastive(texts, images, torch.eye(2, dtype=torch.bool), scale)
    e = torch.tensor(2.0).exp()
    expected = 0.5 * (torch.log((e + 2) / e) + torch.log((e + 1) / e))
    assert got == pytest.approx(float(expected), abs=1e-6)


def test_the_empty_work_folder_says_which_stage_comes_first(tmp_path: Path) -> None:
    with pytest.raises(stages.InvalidInput, match=r"tiller\.models\.bundled vae"):
        stages.load_vae(tmp_path)


def test_training_goes_on_from_the_package_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    stages.restore(tmp_path, weights_dir())
    parts = stages.load_vae(tmp_path), stages.load_text_encoder(tmp_path)
    assert {part.dtype for part in parts} == {torch.float32}
    model = unet.train(tmp_path, *parts, stages.load_tokenizer(tmp_path), 0, 4)
    shipped = load_file(weights_dir() / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(model.state_dict()[name], w.float()) for name, w in shipped.items())
    (tmp_path / "unet.safetensors").touch()
    with pytest.raises(InvalidInput, match="has a checkpoint"):
        stages.restore(tmp_path, weights_dir())


@many_processes
@pytest.mark.parametrize("name", ["judge", "clip"])
def test_examples_drawn_ahead_by_other_processes_are_the_same(name: str, tmp_path: Path) -> None:
    here = _stage(name, tmp_path / "here")(2).state_dict()
    ahead = _stage(name, tmp_path / "ahead", Machine(workers=2))(2).state_dict()
    assert [key for key in here if not torch.equal(here[key], ahead[key])] == []


@many_processes
def test_the_pool_of_scenes_is_the_same_when_it_is_drawn_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unet, "PIECE", 10)
    words = tokenizer.write(tmp_path / "tokenizer")
    pools = [
        unet.encode_pool(tmp_path / name, vae.build(), words, 25, Machine(workers=workers))
        for name, workers in (("here", 0), ("ahead", 2), ("ahead", 2))
    ]
    for pool in pools[1:]:
        assert torch.equal(pool.latents, pools[0].latents)
        assert torch.equal(pool.ids, pools[0].ids)


def test_a_training_out_of_time_ends_with_a_low_rate_and_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates: list[float] = []
    keep = train._set_rate
    monkeypatch.setattr(train, "_set_rate", lambda of, rate: (rates.append(rate), keep(of, rate)))
    monkeypatch.setattr(train.time, "monotonic", _every_call_two_minutes_later())
    monkeypatch.setattr(judge_training, "PLAN", replace(judge_training.PLAN, warmup=1))
    _stage("judge", tmp_path, Machine(until=4000.0))(1000)
    done = train.progress(tmp_path / "judge.safetensors")
    assert 3 < done.step < 40
    assert done.step == len(rates)
    assert done.seconds > 1000
    assert rates[0] > 10 * rates[-1]
    assert f"judge {done.step}/1000" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["vae", "clip", "judge", "preference", "unet"])
def test_a_replayed_graph_trains_like_single_kernels(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = torch.device("cuda")
    graph = _stage(name, tmp_path / "graph", Machine(device))(8).state_dict()
    assert "as one CUDA graph" in capsys.readouterr().out
    single = _stage(name, tmp_path / "single", Machine(device, graph=False))(8).state_dict()
    before = _stage(name, tmp_path / "before", Machine(device))(0).state_dict()
    for key, value in single.items():
        if value.is_floating_point():  # kernels may sum in another order; the steps are the same
            apart, moved = (graph[key] - value).norm(), (value - before[key]).norm()
            assert apart <= 0.1 * moved + 1e-5, key


def test_every_stage_waits_for_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    code = "import sys, time; f = open(sys.argv[1], 'a'); f.write(sys.argv[2] + ' ')"

    def command(args: object, stage: str, started: float) -> list[str]:
        return [sys.executable, "-c", code, str(log), stage]

    monkeypatch.setattr(main, "_command", command)
    main.main(["all", "--work", str(tmp_path / "work"), "--jobs", "2"])
    order = log.read_text().split()
    assert sorted(order) == sorted([*main.NEEDS, "assemble", "evaluate"])
    assert order[-2:] == ["assemble", "evaluate"]
    for stage, needs in main.NEEDS.items():
        assert all(order.index(need) < order.index(stage) for need in needs)


def test_a_stage_that_fails_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        main, "_command", lambda *rest: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    with pytest.raises(SystemExit, match="vae failed"):
        main.main(["all", "--work", str(tmp_path)])


def test_the_time_that_is_left_goes_to_the_denoiser(tmp_path: Path) -> None:
    seen = main._command(
        argparse.Namespace(
            work=tmp_path, steps=3, threads=None, target=None, device="cpu", workers=None,
            eager=True, within=200.0,
        ),
        "unet", time.monotonic() - 50,
    )  # fmt: skip
    assert seen[3:8] == ["unet", "--work", str(tmp_path), "--steps", "3"]
    assert float(seen[seen.index("--within") + 1]) == pytest.approx(150 - main.FINISH, abs=1)
