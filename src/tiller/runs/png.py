"""Pictures that say how they were made: PNG text chunks, written and read.

Two chunks: `parameters`, the text that A1111's web UI writes and most programs read, and `tiller`,
our own JSON, which is exact where the first is only customary.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tiller.core.errors import InvalidInput, RunError
from tiller.runs.files import explained
from tiller.runs.spec import flattened

if TYPE_CHECKING:
    from PIL.Image import Image

_NEGATIVE = "Negative prompt:"
_SETTING = re.compile(r'\s*([^:,"]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
# Schedulers under the names that A1111 users know; others keep their own.
_SAMPLERS = {
    "ddim": "DDIM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "dpmsolver++": "DPM++ 2M",
    "euler_a": "Euler a",
    "lcm": "LCM",
}


def to_image(image: Image | Tensor) -> Image:
    """A PIL picture from one, or from [1, 3, H, W] or [3, H, W] in [0, 1], rounded as diffusers do.

    Raises:
        InvalidInput: a tensor of another shape.
    """
    if not isinstance(image, Tensor):
        return image
    from PIL import Image as Pillow

    single = image[0] if image.ndim == 4 and len(image) == 1 else image
    if single.ndim != 3 or len(single) != 3:
        raise InvalidInput(f"a picture has shape [1, 3, H, W] or [3, H, W], got {[*image.shape]}")
    pixels = (single.detach().cpu().float().clamp(0, 1) * 255).round().byte()
    return Pillow.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def encode_png(image: Image | Tensor, metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a PNG with both chunks.

    Args:
        image: a PIL picture or [1, 3, H, W] in [0, 1].
        metadata: plain data for the `tiller` chunk; `prompt`, `negative_prompt`, `seed`, `model`
            and the sampler's settings among it also make the `parameters` chunk.

    Raises:
        RunError: `metadata` is not plain data.
    """
    from PIL.PngImagePlugin import PngInfo

    try:
        # ASCII, so that control characters and emoji arrive as escapes, whatever reads the chunk.
        own = json.dumps(dict(metadata), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunError(f"a picture's metadata must be plain data: {error}") from error
    chunks = PngInfo()
    chunks.add_text("parameters", parameters_of(metadata))
    chunks.add_text("tiller", own)
    buffer = io.BytesIO()
    to_image(image).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def open_png(path: Path) -> tuple[Image, str | None, dict[str, Any] | None]:
    """A PNG's picture, its `parameters` text and its `tiller` JSON; None for a chunk not there.

    Raises:
        RunError: the file cannot be read as a picture, or its `tiller` chunk is no JSON object.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with explained(path, "read the picture"):
            data = path.read_bytes()
        image = Pillow.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, SyntaxError, ValueError, OSError) as error:
        raise RunError(
            f"{path} is not a readable picture ({error}). Resume or repeat the run to draw it again"
        ) from error
    own, text = image.info.get("tiller"), image.info.get("parameters")
    try:
        parsed = None if own is None else json.loads(own)
        if parsed is not None and not isinstance(parsed, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise RunError(f"the tiller chunk of {path} is damaged: {error}") from error
    return image, None if text is None else str(text), parsed


def parameters_of(metadata: Mapping[str, Any]) -> str:
    """The A1111 text of a picture's metadata; settings that are not there are left out.

    A search's seed has a name of its own: plain sampling with that seed draws another picture.
    """
    metadata = flattened(metadata)
    width, height = metadata.get("width"), metadata.get("height")
    scheduler, method = metadata.get("scheduler"), metadata.get("method")
    settings = {
        "Steps": metadata.get("num_inference_steps"),
        "Sampler": _SAMPLERS.get(str(scheduler), scheduler),
        "CFG scale": metadata.get("guidance_scale"),
        "Seed": metadata.get("seed") if method is None else None,
        "Size": f"{width}x{height}" if width and height else None,
        "Model": metadata.get("model"),
        "Eta": metadata.get("eta") or None,
        "Tiller method": method,
        "Tiller seed": None if method is None else metadata.get("seed"),
    }
    return format_parameters(
        metadata.get("prompt") or "",
        metadata.get("negative_prompt") or "",
        {name: value for name, value in settings.items() if value is not None},
    )


def format_parameters(prompt: str, negative_prompt: str, settings: Mapping[str, Any]) -> str:
    """The A1111 `parameters` text: prompt, negative prompt, then the settings on one line.

    Values with a comma, a colon, a quote or a line break are quoted as JSON. A line of a prompt
    that would be taken for the negative prompt or for the settings gets a space before its colon:
    the format has no escape for it, and tokenizers read both alike.

    Example:
        >>> print(format_parameters("a red cat", "blurry", {"Steps": 20, "Seed": 0}))
        a red cat
        Negative prompt: blurry
        Steps: 20, Seed: 0
    """
    lines = [_plain(prompt)]
    if negative_prompt:
        lines.append(f"{_NEGATIVE} {_plain(negative_prompt)}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and settings of an A1111 `parameters` text.

    Example:
        >>> parse_parameters("a red cat\\nSteps: 20, Sampler: DDIM, Seed: 0")
        ('a red cat', '', {'Steps': '20', 'Sampler': 'DDIM', 'Seed': '0'})
    """
    *lines, last = text.split("\n")
    settings: dict[str, str] = {}
    if last.startswith("Steps:") or len(_SETTING.findall(last)) >= 3:
        for name, value in _SETTING.findall(last):
            settings[name.strip()] = json.loads(value) if value.startswith('"') else value.strip()
    elif last:
        lines.append(last)
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        if line.startswith(_NEGATIVE):
            target = negative
            target.append(line[len(_NEGATIVE) :].strip())
        else:
            target.append(line)
    return "\n".join(prompt), "\n".join(negative), settings


def _plain(prompt: str) -> str:
    """What both PNG text and the A1111 format can carry: no NUL, no foreign line breaks."""
    text = prompt.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    text = text.encode("utf-8", "replace").decode()
    text = re.sub(r"^(\s*(?:Negative prompt|Steps))(?=:)", r"\1 ", text, flags=re.MULTILINE)
    return text.strip()


def _quoted(value: Any) -> str:
    text = str(value).encode("utf-8", "replace").decode().replace("\0", "")
    if not text.strip() or text != text.strip() or any(char in text for char in ',:"\n\r'):
        return json.dumps(text, ensure_ascii=False)
    return text
