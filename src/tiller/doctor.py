"""`tiller doctor`: what is installed, where it would run, and whether one step works.

Each check is a line with a remedy where it failed. Only the self-test loads a model.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tiller.core.errors import TillerError
from tiller.listing import bundled_folder

NEEDED = ("torch", "diffusers", "transformers", "safetensors", "cma", "typer")
EXTRAS = {"ray": "ray", "ui": "gradio", "llm": "openai", "bayes": "optuna"}
FREE_MB = 200
"""Of disk: a run of the bundled model takes a few MB, one of Stable Diffusion some tens."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's answer.

    Attributes:
        name: what was looked at.
        ok: whether tiller can work with it.
        found: what it is.
        remedy: what to do where it is not ok and `found` does not say it, or to get more.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine(model: str = "emoji") -> Iterator[Check]:
    """Every check in turn, the self-test of `model` last.

    Example:
        >>> next(examine()).name
        'python'
    """
    new_enough = sys.version_info >= (3, 11)
    remedy = "" if new_enough else "install Python 3.11 or newer"
    yield Check("python", new_enough, platform.python_version(), remedy)
    yield from map(_package, NEEDED)
    yield from (_extra(extra, package) for extra, package in EXTRAS.items())
    broken = [name for name in NEEDED if not _installed(name)]
    if "torch" not in broken:
        yield _device()
    yield _hub()
    if model == "emoji":
        yield _weights()
    yield _folder()
    yield _disk()
    if broken:
        yield Check("self-test", False, "not run", f"install first: {', '.join(broken)}")
    else:
        yield self_test(model)


def self_test(model: str = "emoji") -> Check:
    """Draw one picture in two steps and take one gradient step on its noise, and time both."""
    started = time.perf_counter()
    try:
        found = _one_step(model)
    except TillerError as error:
        return Check("self-test", False, str(error))  # it says itself what to do
    except Exception as error:
        where = "install tiller again, from where it came; if that does not help, report this line"
        return Check("self-test", False, f"{type(error).__name__}: {error}", where)
    return Check("self-test", True, f"{found}; {time.perf_counter() - started:.1f} s with loading")


def _one_step(model: str) -> str:
    """The times of two steps of the real search, without and with a gradient."""
    from tiller.core.budget import Budget
    from tiller.core.search import search_phases
    from tiller.methods.base import Task
    from tiller.methods.dno import Dno
    from tiller.methods.raw import Raw
    from tiller.models import load_model
    from tiller.rewards import make_reward

    loaded = load_model(model)
    task = Task(loaded, "a red cat", "", make_reward("brightness"))
    seconds = []
    for method in (Raw(num_inference_steps=2), Dno(num_inference_steps=2)):
        (step,) = search_phases(method.build(task), Budget(steps=1), seed=0)
        seconds.append(step.cost.seconds)
    gradient = step.evaluation.grad
    if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        raise TillerError("the gradient of the picture is zero or not finite")
    return (
        f"{model} on {loaded.device}: a picture in 2 steps {seconds[0]:.2f} s, "
        f"with its gradient {seconds[1]:.2f} s"
    )


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _package(name: str) -> Check:
    if not _installed(name):
        return Check(name, False, "not installed", f"pip install {name}")
    return Check(name, True, metadata.version(name))


def _extra(extra: str, package: str) -> Check:
    if not _installed(package):
        remedy = f"pip install -e '.[{extra}]'"  # the index has another package called tiller
        return Check(f"extra {extra}", True, "not installed (optional)", remedy)
    return Check(f"extra {extra}", True, f"{package} {metadata.version(package)}")


def _device() -> Check:
    import torch

    threads = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Check(
            "device", True, f"cuda: {torch.cuda.get_device_name(0)}, {memory:.0f} GiB; {threads}"
        )
    if torch.backends.mps.is_available():
        return Check("device", True, f"cpu, {threads} (mps is there; models are loaded on the cpu)")
    return Check("device", True, f"cpu, {threads}")


def _hub() -> Check:
    from huggingface_hub import constants

    state = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "online"
    cache = Path(constants.HF_HUB_CACHE)
    kept = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    return Check("hub", True, f"{state}; cache {cache} with {kept} models")


def _weights() -> Check:
    folder = bundled_folder()
    if (folder / "model_index.json").is_file():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        return Check("bundled model", True, f"{size:.1f} MB in {folder}")
    return Check(
        "bundled model",
        False,
        f"no weights in {folder}",
        "reinstall tiller, or train them: python -m tiller.models.bundled all",
    )


def _folder() -> Check:
    here = Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=here, prefix=".tiller-doctor-") as file:
            file.write(b"ok")
            file.flush()
    except OSError as error:
        why = error.strerror or str(error)
        return Check(
            "current folder", False, f"{here}: {why}", "run elsewhere, or give --out a folder"
        )
    return Check("current folder", True, f"{here} can be written")


def _disk() -> Check:
    free = shutil.disk_usage(os.curdir).free / 1e6
    remedy = "" if free >= FREE_MB else f"make room: {FREE_MB} MB are a safe minimum"
    return Check("free disk", free >= FREE_MB, f"{free / 1e3:.1f} GB", remedy)
