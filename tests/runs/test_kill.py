"""Killed anywhere and resumed, a run ends as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import toy

from tiller.core.errors import RunError
from tiller.runs.store import RunStore

# Python 3.12 warns that forking is unsafe with threads; these children use none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

STEPS = 100


def _child(folder: str, steps: int) -> None:
    toy.run(RunStore.open(folder), steps)


def _started(folder: Path, steps: int) -> BaseProcess:
    # Forked, so that a kill costs milliseconds and not another import of torch.
    process = multiprocessing.get_context("fork").Process(target=_child, args=(folder, steps))
    process.start()
    return process


def _steps(store: RunStore) -> int:
    return len([entry for entry in store.entries() if entry["kind"] == "step"])


@pytest.mark.timeout(600)
def test_kill_at_twenty_random_moments_then_resume_equals_the_uninterrupted_run(tmp_path):
    straight = RunStore.create(tmp_path / "a", toy.SPEC, "toy")
    straight.close()
    started = time.monotonic()
    process = _started(straight.path, STEPS)
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - started

    killed = RunStore.create(tmp_path / "b", toy.SPEC, "toy")
    killed.close()
    moments = random.Random(0)
    kills = 0
    for kill in range(20):
        before = _steps(killed)
        process = _started(killed.path, STEPS)
        # Every fourth at once, the others somewhere in or after their first step, however slow the
        # machine is at the moment.
        while kill % 4 and process.is_alive() and _steps(killed) == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, seconds / STEPS))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    reached = _steps(killed)
    process = _started(killed.path, STEPS)
    process.join()
    assert process.exitcode == 0
    assert kills == 20
    assert 0 < reached < STEPS, "the kills must hit a run under way"
    assert toy.outcome(killed.path) == toy.outcome(straight.path)
    assert not list(killed.path.rglob("*.part"))


def test_every_cut_between_two_writes_is_survived(tmp_path, monkeypatch):
    """The same, at exactly every system call that changes a file, one after another."""
    straight = RunStore.create(tmp_path / "a", toy.SPEC, "toy")
    straight.close()
    toy.run(straight, 3)
    expected = toy.outcome(straight.path)

    class Killed(BaseException):
        """As if the process died: nothing catches it."""

    calls = 0
    while True:
        store = RunStore.create(tmp_path / "b", toy.SPEC, "toy")
        store.close()
        left = calls

        def counted(original, *args, **kwargs):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (os, "write"), (Path, "replace")):
                original = getattr(owner, name)
                patch.setattr(owner, name, lambda *a, o=original, **k: counted(o, *a, **k))
            try:
                toy.run(store, 3)
                finished = True
            except Killed:
                finished = False
        store.close()
        toy.run(RunStore.open(store.path), 3)
        assert toy.outcome(store.path) == expected, f"cut at write {calls}"
        if finished:
            break
        calls += 1
    assert calls > 30


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path):
    store = RunStore.create(tmp_path, toy.SPEC, "toy")
    process = _started(store.path, 5)
    process.join()
    assert process.exitcode == 1
    with pytest.raises(RunError, match=rf"in use by process {os.getpid()}\b.*resumed"):
        RunStore.open(store.path).lock()
    store.close()
    with RunStore.open(store.path) as second:
        second.append({"kind": "notice", "text": "mine now"})


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    store = RunStore.create(tmp_path, toy.SPEC, "toy")
    store.close()
    process = _started(store.path, 100_000)
    while not list(store.path.glob("state.safetensors")):
        time.sleep(0.01)
    with pytest.raises(RunError, match=f"process {process.pid}"):
        RunStore.open(store.path).lock()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    RunStore.open(store.path).lock().close()
