"""Every method that the folder holds passes the shipped suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from tiller.core.search import Phase
from tiller.methods._catalog import available
from tiller.methods.base import Method, Task
from tiller.methods.dno import Dno
from tiller.models.loader import load_model
from tiller.rewards import make_reward
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.testing.method_conformance import check_method

METHODS = available()


@pytest.fixture(scope="module")
def task() -> Task:
    model = load_model(fake_pipeline(length=24))  # room for longer words
    return Task(model, "a red cat", "", make_reward("brightness"))


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str, task: Task, needs: Callable[[str], dict[str, Any]]) -> None:
    check_method(METHODS[name](num_inference_steps=3, **needs(name)), task)


def test_phases_resume_in_the_middle_of_each(task: Task) -> None:
    check_method(Dno(num_inference_steps=3, warm_start=9), task)


def test_the_suite_catches_a_field_without_documentation(task: Task) -> None:
    @dataclasses.dataclass(frozen=True)
    class Silent(Method):
        """Does nothing new."""

        strength: float = 1.0

        citation: ClassVar[str] = "nobody"

        def build(self, task: Task) -> list[Phase]:
            return METHODS["raw"](num_inference_steps=3).build(task)

    with pytest.raises(AssertionError, match="strength is not under Attributes"):
        check_method(Silent(), task)
