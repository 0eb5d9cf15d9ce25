"""What leaves a run for other programs: the picture, the words, and a script without Tiller.

The script needs the names that `RunStore.save_best` was given as metadata: `prompt`,
`negative_prompt`, `model_path` or else `model` (hub id, folder or single file; None for a pipeline
object), `pipeline` (its class in diffusers), `scheduler` (its short name), `num_inference_steps`,
`guidance_scale`, `eta`, `height`, `width`, `dtype`, `device`. The sampler's may be under `sampler`.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from tiller.core.errors import InvalidInput, RunError, TillerNotice
from tiller.models.schedulers import CLASSES
from tiller.runs.affix_report import AFFIX
from tiller.runs.concept_report import CONCEPT
from tiller.runs.files import explained, write_atomically
from tiller.runs.found_words import found_words
from tiller.runs.record import Record, read_run
from tiller.runs.store import BEST
from tiller.runs.templating import rendered

FORMATS = ("png", "prompt", "python", "diffusers")
_ELSEWHERE = ("diffusers", "a1111", "comfyui")
_WEIGHTS = "unet."  # what the names of trained tensors in best.safetensors begin with
_STEPWISE = ("ddim", "euler_a", "lcm")  # those that can add a noise at each step
_SD, _XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
PIPELINES = {_SD: _SD, "LatentConsistencyModelPipeline": _SD, _XL: _XL}  # -> what redraws it
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")  # as `encode_prompt` gives them
_POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def export(run_dir: str | Path, to: str, folder: str | Path | None = None) -> str | Path:
    """Export the best of a run.

    Args:
        run_dir: the run's folder.
        to: `png` (the picture, with its settings inside), `prompt` (the words), `python` (a
            script in plain diffusers that redraws the picture, with its `noise.safetensors`) or
            `diffusers` (trained weights: adapters for `pipe.load_lora_weights(path)`, or a whole
            UNet for `pipe.unet.load_state_dict(safetensors.torch.load_file(path))`).
        folder: where files go; `<run>/exports/<to>` if not given.

    Returns:
        The words for `prompt`; else the path of the picture, the script or the weights.

    Raises:
        InvalidInput: this run cannot be exported to `to`; `python` where the method guides the
            sampling (lgd) or trains weights, `diffusers` where nothing was trained.
        RunError: the run cannot be read, or the export not written.

    Warns:
        TillerNotice: with `prompt`, the words alone draw another picture.
    """
    record = read_run(run_dir)
    kind = record.spec.get("kind")
    if kind == CONCEPT and to not in available(record):
        raise InvalidInput(
            f"cannot export to {to!r}: the run learned a concept, which `tiller concept convert "
            f"RUN --to diffusers` (or a1111, comfyui) writes. This run has: "
            f"{', '.join(available(record))}"
        )
    if kind == AFFIX and to != "png":
        raise InvalidInput(
            f"this run trained an affix, kept in {record.spec['file']}; take that elsewhere: "
            "tiller affix export FILE --to diffusers"
        )
    if to not in available(record) and (to not in FORMATS or to == "diffusers"):
        raise InvalidInput(
            f"cannot export to {to!r}: {_missing(record, to)}. This run has: "
            f"{', '.join(available(record))}"
        )
    if to == "python" and not _redrawable(record):
        raise InvalidInput(
            f"cannot export to 'python': {record.method} {_elsewise(record)}; the noise alone "
            f"draws another picture. This run has: {', '.join(available(record))}"
        )
    if to == "prompt":
        _say_beside(record)
        return _words(record)
    target = record.path / "exports" / to if folder is None else Path(folder).absolute()
    if to == "png":
        picture = record.best_image
        if picture is None:
            raise RunError(f"{record.path} has no picture yet. Resume it first (`tiller resume`)")
        with explained(picture, "read the picture"):
            data = picture.read_bytes()
        return _write(target, {"best.png": data}) / "best.png"
    settings, data = _inputs(record)
    if to == "diffusers":
        if record.best_step <= 1:
            warnings.warn(
                "the best round is the first, whose weights are the frozen model's own: this "
                "training raised the reward of the run's picture in no round; train it longer "
                "(`tiller resume RUN --budget ...`)",
                TillerNotice,
                stacklevel=2,
            )
        name, weights = _weights_file(data)
        return _write(target, {name: weights}) / name
    noise_file, slots = _noise_file(settings, data)
    script = redraw_script({**settings, "noise_path": target / "noise.safetensors"}, slots)
    files = {"noise.safetensors": noise_file, "redraw.py": script.encode("utf-8")}
    return _write(target, files) / "redraw.py"


def available(record: Record) -> list[str]:
    """The exports that a run has."""
    found = {
        "png": record.best_image is not None,
        "prompt": True,
        "python": record.inputs() is not None and _redrawable(record),
        "diffusers": _trained(record),
    }
    return [name for name in FORMATS if found[name]]


def _redrawable(record: Record) -> bool:
    """Whether plain sampling draws the picture again: `Method.redrawable`."""
    return bool(record.spec.get("redrawable", True))


def _elsewise(record: Record) -> str:
    """Why the noise and the words alone do not draw the picture."""
    if _trained(record):
        return "trained weights that the frozen model has not; take them with --to diffusers"
    return "guides every sampling step by the reward, and a script in plain diffusers does not"


def _trained(record: Record) -> bool:
    """Whether the best picture was drawn with trained weights."""
    return any(name.startswith(_WEIGHTS) for name in _names(record))


def _missing(record: Record, to: str) -> str:
    """Why a run cannot go to a program that it has nothing for."""
    if to not in _ELSEWHERE:
        return "it is unknown"
    if "prompt_embeds" not in _names(record):
        return "it is learned tensors, and this run has none"
    if to == "diffusers":
        return "it is trained weights, and this run has states of the prompt: take --to python"
    return f"{to} reads tokens before the text encoder, and this run's stand behind it"


def _names(record: Record) -> list[str]:
    """The names in `best.safetensors`, read off its header; none where there is no such file."""
    path = record.path / BEST
    if not path.is_file():
        return []
    with explained(path, "read the best picture's inputs"), path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    try:
        return list(json.loads(header))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error!r}). Repeat the run") from error


def _weights_file(data: bytes) -> tuple[str, bytes]:
    """The trained tensors under diffusers' own name for such a file."""
    from safetensors.torch import load, save

    tensors = {name: t for name, t in load(data).items() if name.startswith(_WEIGHTS)}
    if any(".lora_A." in name for name in tensors):
        return "pytorch_lora_weights.safetensors", save(tensors, {"format": "pt"})
    plain = {name.removeprefix(_WEIGHTS): tensor for name, tensor in tensors.items()}
    return "diffusion_pytorch_model.safetensors", save(plain, {"format": "pt"})


