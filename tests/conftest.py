"""What holds in every test: shapes and types are checked, one thread, no hub."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from jaxtyping import install_import_hook

# Annotations such as Float[Tensor, "n *shape"] cost nothing in use; here each call checks them.
# The hook must come before the first import of what it checks.
install_import_hook(
    ["tiller.core", "tiller.solvers", "tiller.spaces", "tiller.testing.fakes"], "beartype.beartype"
)

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Sums do not depend on the number of cores."""
    torch.set_num_threads(1)
