"""Anybody's pictures as a model sees them: right way up, opaque, of its size; and what was done.

Pictures come from phones, scanners and the web: of any size and mode, with transparency, turned by
EXIF, animated, cut off in transfer, or no pictures at all. What cannot be used is refused by name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.paths import located

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MOST_PIXELS = 100_000_000  # 10,000 x 10,000; more is hardly a photo, and fills the memory
SMALLEST = 16  # pixels of a side; less shows nothing
CROPS = ("centre", "pad")
_PEEK = {b"%PDF": "a PDF", b"<svg": "an SVG", b"<?xm": "XML", b"PK\x03\x04": "a zip archive"}
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

Given = str | Path | Image.Image


@dataclass(frozen=True)
class Picture:
    """One picture, ready to be learned from.

    Attributes:
        name: the file's.
        image: RGB, of the model's size.
        size: (width, height) before.
        notes: what was done to it, for people.
    """

    name: str
    image: Image.Image
    size: tuple[int, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """What a concept is learned from.

    Attributes:
        items: the pictures.
        left_out: what could not be used, a sentence each, where that was allowed.
        crop: as `load_pictures` was told.
        background: likewise.
    """

    items: tuple[Picture, ...]
    left_out: tuple[str, ...] = ()
    crop: str = CROPS[0]
    background: str = "white"

    def __len__(self) -> int:
        return len(self.items)

    def tensor(self) -> Tensor:
        """[N, 3, H, W] in [0, 1]."""
        return torch.stack([to_tensor(item.image) for item in self.items])


def check_crop(crop: str) -> None:
    """Refuse what is no way to crop.

    Raises:
        InvalidInput: it is none.
    """
    if crop not in CROPS:
        raise InvalidInput(f"crop must be {' or '.join(CROPS)}, got {crop!r}")


def load_pictures(
    given: Sequence[Given],
    size: tuple[int, int],
    *,
    crop: str = "centre",
    background: str = "white",
    skip_broken: bool = False,
) -> Pictures:
    """Read pictures for a model that draws `size` = (height, width).

    Args:
        given: files, or PIL pictures.
        size: of what the model draws.
        crop: `centre` fills the model's picture and cuts what stands over; `pad` shows all of it,
            on the background.
        background: what shows where a picture is transparent or does not reach: a colour's name or
            "#rrggbb".
        skip_broken: leave out what cannot be read, and say so, instead of refusing all.

    Raises:
        InvalidInput: no picture, or one that cannot be used; all of them are named.

    Example:
        >>> wide = Image.new("RGBA", (40, 20))
        >>> wide.putpixel((20, 10), (255, 0, 0, 255))
        >>> found = load_pictures([wide], (64, 64))
        >>> found.tensor().shape, found.items[0].notes[-1]
        (torch.Size([1, 3, 64, 64]), 'enlarged 3.2 times')
    """
    if isinstance(given, (str, Path, Image.Image)):
        raise InvalidInput(f"expected a list of pictures, got one: {given!r}; write [{given!r}]")
    check_crop(crop)
    try:
        colour = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise InvalidInput(
            f"background must be a colour such as white or #ff8800, got {background!r}"
        ) from None
    found: list[Picture] = []
    broken: list[str] = []
    for i, one in enumerate(given):
        name = f"picture {i + 1}" if isinstance(one, Image.Image) else _name(Path(one))
        try:
            found.append(_picture(one, name, size, crop, colour))
        except InvalidInput as error:
            broken.append(f"{name}: {error}")
    if broken and not (skip_broken and found):
        remedy = "" if skip_broken else "; put them right, or leave them out with --skip-broken"
        which = f"{len(broken)} of {len(given)} pictures cannot be used: "
        raise InvalidInput(which + "; ".join(broken) + remedy)
    if not found:
        raise InvalidInput("expected 3 to 5 pictures of one thing or one style, got none")
    return Pictures(tuple(found), tuple(broken), crop, background)


def to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] in [0, 1] of an RGB picture."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    return pixels.permute(2, 0, 1).float() / 255


def _picture(
    one: Given, name: str, size: tuple[int, int], crop: str, colour: tuple[int, ...]
) -> Picture:
    image = one if isinstance(one, Image.Image) else _opened(located(one))
    if min(image.size) < SMALLEST:
        raise InvalidInput(f"is {image.width} x {image.height}, expected {SMALLEST} pixels a side")
    notes: list[str] = []
    try:
        upright = _upright(image, notes)
        opaque = _opaque(upright, colour, notes)
        fitted = _fitted(opaque, size, crop, colour, notes)
    except InvalidInput:
        raise
    except Exception as error:  # a damaged picture may fail anywhere in its decoder
        raise InvalidInput(f"is damaged or cut off ({_first(error)})") from error
    return Picture(name, fitted, upright.size, tuple(notes))


def _opened(path: Path) -> Image.Image:
    """The picture in a file, its pixels not read yet."""
    if path.is_dir():
        raise InvalidInput(f"is a folder; name the pictures in it: {_name(path)}/*.png")
    if not path.is_file():
        raise InvalidInput("there is no such file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}") from None
    if not data:
        raise InvalidInput("is empty (0 bytes)")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are looked at below
            image = Image.open(io.BytesIO(data), formats=known)
    except Image.DecompressionBombError:
        raise InvalidInput(_too_large("")) from None
    except UnidentifiedImageError:
        kinds = ", ".join(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))
        raise InvalidInput(f"is {_what(data)}, expected a picture ({kinds}, ...)") from None
    except Exception as error:  # a damaged picture may fail anywhere in its decoder
        raise InvalidInput(f"is damaged ({_first(error)})") from error
    if image.width * image.height > MOST_PIXELS:
        raise InvalidInput(_too_large(f"is {image.width:,} x {image.height:,} pixels, "))
    return image


def _what(data: bytes) -> str:
    """What a file is that is no picture we read."""
    if data[4:8] == b"ftyp":
        return "a HEIC photo" if data[8:12] in _HEIC else "a video"
    return _PEEK.get(data[:4], "something else")


def _name(path: Path) -> str:
    return path.name or str(path)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """The first frame, turned as EXIF says; its pixels are read here."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        image.seek(0)
        if image.format != "MPO":  # a phone's photo, with a preview or a second lens behind it
            notes.append(f"the first of {frames} frames")
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.size != image.size or turned.tobytes() != image.tobytes():
        notes.append("turned as its EXIF says")
    return turned