def _words(record: Record) -> str:
    best = record.inputs()
    settings = best[0] if best is not None else {}
    prompt = settings.get("prompt", record.prompt)
    negative = settings.get("negative_prompt", record.negative_prompt)
    return f"{prompt}\nNegative prompt: {negative}\n" if negative else f"{prompt}\n"


def _say_beside(record: Record) -> None:
    """A notice of what the picture was drawn with beside its words."""
    names = _names(record)
    parts = {
        "its noise": found_words(record) is None,  # else the words are what was searched
        "states of the prompt": "prompt_embeds" in names,
        "trained weights": _trained(record),
    }
    beside = [part for part, there in parts.items() if there]
    if names and beside:
        others = [name for name in ("python", "diffusers") if name in available(record)]
        remedy = f"; --to {others[0]} takes that along" if others else ""
        warnings.warn(
            f"the words alone draw another picture: {' and '.join(beside)} made this one, "
            f"too{remedy}",
            TillerNotice,
            stacklevel=3,
        )


def _inputs(record: Record) -> tuple[dict[str, Any], bytes]:
    best = record.inputs()
    if best is None:
        raise RunError(
            f"{record.path} has no best.safetensors: no round of it was finished. Resume it first "
            f"(`tiller resume`). This run has: {', '.join(available(record))}"
        )
    missing = [k for k in ("prompt", "num_inference_steps", "guidance_scale") if k not in best[0]]
    if missing:
        raise RunError(f"{record.path}/best.safetensors lacks {missing}; repeat the run")
    return best


def _noise_file(settings: dict[str, Any], data: bytes) -> tuple[bytes, dict[str, int]]:
    """`noise.safetensors`, and its tensors' names with their first dimension."""
    from safetensors.torch import load, save

    tensors = load(data)
    noise = tensors.get("noise")
    if noise is None:
        raise RunError("best.safetensors has no noise; repeat the run")
    tensors["noise"] = noise[0] if noise.ndim == 5 else noise
    names = ("scheduler", "num_inference_steps", "eta", "guidance_scale")
    about = {name: str(settings[name]) for name in names if settings.get(name) is not None}
    slots = {name: len(tensor) for name, tensor in tensors.items()}
    return save(tensors, {"layout": _LAYOUT, **about}), slots


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    with explained(folder, "make the export's folder"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomically(folder / name, data, f"write {name}")
    return folder


_LAYOUT = "noise [slots, C, h, w]: slot 0 is x_T, slot k the noise added by step k - 1"


def redraw_script(settings: dict[str, Any], slots: dict[str, int]) -> str:
    """The text of `redraw.py`.

    Args:
        settings: see the module's text.
        slots: the names of the tensors in `noise.safetensors` with their first dimension.

    Raises:
        RunError: the pipeline or the scheduler is not one that a script can be given, or the
            scheduler not with a noise a step.
    """
    stepwise = slots.get("noise", 1) > 1
    name = str(settings.get("scheduler") or "ddim")
    if name not in CLASSES or (stepwise and name not in _STEPWISE):
        raise RunError(
            f"a script can redraw runs of {', '.join(CLASSES)}, and with a noise at each step "
            f"of {', '.join(_STEPWISE)}; this run has {name!r}. Export it to png or prompt"
        )
    of = str(settings.get("pipeline") or _SD)
    if of not in PIPELINES:
        raise RunError(
            f"a script can redraw runs of {', '.join(PIPELINES)}; this run has {of!r}. Export it "
            "to png or prompt"
        )
    embeds = (*_EMBEDS, *_POOLED) if PIPELINES[of] == _XL else _EMBEDS
    model = settings.get("model_path") or settings.get("model")
    dtype = str(settings.get("dtype") or "float32").removeprefix("torch.")
    single = str(model).endswith((".safetensors", ".ckpt"))
    return rendered(
        "redraw.py.j2",
        scheduler=CLASSES[name],
        stepwise=stepwise,
        drawing=name != "ddim",
        pipeline=PIPELINES[of],
        embeds=embeds,
        model=None if model is None else str(model),
        noise_path=str(settings.get("noise_path") or "noise.safetensors"),
        loader="from_single_file" if single else "from_pretrained",
        prompt=str(settings.get("prompt") or ""),
        negative_prompt=str(settings.get("negative_prompt") or ""),
        device=str(settings.get("device") or "cpu"),
        dtype=dtype if dtype in {"float16", "bfloat16", "float64"} else "float32",
        embedded=any(name in slots for name in embeds),
        num_inference_steps=int(settings["num_inference_steps"]),
        guidance_scale=float(settings["guidance_scale"]),
        eta=float(settings.get("eta") or 0),
        height=int(settings.get("height") or 0),
        width=int(settings.get("width") or 0),
    )
