"""Affix files: what is saved comes back, and what is not an affix for this model is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

import tiller
from tiller.core.errors import InvalidInput, RunError
from tiller.core.rng import Stream
from tiller.methods._affix_files import (
    _digest,
    absolute_affixes,
    affix_digests,
    encode_affix,
    load_affixes,
    parse_affixes,
    read_affix,
)
from tiller.methods.base import Task
from tiller.methods.dno import Dno
from tiller.methods.ipgo import Ipgo
from tiller.methods.raw import Raw
from tiller.models.base import FrozenModel
from tiller.models.concepts import Concept
from tiller.models.loader import load_model
from tiller.rewards import make_reward
from tiller.spaces.affixes import Affix, Affixes
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.testing.method_conformance import check_method

SPACE = Affixes(width=16, prefix=2, suffix=3, rank=3)


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return load_model(fake_pipeline())


@pytest.fixture(scope="module")
def affix() -> Affix:
    return SPACE.decode(SPACE.sample(1, Stream(0)))


@pytest.fixture
def file(model: FrozenModel, affix: Affix, tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode_affix(affix, model, {"reward": ["clip"]}))
    return path


@pytest.mark.parametrize("anchored", [False, True])
def test_what_is_saved_comes_back_bit_by_bit(
    anchored: bool, model: FrozenModel, affix: Affix, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode_affix(replace(affix, anchored=anchored), model, {"seed": 3}))
    saved = read_affix(path)
    assert torch.equal(saved.affix.prefix, affix.prefix)
    assert torch.equal(saved.affix.suffix, affix.suffix)
    assert saved.affix.anchored == anchored
    about = saved.about
    assert (about["seed"], about["width"], about["model"]) == (3, 16, model.name)
    (again,) = load_affixes(str(path), model)
    assert torch.equal(again.prefix, affix.prefix)


def test_a_one_sided_affix_is_saved_too(model: FrozenModel, tmp_path: Path) -> None:
    space = Affixes(width=16, prefix=0, suffix=1, rank=1)
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode_affix(space.decode(space.sample(1, Stream(0))), model, {}))
    assert read_affix(path).affix.prefix.shape == (1, 0, 16)


def test_several_go_around_each_other_with_their_weights(
    model: FrozenModel, affix: Affix, file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b.safetensors"
    other.write_bytes(encode_affix(affix.times(3.0), model, {}))
    task = Task(model, "cat", "", make_reward("brightness"))
    states = Raw(affix=f"{file}, {other}:0.5").conditioning(task).prompt_embeds
    words = task.conditioning().prompt_embeds[:, :5]
    sides = [1.5 * affix.prefix, affix.prefix, words, affix.suffix, 1.5 * affix.suffix]
    assert torch.allclose(states, torch.cat(sides, dim=1), atol=1e-6)
    assert len(set(affix_digests(f"{file},{other}"))) == 2


@pytest.mark.parametrize("method", [Raw(), Dno(num_inference_steps=2)], ids=["raw", "dno"])
def test_methods_keep_their_promises_within_an_affix(
    method: Raw | Dno, model: FrozenModel, file: Path
) -> None:
    task = Task(model, "cat", "", make_reward("brightness"))
    within = replace(method, affix=str(file), num_inference_steps=2)
    check_method(within, task)
    plain = within.baseline(task, 0).conditioning
    assert torch.equal(plain.prompt_embeds, task.conditioning().prompt_embeds)


def test_new_tokens_go_around_an_affix_from_a_file(
    model: FrozenModel, affix: Affix, file: Path
) -> None:
    task = Task(model, "cat", "", make_reward("brightness"))
    space = Ipgo(affix=str(file), prefix=1, suffix=1, rank=2).space(task)
    told = space.decode(space.sample(1, Stream(0))).conditioning.prompt_embeds
    assert told.shape[1] == 1 + 2 + 5 + 3 + 1
    assert torch.equal(told[:, 1:3], affix.prefix)


def test_files_for_other_models_are_refused(model: FrozenModel, file: Path) -> None:
    other = load_model(fake_pipeline(seed=1))
    with pytest.raises(InvalidInput, match="with other weights or precision than"):
        load_affixes(str(file), other)
    wide = Affixes(width=8, prefix=1, suffix=1, rank=1)
    file.write_bytes(encode_affix(wide.decode(wide.sample(1, Stream(0))), model, {}))
    with pytest.raises(InvalidInput, match=r"tokens of width 8, made for .* reads width 16"):
        load_affixes(str(file), model)


def test_files_that_are_no_affix_are_refused(model: FrozenModel, file: Path) -> None:
    data = file.read_bytes()

    def refused(content: bytes, says: str) -> None:
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match=says):
            load_affixes(str(file), model)

    refused(data[: len(data) // 2], "damaged or no safetensors file")
    refused(b"", "damaged or no safetensors file")
    refused(save({"emb_params": torch.ones(1, 16)}), "is not an affix, it holds emb_params")
    refused(data[:-1] + bytes([data[-1] ^ 1]), "was altered")
    about = json.dumps({"kind": "affix", "format": 99})
    tensors = {"prefix": torch.ones(1, 16), "suffix": torch.ones(1, 16)}
    refused(save(tensors, {"tiller": about}), "newer tiller")
    about = json.dumps({"kind": "affix", "format": "two"})
    refused(save(tensors, {"tiller": about}), "newer tiller")
    refused(save(tensors, {"tiller": "[1]"}), "is not an affix")
    file.unlink()
    with pytest.raises(InvalidInput, match="cannot read the affix"):
        load_affixes(str(file), model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tokens: tokens.bfloat16(), "was altered"),
        (lambda tokens: tokens.flatten(), "was altered"),
        (lambda tokens: tokens / 0, "not finite"),
    ],
    ids=["precision", "shape", "infinite"],
)
def test_tokens_that_cannot_be_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], says: str, file: Path
) -> None:
    """Whatever the file says of itself."""
    tensors = {name: change(side) for name, side in load(file.read_bytes()).items()}
    about: dict[str, object] = {"kind": "affix", "format": 1}
    if says != "was altered":
        about["digest"] = _digest(tensors)
    file.write_bytes(save(tensors, {"tiller": json.dumps(about)}))
    with pytest.raises(InvalidInput, match=says):
        read_affix(file)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("anchored", True, "one of anchored, .* is not what was saved"),
        ("sampler", {"num_inference_steps": 9}, "is not what was saved"),
        ("sampler", "ddim", "sampler='ddim', which is no sampler"),
        ("anchored", "yes", "anchored='yes', which is no anchored"),
        ("dtype", "float32; print()", "which torch has not"),
    ],
    ids=["anchored", "sampler", "sampler's type", "anchored's type", "code"],
)
def test_what_decides_the_picture_is_sealed_with_the_tokens(
    name: str, value: object, says: str, file: Path
) -> None:
    data = file.read_bytes()
    about = read_affix(file).about
    file.write_bytes(save(load(data), {"tiller": json.dumps({**about, name: value})}))
    with pytest.raises(InvalidInput, match=says):
        read_affix(file)


def test_files_of_before_they_were_sealed_still_load(model: FrozenModel, file: Path) -> None:
    data, about = file.read_bytes(), read_affix(file).about
    assert affix_digests(str(file)) == [about["seal"]]
    del about["seal"]
    file.write_bytes(save(load(data), {"tiller": json.dumps(about)}))
    assert len(load_affixes(str(file), model)) == 1
    assert affix_digests(str(file)) == [about["digest"]], "what runs that use it have recorded"


def test_learned_words_make_no_other_weights_of_a_model(model: FrozenModel, file: Path) -> None:
    vectors = (torch.ones(1, model.token_embeddings[0].shape[1]),)
    concept = Concept("<owl>", vectors)
    taught = load_model(fake_pipeline(), concepts=[concept])
    assert taught.fingerprint() != model.fingerprint()
    assert taught.weights_fingerprint() == model.weights_fingerprint() == model.fingerprint()
    assert len(load_affixes(str(file), taught)) == 1
    about = read_affix(file).about | {"model_fingerprint": taught.fingerprint()}
    del about["seal"]
    file.write_bytes(save(load(file.read_bytes()), {"tiller": json.dumps(about)}))
    assert len(load_affixes(str(file), taught)) == 1, "trained beside these words, and before"


def test_a_file_whose_name_ends_like_a_weight_is_that_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_affixes("b:2") == [("b", 2.0)]
    file.rename("b:2")
    assert parse_affixes("b:2, b:2:3") == [("b:2", 1.0), ("b:2", 3.0)]
    told = absolute_affixes("b:2")
    Path("b:2").unlink()
    assert parse_affixes(told) == [(str(tmp_path / "b:2"), 1.0)], "also when it is gone"


def test_paths_may_hold_colons_and_weights_must_be_positive() -> None:
    assert parse_affixes("") == []
    assert parse_affixes("C:/a.safetensors") == [("C:/a.safetensors", 1.0)]
    assert parse_affixes("a:b.safetensors:2,c") == [("a:b.safetensors", 2.0), ("c", 1.0)]
    for text in ("a:0", "a:-1", "a:inf"):
        with pytest.raises(InvalidInput, match="weight must be positive"):
            parse_affixes(text)


def test_a_run_goes_on_within_the_same_tokens_only(
    model: FrozenModel, affix: Affix, file: Path, tmp_path: Path
) -> None:
    settings = {"reward": "brightness", "held_out": "darkness", "num_inference_steps": 2}
    result = tiller.steer(
        model, "cat", method="dno", budget="steps=1", affix=str(file), out=tmp_path, **settings
    )
    more = tiller.resume(result.run_dir, model=model, budget="steps=2")
    assert more.cost.steps == 2
    file.write_bytes(encode_affix(affix.times(2.0), model, {}))
    with pytest.raises(RunError, match="began with other affixes than"):
        tiller.resume(result.run_dir, model=model, budget="steps=3")
