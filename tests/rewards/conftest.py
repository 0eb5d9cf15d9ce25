"""The tiny CLIP's folder, random pictures, and a check of directional slopes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_clip import write_clip
from torch import Tensor


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny CLIP."""
    return str(write_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    """Random pictures, away from black and white so that no cut-off is near."""

    def make(n: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(n, 3, height, width, generator=generator, dtype=torch.float64)
        return 0.2 + 0.6 * noise

    return make


@pytest.fixture
def check_slope() -> Callable[[Callable[[Tensor], Tensor], Tensor], None]:
    """Compare autograd's slope along random directions with central differences in float64."""

    def check(function: Callable[[Tensor], Tensor], images: Tensor) -> None:
        leaf = images.double().requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf).sum(), leaf)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            step = 1e-5
            with torch.no_grad():
                ahead, behind = function(leaf + step * direction), function(leaf - step * direction)
            expected = float((ahead - behind).sum()) / (2 * step)
            # Central differences err by step^2 f''' and by rounding over the step, 1e-16 / 1e-5.
            assert float((grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-9)

    return check
