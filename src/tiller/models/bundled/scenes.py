"""Captioned 64x64 pictures composed from Noto Color Emoji: the data that everything is trained on.

A scene is a pure function of (split, seed, index). Only training needs the font; it is the Debian
package `fonts-noto-color-emoji` (SIL Open Font License 1.1), or the file that the environment
variable `TILLER_FONT` names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tiller.core.errors import TillerError

from .captions import (
    NATURAL,
    NO_BACKGROUND,
    SUBJECTS,
    TWO_SUBJECTS,
    Spec,
    Split,
    caption,
    random_spec,
)

FONT = Path(os.environ.get("TILLER_FONT", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
SIZE = 64  # pixels a side
ONE_SIZES = (34, 52)  # a lone subject's longer side, pixels, inclusive
TWO_SIZES = (24, 30)  # the same for each of two

TINTS: dict[str, tuple[int, int, int]] = {
    "red": (228, 38, 38),
    "orange": (248, 132, 24),
    "yellow": (250, 214, 36),
    "green": (48, 168, 60),
    "blue": (44, 92, 228),
    "purple": (142, 60, 196),
    "pink": (250, 122, 184),
    "brown": (124, 76, 42),
    "gray": (136, 138, 142),
}
BACKGROUND_RGB: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "gray": (160, 162, 166),
    "black": (26, 26, 30),
    "yellow": (255, 230, 110),
    "green": (118, 204, 126),
    "blue": (116, 178, 246),
    "pink": (255, 180, 210),
    "orange": (252, 168, 84),
}

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """One training example: the picture, what is in it, and the caption that names it."""

    image: Picture  # [64, 64, 3], 0..255
    spec: Spec  # always with its background, also where the caption leaves it out
    caption: str
    boxes: tuple[tuple[int, int, int, int], ...]  # left, top, width, height of each subject


def _font() -> ImageFont.FreeTypeFont:
    if not FONT.exists():
        raise TillerError(
            f"expected the Noto Color Emoji font at {FONT}, which only training needs; "
            "install it with: apt-get install fonts-noto-color-emoji, or name its file in the "
            "environment variable TILLER_FONT"
        )
    return ImageFont.truetype(str(FONT), 109)


@cache
def _glyph(subject: str) -> Image.Image:
    """The subject's emoji at the font's own 109 pixels, cropped to what is drawn (RGBa)."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text(
        (10, 10), chr(SUBJECTS[subject][0]), font=_font(), embedded_color=True
    )
    return canvas.crop(canvas.getbbox()).convert("RGBa")


@cache
def sprite(subject: str, colour: str, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The tinted subject, `size` pixels on its longer side: (rgb * alpha [h,w,3], alpha [h,w,1]).

    With luminance L stretched to [0,1] inside the sprite: black .04 + .30 L, white .62 + .38 L, any
    other colour times (.35 + .85 L) with highlights above L = .85 blended to white.
    """
    glyph = _glyph(subject)
    scale = size / max(glyph.size)
    shape = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    small = glyph.resize(shape, Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float32) / 255.0
    alpha = pixels[..., 3:]
    rgb = np.clip(pixels[..., :3] / np.maximum(alpha, 1e-3), 0.0, 1.0)
    if colour != NATURAL:
        rgb = _tint(rgb, alpha[..., 0], colour)
    return (rgb * alpha * 255.0).astype(np.float32), alpha


def _tint(rgb: NDArray[np.float32], alpha: NDArray[np.float32], colour: str) -> NDArray[np.float32]:
    luminance = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    low, high = np.percentile(luminance[alpha > 0.5], [2, 98])
    stretched = np.clip((luminance - low) / max(high - low, 1e-3), 0.0, 1.0)[..., None]
    if colour == "black":
        return np.repeat(0.04 + 0.30 * stretched, 3, axis=-1)
    if colour == "white":
        return np.repeat(0.62 + 0.38 * stretched, 3, axis=-1)
    tinted = np.array(TINTS[colour], dtype=np.float32) / 255.0 * (0.35 + 0.85 * stretched)
    highlight = np.clip((stretched - 0.85) / 0.15, 0.0, 1.0) * 0.6
    blended: NDArray[np.float32] = np.clip(tinted * (1.0 - highlight) + highlight, 0.0, 1.0)
    return blended


def compose(
    spec: Spec, rng: np.random.Generator, grid: int = 1
) -> tuple[Picture, tuple[tuple[int, ...], ...]]:
    """Draw the spec with random sizes and places: one anywhere, two side by side, none cut off.

    Sizes and places are multiples of `grid` pixels.
    """
    assert spec.background is not None
    canvas = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    canvas[:] = BACKGROUND_RGB[spec.background]
    half = SIZE // len(spec.subjects)
    low, high = ONE_SIZES if len(spec.subjects) == 1 else TWO_SIZES
    boxes = []
    for slot, (subject, colour) in enumerate(spec.subjects):
        rgb, alpha = sprite(subject, colour or NATURAL, _multiple(rng, low, high, grid))
        height, width = alpha.shape[:2]
        left = slot * half + _multiple(rng, 0, half - width, grid)
        top = _multiple(rng, 0, SIZE - height, grid)
        patch = canvas[top : top + height, left : left + width]
        patch *= 1.0 - alpha
        patch += rgb
        boxes.append((left, top, width, height))
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), tuple(boxes)


def _multiple(rng: np.random.Generator, low: int, high: int, grid: int) -> int:
    return grid * int(rng.integers(-(-low // grid), high // grid + 1))


def scene(index: int, seed: int = 0, split: Split = "train", grid: int = 1) -> Scene:
    """The scene number `index` of the split: the same for the same arguments, on any machine."""
    rng = np.random.default_rng([seed, index])
    spec = random_spec(rng, split, "two" if rng.random() < TWO_SUBJECTS else "one")
    image, boxes = compose(spec, rng, grid)
    hidden = rng.random() < NO_BACKGROUND
    text = caption(Spec(spec.subjects, None) if hidden else spec, rng)
    # four numbers a box: `compose` says tuples of any length
    return Scene(image, spec, text, boxes)  # type: ignore[arg-type]


def scenes(
    start: int, count: int, *, seed: int = 0, split: Split = "train", grid: int = 1
) -> list[Scene]:
    """The scenes `start` to `start + count - 1` of the split."""
    return [scene(index, seed, split, grid) for index in range(start, start + count)]


def sheet(images: NDArray[np.uint8], columns: int = 8, zoom: int = 2) -> Image.Image:
    """Pictures [n,H,W,3] side by side in one, for looking at."""
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    out = np.full((rows * (height + 2), columns * (width + 2), 3), 128, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        out[top : top + height, left : left + width] = image
    return Image.fromarray(out).resize((out.shape[1] * zoom, out.shape[0] * zoom), 0)
