"""The run folder: its name and files, falling back, and errors that say what to do."""

from __future__ import annotations

import json
import re

import pytest
import torch
import toy

from tiller.core.errors import RunError
from tiller.core.state import pack
from tiller.runs.store import RunStore, versions


def stored(tmp_path, rounds=2):
    """A locked run with that many rounds kept."""
    store = RunStore.create(tmp_path, toy.SPEC, "toy")
    for step in range(1, rounds + 1):
        entry = {"kind": "step", "step": step}
        store.checkpoint(pack({"round": step, "z": torch.full((4,), float(step))}), entry)
    return store


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_the_folder_is_named_by_time_method_and_hash(tmp_path):
    with RunStore.create(tmp_path / "deep" / "runs", toy.SPEC, "my.module:Method") as store:
        assert re.fullmatch(r"\d{8}-\d{6}-my-module-Method-[0-9a-f]{8}", store.path.name)
    run = json.loads((store.path / "run.json").read_text())
    assert run["spec"] == toy.SPEC
    assert run["format"] == 1
    reopened = RunStore.open(store.path)
    assert (reopened.spec, reopened.created) == (store.spec, store.created)
    assert RunStore.open(store.path / "run.json").path == store.path


def test_equal_specs_have_equal_hashes_and_folders_of_their_own(tmp_path):
    turned = dict(reversed(toy.SPEC.items()))
    stores = [RunStore.create(tmp_path, spec, "toy") for spec in (toy.SPEC, turned, toy.SPEC)]
    other = RunStore.create(tmp_path, {**toy.SPEC, "seed": 4}, "toy")
    hashes = {re.search(r"toy-([0-9a-f]{8})", s.path.name)[1] for s in stores}
    assert len(hashes) == 1
    assert hashes.isdisjoint(re.findall(r"toy-([0-9a-f]{8})", other.path.name))
    assert len({store.path for store in stores}) == 3
    for store in (*stores, other):
        store.close()


def test_prompts_with_anything_in_them_come_back(tmp_path):
    spec = {"prompt": "\U0001f989 \x00\x1b[31m \ud83d half " + "word " * 500, "method": "raw"}
    with RunStore.create(tmp_path, spec, "raw") as store:
        assert RunStore.open(store.path).spec == spec


def test_the_latest_state_is_loaded_and_the_one_before_kept(tmp_path):
    with stored(tmp_path, 0) as store:
        assert store.load_state() is None
    store = stored(tmp_path / "b", 3)
    assert store.load_state().tree["round"] == 3
    (store.path / "state.safetensors").unlink()
    assert store.load_state().tree["round"] == 2
    store.close()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_state_falls_back_and_says_so(tmp_path, damage):
    store = stored(tmp_path, 3)
    path = store.path / "state.safetensors"
    if damage == "flip":
        flip(path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 100])
    packed = store.load_state()
    assert packed.tree["round"] == 2
    assert torch.equal(packed.tensors["z"], torch.full((4,), 2.0))
    (notice,) = store.notices
    assert "state.safetensors" in notice
    assert "one round before" in notice
    assert store.entries()[-1] == {"kind": "notice", "text": notice}
    store.rewind(2)
    assert [e["step"] for e in store.entries()] == [1, 2]

    # The damaged file must not take the place of the good one before it.
    store.save_state(pack({"round": 3, "z": torch.zeros(4)}))
    flip(path)
    assert store.load_state().tree["round"] == 2
    store.close()


def test_two_damaged_states_are_an_error_with_a_remedy(tmp_path):
    store = stored(tmp_path, 3)
    flip(store.path / "state.safetensors")
    flip(store.path / "state.previous.safetensors")
    with pytest.raises(RunError, match=r"no state of .* is whole.*Start the run again"):
        store.load_state()
    store.close()


def test_a_torn_journal_line_is_noted_when_the_run_is_locked(tmp_path):
    store = stored(tmp_path, 2)
    store.close()
    with (store.path / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "st')
    with RunStore.open(store.path) as again:
        assert "torn" in again.notices[0]
        assert [e["kind"] for e in again.entries()] == ["step", "step", "notice"]


def test_a_gap_in_the_journal_is_noted(tmp_path):
    with stored(tmp_path, 2) as store:
        store.journal.rewind(1)
        store.rewind(2)
        assert "1 of 2 rounds have no line" in store.notices[0]


def test_only_the_holder_of_the_lock_writes(tmp_path):
    store = stored(tmp_path)
    store.close()
    writes = (
        lambda s: s.append({}),
        lambda s: s.save_state(pack({})),
        lambda s: s.rewind(0),
        lambda s: s.save_image("x", torch.zeros(1, 3, 4, 4)),
        lambda s: s.save_best({}, {}),
    )
    for write in writes:
        with pytest.raises(RunError, match=r"lock\(\)"):
            write(RunStore.open(store.path))


def test_a_file_in_the_place_of_the_output_folder(tmp_path):
    (tmp_path / "taken").write_text("x")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(RunError, match=r"is a file, expected a folder.*--out"):
            RunStore.create(out, toy.SPEC, "toy")


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="no folder"):
        RunStore.open(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"no run\.json"):
        RunStore.open(tmp_path)
    name = stored(tmp_path).path.name
    with pytest.raises(RunError, match=name):
        RunStore.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{oops", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 1, "created": "", "spec": []}', "is damaged"),
        ('{"format": 2, "created": "", "spec": {}}', "newer tiller.*Upgrade"),
    ],
)
def test_run_json_damaged_or_from_the_future(tmp_path, text, match):
    store = stored(tmp_path)
    store.close()
    (store.path / "run.json").write_text(text)
    with pytest.raises(RunError, match=match):
        RunStore.open(store.path)


def test_versions_are_read_without_importing():
    assert versions().keys() == {"python", "tiller", "torch", "diffusers", "transformers"}
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])
