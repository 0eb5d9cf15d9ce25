"""A fake model with one text encoder, and four small pictures."""

from __future__ import annotations

import pytest
from PIL import Image

from tiller.models import FrozenModel, load_model
from tiller.testing.fake_pipeline import fake_pipeline


@pytest.fixture(scope="session")
def model() -> FrozenModel:
    """The fake pipeline as a frozen model: 16 x 16 pixels, embeddings of width 16."""
    return load_model(fake_pipeline())


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Four pictures of a square on four grounds."""
    found = []
    for i, ground in enumerate(("white", "gray", "black", "yellow")):
        image = Image.new("RGB", (16, 16), ground)
        image.paste((200, 30, 60), (2 + i, 3, 10 + i, 12))
        found.append(image)
    return found
