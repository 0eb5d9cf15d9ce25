"""Anybody's pictures: every mode and orientation, and what is no picture, refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiller.concepts.pictures import Pictures, load_pictures
from tiller.core.errors import InvalidInput

SIZE = (32, 32)
RED, BLUE = (220, 30, 30), (30, 30, 220)


def halves(left: tuple[int, ...] = RED, right: tuple[int, ...] = BLUE) -> Image.Image:
    """40 x 40, the left half of one colour, the right half of another."""
    image = Image.new("RGB", (40, 40), right)
    image.paste(left, (0, 0, 20, 40))
    return image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def load(*paths: Path, **options: object) -> Pictures:
    return load_pictures(paths, SIZE, **options)  # type: ignore[arg-type]


def corners(found: Pictures) -> list[list[int]]:
    """The colours of the upper left, upper right, lower left and lower right."""
    pixels = (found.tensor()[0] * 255).round().int()
    return [pixels[:, y, x].tolist() for y, x in ((2, 2), (2, -3), (-3, 2), (-3, -3))]


def near(found: list[int], wanted: tuple[int, ...], by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "RGBA", "P", "PA", "HSV"])
def test_every_mode_shows_the_same_colours(mode: str, tmp_path: Path) -> None:
    image = halves().convert("P").convert("PA") if mode == "PA" else halves().convert(mode)
    name = "x.tif" if mode == "CMYK" else "x.png"
    one = image if mode in ("PA", "HSV", "YCbCr") else saved(image, tmp_path / name)
    found = corners(load_pictures([one], SIZE))
    assert near(found[0], RED, 60 if mode in ("P", "PA") else 12)
    assert near(found[3], BLUE, 60 if mode in ("P", "PA") else 12)


@pytest.mark.parametrize("bits", ["I;16", "I", "F", "1", "L"])
def test_grey_of_any_depth_goes_from_black_to_white(bits: str, tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 1, 40), (40, 1))
    made = {
        "I;16": (ramp * 65535).astype(np.uint16),
        "I": (ramp * 65535).astype(np.int32),
        "F": ramp.astype(np.float32),
        "L": (ramp * 255).astype(np.uint8),
        "1": ramp > 0.5,
    }[bits]
    path = saved(Image.fromarray(made), tmp_path / ("x.tif" if bits in "IF" else "x.png"))
    grey = load(path).tensor()[0]
    assert grey.shape == (3, 32, 32)
    assert torch.equal(grey[0], grey[2])
    assert grey[0, 16, 0] < 0.05
    assert grey[0, 16, -1] > 0.95
    assert bool((grey[0, 16].diff() >= -0.05).all())


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P with a transparent colour"])
def test_what_is_transparent_shows_the_background(kind: str, tmp_path: Path) -> None:
    image = halves((0, 0, 0), (0, 0, 0)).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 40))
    if kind == "LA":
        image = image.convert("LA")
    if kind.startswith("P"):
        image = Image.new("P", (40, 40), 1)
        image.putpalette([0, 255, 0, 0, 0, 0])
        image.paste(0, (0, 0, 20, 40))
        path = saved(image, tmp_path / "x.png", transparency=0)
    else:
        path = saved(image, tmp_path / "x.png")
    found = load(path)
    assert near(corners(found)[0], (255, 255, 255))
    assert near(corners(found)[3], (0, 0, 0))
    assert "its transparency on the background" in found.items[0].notes
    assert near(corners(load(path, background="#ff8800"))[0], (255, 136, 0))


@pytest.mark.parametrize(("orientation", "upper_left"), [(3, BLUE), (6, RED), (8, BLUE), (1, RED)])
def test_exif_turns_a_photo(orientation: int, upper_left: tuple[int, ...], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = load(saved(halves(), tmp_path / "x.jpg", exif=exif, quality=95))
    assert near(corners(found)[0], upper_left, 30)
    assert ("turned as its EXIF says" in found.items[0].notes) == (orientation != 1)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [halves(), halves(BLUE, RED)]
    path = saved(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    found = load(path)
    assert near(corners(found)[0], RED, 30)
    assert "the first of 2 frames" in found.items[0].notes


def test_a_wide_picture_is_cropped_in_the_centre_or_padded(tmp_path: Path) -> None:
    wide = Image.new("RGB", (120, 40), (0, 255, 0))
    wide.paste(RED, (40, 0, 80, 40))
    path = saved(wide, tmp_path / "x.png")
    centre = load(path)
    assert all(near(corner, RED, 40) for corner in corners(centre))
    assert centre.items[0].size == (120, 40)
    assert "centre crop, 67% cut off" in centre.items[0].notes
    padded = load(path, crop="pad", background="black")
    assert all(near(corner, (0, 0, 0)) for corner in corners(padded))
    assert near((padded.tensor()[0, :, 16, 2] * 255).int().tolist(), (0, 255, 0), 40)
    assert "padded to the model's shape" in padded.items[0].notes


def test_a_picture_of_the_models_size_is_left_as_it_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    found = load(saved(Image.fromarray(noise), tmp_path / "x.png"))
    assert (np.asarray(found.items[0].image) == noise).all()
    assert found.items[0].notes == ()


def broken(folder: Path) -> dict[str, Path]:
    """Files that are no pictures, by what the message must say of them."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7\n%\xe2\xe3")
    (folder / "text.png").write_text("not a picture at all")
    saved(Image.new("RGB", (1, 1)), folder / "dot.png")
    saved(Image.new("RGBA", (40, 40)), folder / "nothing.png")
    whole = saved(halves().resize((200, 200)), folder / "whole.jpg").read_bytes()
    (folder / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.png").mkdir()
    (folder / "phone.heic").write_bytes(b"\0\0\0\x24ftypheic" + bytes(40))
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x24ftypisom" + bytes(40))
    long = "x" * 300 + ".png"
    return {
        "empty.png: is empty": folder / "empty.png",
        "paper.pdf: is a PDF": folder / "paper.pdf",
        "text.png: is something else": folder / "text.png",
        "dot.png: is 1 x 1": folder / "dot.png",
        "nothing.png: is wholly transparent": folder / "nothing.png",
        "torn.jpg: is damaged or cut off": folder / "torn.jpg",
        "folder.png: is a folder": folder / "folder.png",
        "gone.png: there is no such file": folder / "gone.png",
        "phone.heic: is a HEIC photo": folder / "phone.heic",
        "clip.mp4: is a video": folder / "clip.mp4",
        f"{long}: cannot look for '{str(folder)[:9]}": folder / long,
        "home.png: cannot look for '~nobody-of-that-name/home.png'": Path(
            "~nobody-of-that-name/home.png"
        ),
        ".: is a folder; name the pictures in it: ./*.png": Path(),
    }


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    for message, path in broken(tmp_path).items():
        with pytest.raises(InvalidInput, match="1 of 1 pictures cannot be used") as caught:
            load(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "--skip-broken" in str(caught.value)


def test_the_others_are_used_where_that_is_asked_for(tmp_path: Path) -> None:
    bad = broken(tmp_path)
    good = saved(halves(), tmp_path / "good.png")
    with pytest.raises(InvalidInput, match=rf"{len(bad)} of {len(bad) + 1} pictures"):
        load(*bad.values(), good)
    found = load(*bad.values(), good, skip_broken=True)
    assert [item.name for item in found.items] == ["good.png"]
    assert len(found.left_out) == len(bad)
    with pytest.raises(InvalidInput, match="cannot be used"):
        load(*bad.values(), skip_broken=True)


def test_a_picture_of_400_million_pixels_is_not_opened(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    for side in (20_000, 12_000):  # beyond Pillow's own limit, and below it
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path = tmp_path / "huge.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x"))
        with pytest.raises(InvalidInput, match="too large: expected at most 100 million pixels"):
            load(path)


def test_no_picture_and_wrong_options_are_refused(tmp_path: Path) -> None:
    path = saved(halves(), tmp_path / "x.png")
    with pytest.raises(InvalidInput, match=r"3 to 5 pictures .* got none"):
        load()
    with pytest.raises(InvalidInput, match="crop must be centre or pad, got 'left'"):
        load(path, crop="left")
    with pytest.raises(InvalidInput, match=r"a colour such as white .* got 'whitish'"):
        load(path, background="whitish")
    with pytest.raises(InvalidInput, match="expected a list of pictures"):
        load_pictures(str(path), SIZE)


@pytest.mark.parametrize("size", [(4000, 16), (20, 5000)])
def test_a_picture_too_long_to_be_padded_is_refused_by_name(
    size: tuple[int, int], tmp_path: Path
) -> None:
    long = saved(Image.new("RGB", size, "red"), tmp_path / "long.png")
    with pytest.raises(InvalidInput, match=rf"long.png: is {size[0]} x .* --crop centre; put them"):
        load_pictures([long], (64, 64), crop="pad")
    assert len(load_pictures([long], (64, 64))) == 1
    just = Image.new("RGB", (64 * 16, 16), "red")
    found = load_pictures([long, just], (64, 64), crop="pad", skip_broken=True)
    assert len(found.left_out) == 1
    assert (64, (255, 0, 0)) in found.items[0].image.getcolors()
