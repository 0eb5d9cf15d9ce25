"""Load a frozen model from a name, a folder, a file, the hub or a pipeline object.

Only safetensors files are read: no pickle is ever loaded. `HF_HUB_OFFLINE` and the hub's cache
are honoured by diffusers itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open

from tiller.core.errors import InvalidInput, TillerError
from tiller.core.paths import located
from tiller.core.settings import meant
from tiller.models.base import FrozenModel, SamplerSettings
from tiller.models.concept_files import read_named, split_named
from tiller.models.concepts import Concept
from tiller.models.diffusers_adapter import LatentDiffusion
from tiller.models.quiet import quietly
from tiller.models.schedulers import NAMES
from tiller.models.sdxl import StableDiffusionXL
from tiller.models.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BUNDLED = {"emoji": Path(__file__).parent / "bundled" / "weights"}
"""Models that come with the package, by name."""

FILE_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")

FAMILIES: dict[str, type[LatentDiffusion]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}
"""The diffusers pipelines that can be steered, by class."""

SUPPORTED = f"supported pipelines: {', '.join(FAMILIES)} (Stable Diffusion 1.x, 2.x and XL, LCM)"

WITHOUT: dict[type[LatentDiffusion], dict[str, Any]] = {
    StableDiffusion: {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
    StableDiffusionXL: {"image_encoder": None, "feature_extractor": None, "add_watermarker": False},
}
"""Components that steering does not use."""


def is_emoji(model: FrozenModel) -> bool:
    """Whether it is the bundled model, which knows little and has a judge."""
    return model.source in BUNDLED


def load_model(
    spec: str | os.PathLike[str] | DiffusionPipeline,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    variant: str | None = None,
    local_files_only: bool | None = None,
    scheduler: str | None = None,
    concepts: Sequence[str | os.PathLike[str] | Concept] = (),
) -> FrozenModel:
    """A frozen text-to-image model, ready to be steered.

    Args:
        spec: "emoji" (the bundled model), a hub id, a folder in the hub's layout, a
            `.safetensors` single file, or a diffusers pipeline object. A `defaults.json` in a
            folder holds the fields of `SamplerSettings` that the model was made for.
        dtype: of weights and latents, e.g. "float16"; float32 by default, a pipeline object
            stays as it is.
        device: e.g. "cuda:1"; the accelerator where there is one, a pipeline object stays where
            it is.
        variant: of the weight files, e.g. "fp16".
        local_files_only: never ask the hub; by default as `HF_HUB_OFFLINE` says.
        scheduler: one of ddim, lms, euler, pndm, dpmsolver++, euler_a, lcm in place of the
            model's own.
        concepts: learned words that prompts may name by their tokens: files (see
            `tiller.models.concept_files`), each with another token behind it where that is wanted,
            `FILE=<TOKEN>`, or `Concept` objects, which a run cannot load again by itself.

    Raises:
        InvalidInput: nothing there, not reachable, or a model that is not supported.

    Example:
        >>> import tiller
        >>> model = tiller.load_model("emoji")      # doctest: +SKIP
        >>> model.defaults.num_inference_steps      # doctest: +SKIP
        20
    """
    wanted = _dtype(dtype)
    words = [_concept(one) for one in concepts]
    if scheduler is not None and scheduler not in NAMES:
        raise InvalidInput(f"unknown {scheduler=}; expected one of {', '.join(NAMES)}")
    if not isinstance(spec, (str, os.PathLike)):
        return _from_object(spec, wanted, device, scheduler, words)
    name = os.fspath(spec)
    if not name.strip():
        raise InvalidInput(
            'expected a model: "emoji", a folder, a .safetensors file or a hub id, got ""'
        )
    path = BUNDLED.get(name) or located(name)
    options: dict[str, Any] = {"dtype": wanted or torch.float32}
    defaults: dict[str, Any] = {}
    with _one_line(name):
        if path.suffix in FILE_SUFFIXES:
            kind = _kind_of_file(path)
            pipeline = _single_file(path, kind, options, local_files_only)
        else:
            folder = path.is_dir()
            if not folder and name in BUNDLED:
                raise InvalidInput(
                    f"the bundled model {name!r} is not in this installation: expected its weights "
                    f"at {str(path)!r}; install the package again, or train them with "
                    "`python -m tiller.models.bundled`"
                )
            if not folder and not _is_hub_id(name):
                raise InvalidInput(f"expected a model's folder at {str(path)!r}, there is none")
            source = str(path) if folder else name
            options["local_files_only"] = folder or local_files_only or None
            if variant is not None:
                options["variant"] = variant
            kind = _kind(source, options["local_files_only"])
            defaults = _read_defaults(path) if folder else {}
            with quietly():
                pipeline = _of(kind).from_pretrained(
                    source, use_safetensors=True, **options, **WITHOUT[FAMILIES[kind]]
                )
    pipeline.to(_device(device))
    local = name not in BUNDLED and path.exists()
    source = str(path.resolve()) if local else name
    given: dict[str, Any] = {
        "dtype": None if wanted is None else str(wanted).removeprefix("torch."),
        "variant": variant,
        "scheduler": scheduler,
    }
    if concepts:
        given["concepts"] = [_whole(one) for one in concepts]
    return FAMILIES[kind](
        pipeline,
        name=name,
        source=source,
        options=given,
        defaults=defaults,
        scheduler=scheduler,
        concepts=words,
    )


def _from_object(
    pipeline: Any,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    scheduler: str | None,
    concepts: Sequence[Concept],
) -> FrozenModel:
    from diffusers import DiffusionPipeline

    if not isinstance(pipeline, DiffusionPipeline):
        raise InvalidInput(
            "expected a model's name, folder, file or a diffusers pipeline object, "
            f"got a {type(pipeline).__name__}"
        )
    kind = type(pipeline).__name__
    if kind not in FAMILIES:
        raise InvalidInput(f"a {kind} cannot be steered yet; {SUPPORTED}")
    # Refuses before anything is moved.
    model = FAMILIES[kind](pipeline, scheduler=scheduler, concepts=concepts)
    if dtype is None and device is None:
        return model
    pipeline.to(model.device if device is None else _device(device), dtype or model.dtype)
    return FAMILIES[kind](pipeline, scheduler=scheduler, concepts=concepts)


def _concept(given: Any) -> Concept:
    if given is None:  # from a run's record, see `_whole`
        raise InvalidInput(
            "this model had a concept that was no file; pass the model as it was: "
            "resume(run, model=...)"
        )
    return given if isinstance(given, Concept) else read_named(given)


def _whole(concept: str | os.PathLike[str] | Concept) -> str | None:
    """What loads the concept again from any folder; None for an object."""
    if isinstance(concept, Concept):
        return None
    file, token = split_named(os.fspath(concept))
    return f"{file.absolute()}={token}" if token else str(file.absolute())


def _kind_of_file(path: Path) -> str:
    """The class of one checkpoint file: of a `model_index.json` beside it, else by its names."""
    if path.suffix != ".safetensors":
        raise InvalidInput(
            f"expected a .safetensors file, got {path.name!r}: pickled checkpoints can run code "
            "and are never loaded; convert it to safetensors"
        )
    if not path.is_file():
        raise InvalidInput(f"expected a model in the file {str(path)!r}, there is none")
    if (path.parent / "model_index.json").is_file():
        return _kind(str(path.parent), True)
    try:
        with safe_open(path, "pt") as file:
            xl = any(name.startswith("conditioner.embedders.") for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidInput(f"{str(path)!r} is not whole: {error}; download it again") from error
    return "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"


def _single_file(
    path: Path, kind: str, options: dict[str, Any], local_files_only: bool | None
) -> Any:
    """A pipeline from one checkpoint file, configured by a `model_index.json` beside it if any."""
    options = {**options, **WITHOUT[FAMILIES[kind]]}
    if (path.parent / "model_index.json").is_file():
        options = {**options, "config": str(path.parent)}
    if local_files_only:
        options = {**options, "local_files_only": True}
    try:
        with quietly():
            return _of(kind).from_single_file(str(path), **options)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(
            f"cannot load the checkpoint {str(path)!r}: {_first_line(error)}. A single file holds "
            "no configuration: it comes from the hub, or from a folder with model_index.json (and "
            "the configs of its components) in which the file lies"
        ) from error


def _of(kind: str) -> Any:
    """diffusers' class of that name; the library is imported once a model is loaded."""
    import diffusers

    return getattr(diffusers, kind)


