"""A fake model on disk, and `tiller` run in this process with its streams and exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ended import Ended, Tiller, small

from tiller.testing.fake_pipeline import save_fake_pipeline


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fake_pipeline(tmp_path_factory.mktemp("cli") / "fake")


@pytest.fixture
def tiller(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tiller:
    """`tiller(*argv)` as the command would run, without a new process."""
    from tiller.cli import main

    def run(*argv: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["tiller", *map(str, argv)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out, err)

    return run


@pytest.fixture
def steer(tiller: Tiller, model: Path, tmp_path: Path) -> Tiller:
    """`steer(prompt, *options)`: a small quick run on the fake model."""

    def run(prompt: str, *options: object) -> Ended:
        return tiller("steer", prompt, *small(model, tmp_path / "out"), *options)

    return run
