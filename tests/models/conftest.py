"""Tiny fake models, built once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiller.models import FrozenModel, load_model
from tiller.testing.fake_pipeline import fake_pipeline


@pytest.fixture(scope="session")
def pipeline() -> Any:
    """A fake pipeline in float32; tests must leave it as it is."""
    return fake_pipeline()


@pytest.fixture(scope="session")
def model(pipeline: Any) -> FrozenModel:
    """The fake pipeline as a frozen model."""
    return load_model(pipeline)


@pytest.fixture(scope="session")
def double() -> FrozenModel:
    """A fake model in float64, whose DDIM lands on the x0 estimate."""
    return load_model(fake_pipeline(dtype=torch.float64, set_alpha_to_one=True))