def _kind(source: str, local_files_only: bool | None) -> str:
    """The pipeline's class by its index; others are refused before any weight is fetched."""
    file = Path(source) / "model_index.json"
    if not Path(source).is_dir():
        found = huggingface_hub.hf_hub_download(
            source, "model_index.json", local_files_only=bool(local_files_only)
        )
        file = Path(found)
    index = json.loads(file.read_text(encoding="utf-8"))
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str):
        raise InvalidInput(
            f"the model_index.json of {source!r} names no pipeline (its _class_name); {SUPPORTED}"
        )
    if kind not in FAMILIES:
        raise InvalidInput(f"{source!r} is a {kind}, which cannot be steered yet; {SUPPORTED}")
    return kind


def _read_defaults(folder: Path) -> dict[str, Any]:
    """The fields of `SamplerSettings` in the folder's `defaults.json`, if it has one."""
    file = folder / "defaults.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{str(file)!r} is not JSON: {error}") from error
    allowed = [f.name for f in fields(SamplerSettings)]
    unknown = sorted(set(found) - set(allowed)) if isinstance(found, dict) else [type(found)]
    if unknown:
        raise InvalidInput(
            f"{str(file)!r} must hold an object with some of {', '.join(allowed)}; got {unknown}"
        )
    try:
        SamplerSettings(**found)
    except (InvalidInput, TypeError) as error:
        raise InvalidInput(f"{str(file)!r} holds what no sampler takes: {error}") from error
    return dict(found)


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what the libraries raise into one line that says what to do."""
    try:
        with warnings.catch_warnings():
            # diffusers still passes arguments to the hub that the hub ignores, and warns about
            warnings.filterwarnings("ignore", message=".*deprecated and ignored.*")
            yield
    except TillerError:
        raise
    except (OSError, ValueError, SafetensorError, NotImplementedError) as error:
        other = f'or give a folder, a .safetensors file or "emoji".{meant(name, BUNDLED)}'
        if Path(name).expanduser().exists() or name in BUNDLED:
            line = (
                f"cannot load the model in {name!r}: {_first_line(error)}; expected diffusers' "
                "layout: model_index.json and a folder with safetensors weights for each component"
            )
        elif huggingface_hub.constants.HF_HUB_OFFLINE:
            line = (
                f"the hub is offline (HF_HUB_OFFLINE=1) and the model {name!r} is not in its "
                f"cache: download it first, {other}"
            )
        else:
            line = (
                f"cannot load the model {name!r} from the hub: {_first_line(error)}; check the "
                f"name and the connection, {other}"
            )
        raise InvalidInput(line) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:;")


def _is_hub_id(name: str) -> bool:
    """`owner/name` or `name`, in the hub's alphabet; anything else is a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InvalidInput(f"dtype must be float32, float16, bfloat16 or float64, got {dtype!r}")
    return found


def _device(device: torch.device | str | None) -> torch.device:
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)  # a device may have a name here and not be there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidInput(
            f"cannot use {device=}: {_first_line(error)}; `tiller doctor` says what there is"
        ) from error
    return found
