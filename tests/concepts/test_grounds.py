"""What a picture's border says of its background."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tiller.concepts.grounds import colour_behind, place_of
from tiller.models.bundled.captions import BACKGROUNDS
from tiller.models.bundled.scenes import BACKGROUND_RGB


def flat(colour: tuple[int, int, int], side: int = 64) -> Tensor:
    return (torch.tensor(colour) / 255)[:, None, None].expand(3, side, side).clone()


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_the_bundled_scenes_grounds_have_their_names(name: str) -> None:
    picture = flat(BACKGROUND_RGB[name])
    picture[:, 10:50, 20:60] = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert place_of(picture).split()[2:] == [name, "background"]


def test_a_thing_may_touch_the_border() -> None:
    picture = flat((40, 90, 220))
    picture[:, 44:, :16] = 0.9
    assert place_of(picture) == "on a blue background"


def test_nothing_is_said_of_a_scene() -> None:
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert colour_behind(noise) is None
    assert place_of(noise) == ""
    halves = flat((250, 250, 250))
    halves[:, 32:] = 0.1  # the sky and the ground
    assert place_of(halves) == ""
