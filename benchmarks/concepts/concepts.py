"""The concepts of these benchmarks: pictures that the bundled model has never seen.

Eight emoji that are not among its subjects, two subjects in two colours at once, and two styles;
four 64x64 pictures of each, as the bundled model's scenes are composed. They lie in `pictures/`, so
that no font is needed and every machine learns from the same; those and the ones in `examples/`
were written, with the font of the Debian package `fonts-noto-color-emoji`, by

    python benchmarks/concepts/concepts.py benchmarks/concepts/pictures
    python benchmarks/concepts/concepts.py examples panda strawberry dolphin outline
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tiller.models.bundled.captions import SUBJECTS
from tiller.models.bundled.scenes import BACKGROUND_RGB, SIZE, TINTS, _font

PICTURES = 4  # of each concept
SIZES = (40, 52)  # longer side of the thing, pixels
GRID = 4  # places and sizes are multiples of it, as in the scenes that the model was trained on


@dataclass(frozen=True)
class Made:
    """One concept of the benchmark.

    Attributes:
        name: for tables.
        subject: object or style.
        word: the single word that comes nearest, by eye; what a concept must beat.
    """

    name: str
    subject: str
    word: str


EMOJI = {
    "unicorn": (0x1F984, "horse"),
    "panda": (0x1F43C, "cat"),
    "rocket": (0x1F680, "sailboat"),
    "guitar": (0x1F3B8, "hammer"),
    "pineapple": (0x1F34D, "cactus"),
    "robot": (0x1F916, "truck"),
    "strawberry": (0x1F353, "apple"),
    "teddy": (0x1F9F8, "owl"),
}
NEARBY = {"dolphin": 0x1F42C}  # no concept of the tables: much like a thing that the model knows
TWO_TONE = {"dog": ("purple", "yellow"), "fish": ("green", "red")}
STYLES = {"outline": "white", "mosaic": "gray"}

CONCEPTS = (
    *(Made(name, "object", word) for name, (_, word) in EMOJI.items()),
    *(Made(f"{name} in two colours", "object", name) for name in TWO_TONE),
    *(Made(name, "style", word) for name, word in STYLES.items()),
)


def pictures(name: str) -> list[Image.Image]:
    """The four 64x64 pictures of the concept called `name`."""
    home = Path(__file__).parent / "pictures" / folder_of(name)
    return [Image.open(home / f"{i}.png").convert("RGB") for i in range(1, PICTURES + 1)]


def folder_of(name: str) -> str:
    """The concept's folder."""
    return name.replace(" ", "-")


def composed(name: str, seed: int = 0) -> list[Image.Image]:
    """The pictures made anew."""
    rng = np.random.default_rng([seed, [*(made.name for made in CONCEPTS), *NEARBY].index(name)])
    grounds = rng.permutation(sorted(BACKGROUND_RGB))[:PICTURES]
    things = rng.permutation(sorted(SUBJECTS))[:PICTURES]
    return [
        _picture(name, str(ground), str(thing), rng)
        for ground, thing in zip(grounds, things, strict=True)
    ]


def _picture(name: str, ground: str, thing: str, rng: np.random.Generator) -> Image.Image:
    kind, _, rest = name.partition(" in two colours")
    del rest
    points = {own: point for own, (point, _) in EMOJI.items()} | NEARBY
    point = points.get(name) or SUBJECTS[kind if kind in TWO_TONE else thing][0]
    sprite = _sprite(point, GRID * int(rng.integers(SIZES[0] // GRID, SIZES[1] // GRID + 1)))
    if kind in TWO_TONE:
        sprite = _two_tone(sprite, *TWO_TONE[kind])
    canvas = Image.new("RGBA", (SIZE, SIZE), (*BACKGROUND_RGB[ground], 255))
    left, top = (GRID * int(rng.integers(0, (SIZE - side) // GRID + 1)) for side in sprite.size)
    canvas.alpha_composite(sprite, (left, top))
    picture = canvas.convert("RGB")
    return _STYLED[name](picture) if name in STYLES else picture


def _sprite(point: int, size: int) -> Image.Image:
    """The emoji, `size` pixels on its longer side."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), chr(point), font=_font(), embedded_color=True)
    glyph = canvas.crop(canvas.getbbox())
    scale = size / max(glyph.size)
    shape = tuple(max(1, round(side * scale)) for side in glyph.size)
    return glyph.convert("RGBa").resize(shape, Image.Resampling.LANCZOS).convert("RGBA")


def _two_tone(sprite: Image.Image, upper: str, lower: str) -> Image.Image:
    """The sprite's upper half in one tint, its lower half in another."""
    pixels = np.asarray(sprite).astype(np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    tints = np.where(
        (np.arange(sprite.height) < sprite.height / 2)[:, None, None], TINTS[upper], TINTS[lower]
    )
    pixels[..., :3] = tints * (0.35 + 0.85 * light[..., None])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")


def _outline(picture: Image.Image) -> Image.Image:
    """Dark edges on white."""
    edges = picture.convert("L").filter(ImageFilter.FIND_EDGES).crop((1, 1, SIZE - 1, SIZE - 1))
    dark = edges.point(lambda value: 0 if value > 24 else 255).resize((SIZE, SIZE))
    return dark.convert("RGB")


def _mosaic(picture: Image.Image) -> Image.Image:
    """Squares of four pixels."""
    small = picture.resize((SIZE // 4, SIZE // 4), Image.Resampling.BOX)
    return small.resize((SIZE, SIZE), Image.Resampling.NEAREST)


_STYLED = {"outline": _outline, "mosaic": _mosaic}


def main() -> None:
    """Write the pictures of all concepts, or of some: a folder for each."""
    folder, *names = sys.argv[1:]
    for name in names or [made.name for made in CONCEPTS]:
        home = Path(folder) / folder_of(name)
        home.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(composed(name), 1):
            picture.save(home / f"{i}.png", optimize=True)


if __name__ == "__main__":
    main()
