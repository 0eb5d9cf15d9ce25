"""Every stage trains, and a run that is killed repeats the uninterrupted one bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tiller.core.errors import InvalidInput
from tiller.models.bundled import scenes as scene_module

pytestmark = pytest.mark.skipif(
    not scene_module.FONT.exists(), reason="the package fonts-noto-color-emoji is not installed"
)

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


def _stage(name: str, work: Path) -> Callable[[int], nn.Module]:
    words = tokenizer.write(work / "tokenizer")
    small = replace(
        clip.FIRST, hidden=32, heads=2, text_layers=1, vision_layers=1, families=3, twins=1
    )
    if name == "vae":
        return lambda steps: vae.train(work, steps)
    if name == "clip":
        return lambda steps: clip.train(small, work, vae.build(), words, steps)
    if name == "judge":
        return lambda steps: judge_training.train(work, vae.build(), steps)
    tower = clip.build(small, words)
    if name == "preference":
        return lambda steps: preference.train(work, tower, steps)
    return lambda steps: unet.train(work, vae.build(), tower.text_model, words, steps, 16)


@pytest.mark.parametrize("name", ["vae", "clip", "judge", "preference", "unet"])
def test_a_killed_stage_resumes_bit_exactly(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _stage(name, tmp_path / "whole")(3)

    # Killed after its second step, with the checkpoint of that step on the disk.
    write = train._save

    def save_then_die(path: Path, *rest: object) -> None:
        write(path, *rest)  # type: ignore[arg-type]
        if rest[-1] == 2:
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
    stages.restore(tmp_path, None)
    parts = stages.load_vae(tmp_path), stages.load_text_encoder(tmp_path)
    assert {part.dtype for part in parts} == {torch.float32}
    model = unet.train(tmp_path, *parts, stages.load_tokenizer(tmp_path), 0, 4)
    shipped = load_file(weights_dir() / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(model.state_dict()[name], w.float()) for name, w in shipped.items())
    (tmp_path / "unet.safetensors").touch()
    with pytest.raises(InvalidInput, match="has a checkpoint"):
        stages.restore(tmp_path, None)
