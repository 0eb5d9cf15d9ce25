"""Pictures as a page carries them: inside the file, no larger than they are shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiller.runs.png import open_png

PIXELATED_UP_TO = 128  # pixels: smaller pictures are enlarged in squares, as they are
FRAME_PIXELS = 256  # longest side of a filmstrip picture, shorter side of a strip of several


@dataclass(frozen=True)
class PictureView:
    """A picture inside the page."""

    uri: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class StripView:
    """Several pictures side by side, and what they are."""

    title: str
    picture: PictureView


def picture(path: Path) -> PictureView:
    """The file as it is, so that a picture saved from the page still says how it was made.

    Raises:
        RunError: it is damaged.
    """
    image, _, _ = open_png(path)
    return _embedded(path.read_bytes(), "png", *image.size, shown=max(image.size))


def thumbnail(path: Path) -> PictureView:
    """A picture of a filmstrip: made smaller where it is larger than that.

    Raises:
        RunError: it is damaged.
    """
    image, _, _ = open_png(path)
    return _smaller(path, FRAME_PIXELS / max(image.size), shown=max(image.size))


def strips(paths: Sequence[tuple[str, Path]]) -> list[StripView]:
    """Files of several pictures side by side, with titles: each picture made smaller where large.

    Files that are not there are passed over.

    Raises:
        RunError: one is damaged.
    """
    found = []
    for title, path in paths:
        if path.is_file():
            height = open_png(path)[0].size[1]
            found.append(StripView(title, _smaller(path, FRAME_PIXELS / height, shown=height)))
    return found


def _smaller(path: Path, factor: float, *, shown: int) -> PictureView:
    image, _, _ = open_png(path)
    if factor >= 1:
        return _embedded(path.read_bytes(), "png", *image.size, shown=shown)
    width, height = (max(1, round(side * factor)) for side in image.size)
    buffer = io.BytesIO()
    image.convert("RGB").resize((width, height)).save(buffer, "JPEG", quality=85)
    return _embedded(buffer.getvalue(), "jpeg", width, height, shown=shown)


def _embedded(data: bytes, kind: str, width: int, height: int, *, shown: int) -> PictureView:
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return PictureView(uri, width, height, pixelated=shown <= PIXELATED_UP_TO)
