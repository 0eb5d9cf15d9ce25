"""Pictures as a page carries them: inside the file, no larger than they are shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from tiller.runs.png import open_png

PIXELATED_UP_TO = 128  # pixels: smaller pictures are enlarged in squares, as they are
FRAME_PIXELS = 256  # longest side of a filmstrip picture


@dataclass(frozen=True)
class PictureView:
    """A picture inside the page."""

    uri: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class RowView:
    """Several pictures of one kind, and what they are."""

    title: str
    pictures: list[PictureView]


def picture(path: Path) -> PictureView:
    """The file as it is, so that a picture saved from the page still says how it was made.

    Raises:
        RunError: it is damaged.
    """
    image, _, _ = open_png(path)
    return _embedded(path.read_bytes(), "png", *image.size)


def thumbnail(path: Path) -> PictureView:
    """A picture of a filmstrip: made smaller where it is larger than that.

    Raises:
        RunError: it is damaged.
    """
    image, _, _ = open_png(path)
    if max(image.size) <= FRAME_PIXELS:
        return picture(path)
    return _smaller(image)


def rows(files: Sequence[tuple[str, Path]], width: int) -> list[RowView]:
    """Files of several pictures side by side, with titles: each picture by itself, `width` wide.

    Files that are not there are passed over.

    Raises:
        RunError: one is damaged.
    """
    return [RowView(title, _apart(path, width)) for title, path in files if path.is_file()]


def _apart(path: Path, width: int) -> list[PictureView]:
    image, _, _ = open_png(path)
    height = image.size[1]
    starts = range(0, image.size[0] - width + 1, width)
    return [_smaller(image.crop((x, 0, x + width, height))) for x in starts]


def _smaller(image: Image) -> PictureView:
    """At most as large as in a filmstrip: exact where it is that small, else as JPEG."""
    small = image.convert("RGB")
    exact = max(small.size) <= FRAME_PIXELS
    small.thumbnail((FRAME_PIXELS, FRAME_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "PNG" if exact else "JPEG", **({} if exact else {"quality": 85}))
    return _embedded(buffer.getvalue(), "png" if exact else "jpeg", *small.size)


def _embedded(data: bytes, kind: str, width: int, height: int) -> PictureView:
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return PictureView(uri, width, height, pixelated=max(width, height) <= PIXELATED_UP_TO)