def _opaque(image: Image.Image, colour: tuple[int, ...], notes: list[str]) -> Image.Image:
    """RGB, transparency on the background."""
    if image.mode.startswith(("I", "F")):
        notes.append(f"mode {image.mode}, brought to 8 bits")
        return _eight_bits(image)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        opacity = np.asarray(layers)[..., 3]
        if not opacity.any():
            raise InvalidInput("is wholly transparent")
        if opacity.min() < 255:
            notes.append("its transparency on the background")
        ground = Image.new("RGBA", layers.size, (*colour, 255))
        return Image.alpha_composite(ground, layers).convert("RGB")
    if image.mode not in ("RGB", "L", "P", "1"):
        notes.append(f"mode {image.mode}")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGB of a picture with 16 or 32 bits a pixel: whole numbers of 16 bits, or fractions of 1."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = values.max(initial=0.0)
    largest = next(limit for limit in (1.0, 255.0, 65535.0, max(top, 1.0)) if top <= limit)
    if image.mode != "F":
        largest = max(largest, 65535.0 if image.mode.startswith("I;16") else 255.0)
    grey = np.clip(values / largest, 0, 1) * 255
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _fitted(
    image: Image.Image,
    size: tuple[int, int],
    crop: str,
    colour: tuple[int, ...],
    notes: list[str],
) -> Image.Image:
    """The picture in the model's size (height, width).

    Raises:
        InvalidInput: so long that padding leaves less than a pixel of its short side.
    """
    height, width = size
    scales = (width / image.width, height / image.height)
    scale = max(scales) if crop == "centre" else min(scales)
    longest = width if image.width > image.height else height
    if crop == "pad" and max(image.size) > longest * min(image.size):
        raise InvalidInput(
            f"is {image.width} x {image.height}, expected at most {longest} times as long as wide "
            "to be padded; cut it, or take --crop centre"
        )
    lost = 1 - width * height / (scale**2 * image.width * image.height)
    if crop == "centre" and lost > 0.01:
        notes.append(f"centre crop, {lost:.0%} cut off")
    elif crop == "pad" and lost < -0.01:
        notes.append("padded to the model's shape")
    if scale > 1.05:
        notes.append(f"enlarged {scale:.1f} times")
    filled = (width, height)
    if crop == "centre":
        return ImageOps.fit(image, filled, Image.Resampling.LANCZOS)
    return ImageOps.pad(image, filled, Image.Resampling.LANCZOS, color=colour)


def _too_large(what: str) -> str:
    most = f"{MOST_PIXELS // 10**6} million pixels"
    return f"{what or 'is '}too large: expected at most {most}; make it smaller"


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
