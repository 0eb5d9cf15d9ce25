"""Full and read-only disks: small real ones, mounted for the test."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import toy

from tiller.core.errors import RunError
from tiller.core.state import pack
from tiller.runs.store import RunStore


def _mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"cannot mount a small disk here (needs root): {error}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=10)


def state(step: int, size: int = 4) -> object:
    return pack({"round": step, "z": torch.zeros(size)})


def test_a_full_disk_leaves_the_run_as_it_was(disk):
    store = RunStore.create(disk, toy.SPEC, "toy")
    store.checkpoint(state(1), {"kind": "step", "step": 1})
    with pytest.raises(RunError, match=r"full; 400\.\d kB are needed.*`tiller resume`"):
        store.checkpoint(state(2, 100_000), {"kind": "step", "step": 2})
    assert store.load_state().tree["round"] == 1
    assert not list(disk.rglob("*.part"))
    store.rewind(1)
    assert [e["step"] for e in store.entries()] == [1]
    store.checkpoint(state(2), {"kind": "step", "step": 2})
    assert store.load_state().tree["round"] == 2
    store.close()


def test_a_line_that_does_not_fit_is_taken_back(disk):
    store = RunStore.create(disk, toy.SPEC, "toy")
    store.append({"kind": "step", "step": 1})
    with pytest.raises(RunError, match="full"):
        store.append({"kind": "notice", "text": "x" * 300_000})
    store.append({"kind": "step", "step": 2})
    assert [e["step"] for e in store.entries()] == [1, 2]
    store.close()


def test_a_run_on_a_disk_that_fills_up_is_resumed_when_there_is_room(disk, tmp_path):
    straight = RunStore.create(tmp_path / "straight", toy.SPEC, "toy")
    toy.run(straight, 8)
    straight.close()
    ballast = disk / "ballast"
    store = RunStore.create(disk, toy.SPEC, "toy")
    space = os.statvfs(disk)
    ballast.write_bytes(b"\0" * ((space.f_bavail - 9) * space.f_bsize))
    with pytest.raises(RunError, match="make room, then `tiller resume`"):
        toy.run(store, 8)
    assert 0 < store.load_state().tree["round"] < 8
    ballast.unlink()
    toy.run(RunStore.open(store.path), 8)
    assert toy.outcome(store.path) == toy.outcome(straight.path)


def test_a_disk_too_full_to_start_keeps_no_half_run(disk):
    (disk / "ballast").write_bytes(b"\0" * 256 * 1024)
    with pytest.raises(RunError, match="full"):
        RunStore.create(disk, {**toy.SPEC, "text": "x" * 8000}, "toy")
    assert [p.name for p in disk.iterdir()] == ["ballast"]


def test_a_read_only_output_folder(disk):
    with RunStore.create(disk, toy.SPEC, "toy") as store:
        store.checkpoint(state(1), {"kind": "step", "step": 1})
    _mount("-o", "remount,ro", str(disk))
    with pytest.raises(RunError, match=r"read-only.*--out"):
        RunStore.create(disk, toy.SPEC, "toy")
    with pytest.raises(RunError, match=r"read-only.*--out"):
        RunStore.create(disk / "runs", toy.SPEC, "toy")
    reading = RunStore.open(store.path)
    assert reading.load_state().tree["round"] == 1
    with pytest.raises(RunError, match="read-only"):
        reading.lock()


def test_a_disk_that_turns_read_only_during_a_run(disk):
    with RunStore.create(disk, toy.SPEC, "toy") as store:
        store.checkpoint(state(1), {"kind": "step", "step": 1})
        store.journal.close()
        os.sync()
    reading = RunStore.open(store.path).lock()
    reading.journal.close()
    os.close(reading._lock)  # an open file would keep the disk from turning
    _mount("-o", "remount,ro", str(disk))
    for write in (
        lambda: reading.append({"kind": "step", "step": 2}),
        lambda: reading.save_state(state(2)),
        lambda: reading.save_image("best", torch.zeros(1, 3, 4, 4)),
    ):
        with pytest.raises(RunError, match="read-only"):
            write()
    assert reading.load_state().tree["round"] == 1
    reading._lock = None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="may not be written"):
            RunStore.create(tmp_path / "runs", toy.SPEC, "toy")
    finally:
        tmp_path.chmod(0o700)


def test_a_limit_on_the_size_of_files(tmp_path):
    store = RunStore.create(tmp_path, toy.SPEC, "toy")
    store.checkpoint(state(1), {"kind": "step", "step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunError, match=r"file size limit.*tiller resume"):
            store.save_state(state(2, 100_000))
        with pytest.raises(RunError, match=r"file size limit"):
            store.append({"kind": "notice", "text": "x" * 30_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.load_state().tree["round"] == 1
    assert [e["kind"] for e in store.entries()] == ["step"]
    store.close()
