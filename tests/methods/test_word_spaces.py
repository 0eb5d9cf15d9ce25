"""Which words a search may choose from: what is left out of the space is said, and why."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_word_searches import REWARD, SMALL, run

from tiller.core.budget import Budget
from tiller.core.errors import TillerNotice
from tiller.methods.attack import Attack
from tiller.methods.base import Task
from tiller.methods.dpo_diff import DpoDiff
from tiller.models.loader import load_model
from tiller.testing.fake_pipeline import fake_pipeline


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(load_model(fake_pipeline()), "a red cat", "", REWARD, seed=5)


def test_nothing_to_choose_ends_at_once_and_says_why(task: Task) -> None:
    unknown = replace(task, prompt="xyzzy 42")
    with pytest.warns(
        TillerNotice, match=r"no word of 'xyzzy 42' has a substitute.*space=negative"
    ):
        steps = run(DpoDiff(**SMALL, space="positive"), unknown, Budget(images=30))
    assert len(steps) == 1
    assert steps[0].stopped == "nothing to search: the space has one candidate"
    assert steps[0].cost.images == 2


def said(method: Any, task: Task) -> list[str]:
    """The notices with which a method's words are chosen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.words_of(task)
    return [str(one.message) for one in caught if issubclass(one.category, TillerNotice)]


def pinned(folder: Path, **synonyms: list[str]) -> str:
    """A file of choices with these synonyms alone, the other words kept."""
    keep = [word for word in ("red", "cat", "blue", "dog") if word not in synonyms]
    file = folder / "pinned.json"
    file.write_text(json.dumps({"keep": keep, "synonyms": {"pin": synonyms}}))
    return str(file)


def test_words_beyond_the_encoders_limit_are_left_alone(task: Task, tmp_path: Path) -> None:
    long = replace(task, prompt="a red cat and a blue dog")
    choices = pinned(tmp_path, red=["tan"], cat=["ox", "cow"], blue=["teal"], dog=["yak"])
    method = DpoDiff(**{**SMALL, "n": 1}, space="positive", choices=choices)
    with pytest.warns(UserWarning, match="these words are dropped"):
        long.conditioning()
    with pytest.warns(TillerNotice, match=r"reads 14 tokens: 1 of 4 words .*from 'dog' on"):
        words = method.words_of(long)
    assert [position.slot.word for position in words.positions] == ["red", "cat", "blue"]
    assert bool(words.allows(torch.zeros(1, 3).long())[0]), "the user's own, whatever its length"
    with pytest.warns(TillerNotice, match="of the negative prompt, from"):
        against = DpoDiff(**SMALL).words_of(long)
    assert 1 <= len(against.positions) < 4


def test_no_substitutes_push_words_out_of_what_the_encoder_reads(
    task: Task, tmp_path: Path
) -> None:
    """The fake model reads 14 letters, and the prompt has seven."""
    choices = pinned(tmp_path, red=["scarlet", "incarnadined"], cat=["lion", "wildcat"])
    method = DpoDiff(**{**SMALL, "n": 1}, space="positive", choices=choices)
    with pytest.warns(TillerNotice, match=r"the 14 tokens .* are 'incarnadined' for 'red'; short"):
        words = method.words_of(task)
    z = torch.tensor(list(itertools.product(*map(range, words.choices))))
    good = [len(prompt.replace(" ", "")) <= 14 for prompt, _ in words.texts(z)]
    assert words.allows(z).tolist() == good
    assert good.count(False) == 1, "scarlet and wildcat, each of which is read alone"
    with pytest.warns(TillerNotice):
        steps = run(replace(method, solver="random"), task, Budget(images=99))
    drawn = {text for step in steps for text in words.texts(step.z)}
    assert len(drawn) == 5


@pytest.mark.parametrize("text", ["flamboyantpink", "c" * 40])
def test_a_long_substitute_of_the_users_is_named_and_nothing_is_left(
    text: str, task: Task, tmp_path: Path
) -> None:
    method = DpoDiff(**{**SMALL, "n": 1}, space="positive", choices=pinned(tmp_path, red=[text]))
    first, last = said(method, task)
    assert re.search(r"are '.*' for 'red'; shorten the prompt", first)
    assert re.search(r"reads beside the others, so .*, or shorten the prompt", last)


def test_a_substitute_of_the_users_that_is_too_far_is_named(task: Task, tmp_path: Path) -> None:
    choices = pinned(tmp_path, red=["crimson", "no"], cat=["dog"])
    method = Attack(**{**SMALL, "n": 1}, choices=choices, min_similarity=0.9)
    with pytest.warns(TillerNotice, match=r"below min_similarity=0\.9, are your 'no' for 'red'; "):
        words = method.words_of(task)
    options = [[option.text for option in position.slot.options] for position in words.positions]
    assert options == [["crimson"], ["dog"]]


@pytest.mark.parametrize(
    ("method", "named"),
    [
        (DpoDiff(**SMALL, min_similarity=0.99), "min_similarity=0.99"),
        (
            DpoDiff(**SMALL, min_similarity=0.5, encoder="nowhere"),
            "min_similarity=0.5 and encoder=nowhere",
        ),
        (Attack(**SMALL, space="negative"), "min_similarity=0.9"),
    ],
    ids=["improve", "encoder", "attack"],
)
def test_a_limit_on_words_that_are_not_searched_is_said(
    method: Any, named: str, task: Task
) -> None:
    assert [text.split(":")[0] for text in said(method, task)] == [named]


@pytest.mark.parametrize(
    ("prompt", "advised"), [("xyzzy 42", False), ("a red cat", True), ("x" * 1200, False)]
)
def test_a_lower_similarity_is_advised_where_it_left_words_out(
    prompt: str, advised: bool, task: Task
) -> None:
    method = Attack(**SMALL, min_similarity=1.0)
    text = said(method, replace(task, prompt=prompt))[-1]
    assert "so there is nothing to search" in text
    assert ("set a lower min_similarity" in text) == advised
    assert ("that keeps the prompt 1 similar" in text) == advised
    assert len(text) < 300, "a long prompt is not quoted whole"
