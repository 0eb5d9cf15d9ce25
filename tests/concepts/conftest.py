"""A fake model with one text encoder, and four small pictures."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from tiller.models import FrozenModel, load_model
from tiller.testing.fake_pipeline import fake_pipeline


def quick(model: FrozenModel) -> FrozenModel:
    """The model with two sampling steps in place of fifty: its drawings show nothing anyway."""
    model.defaults = dataclasses.replace(model.defaults, num_inference_steps=2)
    return model


@pytest.fixture(scope="session")
def model() -> FrozenModel:
    """The fake pipeline as a frozen model: 16 x 16 pixels, embeddings of width 16."""
    return quick(load_model(fake_pipeline()))


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Four pictures of a square on four grounds."""
    found = []
    for i, ground in enumerate(("white", "gray", "black", "yellow")):
        image = Image.new("RGB", (16, 16), ground)
        image.paste((200, 30, 60), (2 + i, 3, 10 + i, 12))
        found.append(image)
    return found
