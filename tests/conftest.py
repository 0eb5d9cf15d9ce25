"""What holds in every test: shapes and types are checked, one thread, no hub."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

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


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell starts what it puts in the background with Ctrl-C ignored; some tests press it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _three_prompts(request: dict[str, Any]) -> Any:
    """What a fake LLM answers to `llm_rewrite`: nonsense that depends on the whole request."""
    from tiller.testing.fake_server import Answer

    digest = hashlib.blake2b(json.dumps(request).encode(), digest_size=6).hexdigest()
    prompts = [f"{digest[k]}{digest[k:]} cat" for k in range(3)]
    return Answer(
        json.dumps({"prompts": prompts}), tokens=(0, 0)
    )  # a replay costs as much: nothing


@pytest.fixture
def needs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """`needs(method)`: its settings where the defaults need a network; a fake server is started."""
    from tiller.testing.fake_rewriter import save_fake_rewriter
    from tiller.testing.fake_server import FakeServer

    with FakeServer(_three_prompts) as server:

        def settings(method: str) -> dict[str, Any]:
            if method == "promptist":
                folder = save_fake_rewriter(tmp_path_factory.mktemp("rewriter"))
                return {"rewriter": str(folder), "max_new_tokens": 8}
            if method == "llm_rewrite":
                monkeypatch.setenv("TILLER_CACHE", str(tmp_path_factory.mktemp("cache")))
                for name, value in server.environment.items():
                    monkeypatch.setenv(name, value)
            return {}

        yield settings
