"""Affixes for programs without Tiller: a script that draws any prompt with one."""

from __future__ import annotations

from pathlib import Path

from tiller.core.errors import InvalidInput
from tiller.methods._affix_files import read_affix
from tiller.models.loader import BUNDLED
from tiller.models.schedulers import CLASSES
from tiller.runs.export import PIPELINES
from tiller.runs.files import explained, write_atomically
from tiller.runs.templating import rendered

FORMATS = ("diffusers",)
_INPUT_SPACE = ("a1111", "comfyui")


def export_affix(file: str | Path, to: str, folder: str | Path | None = None) -> Path:
    """Write what another program needs to draw with an affix.

    `diffusers`: a copy of the file, and a script in plain diffusers that puts it around any prompt
    and passes `prompt_embeds`, by default with the model and the sampling of the training.

    Returns:
        The script's path.

    Raises:
        InvalidInput: the file is no affix, another file is in the place of one that is written, or
            the target cannot take one: embeddings of A1111 and ComfyUI are read before the text
            encoder, and these tokens stand behind it.
        RunError: the export cannot be written.
    """
    saved = read_affix(file)
    if to in _INPUT_SPACE:
        raise InvalidInput(
            f"{to} reads embeddings before the text encoder, and an affix stands behind it, so no "
            "file for it draws the same; use --to diffusers, or draw here and take the picture"
        )
    if to not in FORMATS:
        raise InvalidInput(f"unknown target {to!r}; an affix exports to {', '.join(FORMATS)}")
    about = saved.about
    source = str(about.get("model_source", about.get("model")) or "")
    sampler = about.get("sampler") or {}
    script = rendered(
        "affix.py.j2",
        model=str(BUNDLED.get(source, source)),
        pipeline=PIPELINES.get(str(about.get("pipeline")), "DiffusionPipeline"),
        dtype=str(about.get("dtype") or "float32"),
        scheduler=CLASSES.get(str(sampler.get("scheduler"))),
        steps=sampler.get("num_inference_steps"),
        guidance=sampler.get("guidance_scale"),
        file=Path(file).name,
        anchored=saved.affix.anchored,
    )
    target = Path(file).absolute().parent if folder is None else Path(folder).absolute()
    with explained(target, "make the export's folder"):
        target.mkdir(parents=True, exist_ok=True)
    with explained(Path(file), "copy the affix"):
        copied = Path(file).read_bytes()
    path = target / f"draw_{Path(file).stem}.py"
    written = {target / Path(file).name: copied, path: script.encode("utf-8")}
    for there, data in written.items():
        _refuse_other(there, data)
    for there, data in written.items():
        if not there.is_file():
            write_atomically(there, data, f"write {there.name}")
    return path


def _refuse_other(path: Path, data: bytes) -> None:
    """Refuse to replace what somebody made or changed."""
    with explained(path, "look at what is there"):
        if path.exists() and path.read_bytes() != data:
            raise InvalidInput(
                f"{path} is there already and says something else; move it away, or give another "
                "folder (--out)"
            )
