"""Scenes: the same for the same numbers, labelled truly, drawn as the tint recipe says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tiller.core.errors import TillerError
from tiller.models.bundled import captions, scenes
from tiller.models.bundled.captions import NATURAL, Spec

needs_font = pytest.mark.skipif(
    not scenes.FONT.exists(), reason="the package fonts-noto-color-emoji is not installed"
)


@needs_font
def test_a_scene_is_a_function_of_its_number() -> None:
    batch = scenes.scenes(5, 20, seed=3)
    again = [scenes.scene(i, seed=3) for i in reversed(range(5, 25))][::-1]
    for a, b in zip(batch, again, strict=True):
        assert a.spec == b.spec
        assert a.caption == b.caption
        assert np.array_equal(a.image, b.image)
    pictures = {hashlib.sha256(s.image.tobytes()).hexdigest() for s in batch}
    assert len(pictures) == len(batch)


@needs_font
def test_captions_name_what_is_shown() -> None:
    for scene in scenes.scenes(0, 300):
        named = captions.parse(scene.caption)
        assert named.subjects == scene.spec.subjects
        assert named.background in (None, scene.spec.background)
        assert all(colour != scene.spec.background for _, colour in scene.spec.subjects)


@needs_font
def test_the_background_fills_what_no_box_covers_and_no_subject_is_cut() -> None:
    for scene in scenes.scenes(0, 100):
        covered = np.zeros((64, 64), dtype=bool)
        for left, top, width, height in scene.boxes:
            assert min(left, top) >= 0
            assert max(left + width, top + height) <= 64
            covered[top : top + height, left : left + width] = True
        assert scene.spec.background is not None
        background = np.array(scenes.BACKGROUND_RGB[scene.spec.background], dtype=np.uint8)
        assert (scene.image[~covered] == background).all()


@needs_font
def test_two_subjects_stand_left_and_right_in_the_order_of_the_caption() -> None:
    twos = [s for s in scenes.scenes(0, 200) if len(s.spec.subjects) == 2]
    assert 30 < len(twos) < 90
    assert all(s.boxes[0][0] + s.boxes[0][2] <= 32 <= s.boxes[1][0] for s in twos)


@needs_font
def test_on_a_grid_every_place_is_a_multiple_and_nothing_else_changes() -> None:
    for scene in scenes.scenes(0, 60, grid=4):
        low, high = scenes.ONE_SIZES if len(scene.boxes) == 1 else scenes.TWO_SIZES
        for left, top, width, height in scene.boxes:
            assert left % 4 == top % 4 == max(width, height) % 4 == 0
            assert low <= max(width, height) <= high
            assert max(left + width, top + height) <= 64


@needs_font
@pytest.mark.parametrize("colour", [*scenes.TINTS, "black", "white"])
def test_a_tinted_subject_has_its_colour_on_average(colour: str) -> None:
    rgb, alpha = scenes.sprite("whale", colour, 48)
    mean = rgb.sum((0, 1)) / alpha.sum() / 255.0
    if colour == "black":
        assert mean.max() < 0.35
    elif colour == "white":
        assert mean.min() > 0.6
    else:
        wanted = np.array(scenes.TINTS[colour]) / 255.0
        cosine = mean @ wanted / np.linalg.norm(mean) / np.linalg.norm(wanted)
        assert cosine > 0.97


@needs_font
def test_natural_keeps_the_emoji_and_the_sprite_has_the_size_asked_for() -> None:
    rgb, alpha = scenes.sprite("duck", NATURAL, 40)
    assert max(alpha.shape[:2]) == 40
    assert alpha.max() > 0.99
    assert np.ptp(rgb.reshape(-1, 3), axis=0).min() > 100


@needs_font
def test_every_subject_has_its_own_glyph() -> None:
    seen = set()
    for name in captions.SUBJECTS:
        image, _ = scenes.compose(Spec(((name, None),), "white"), np.random.default_rng(1))
        assert (image != 250).any(axis=-1).sum() > 150, name
        seen.add(image.tobytes())
    assert len(seen) == len(captions.SUBJECTS)


def test_without_the_font_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scenes, "FONT", tmp_path / "absent.ttf")
    with pytest.raises(TillerError, match="apt-get install fonts-noto-color-emoji"):
        scenes._font()
