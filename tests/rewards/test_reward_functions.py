"""Python functions and `file.py:function` as rewards."""

from __future__ import annotations

import functools
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tiller.core.errors import InvalidInput, RewardError, TillerNotice
from tiller.rewards import make_reward

PROMPTS = ["a", "bb"]
BLACK_BOX = "no gradient passes through reward .* black box"


def mean(images):
    return images.mean(dim=(1, 2, 3))


def lengths(images, prompts):
    assert isinstance(prompts, list)
    return mean(images) + torch.tensor([len(prompt) for prompt in prompts])


def optional(images, prompts=None):
    return lengths(images, prompts)


def keyword(images, *, prompts):
    return lengths(images, prompts)


def optional_keyword(images, *, prompts=None):
    return lengths(images, prompts)


def starred(*both):
    return lengths(*both)


def scaled(images, scale=0.0):
    return mean(images) + scale


class Network(torch.nn.Module):
    """A module as a reward."""

    def forward(self, images, prompts):
        return lengths(images, prompts)


class Judge:
    """An object as a reward."""

    def __call__(self, images, prompts):
        return lengths(images, prompts)


@pytest.mark.parametrize(
    "function",
    [lengths, optional, keyword, optional_keyword, starred, Network(), Judge(), Judge().__call__],
    ids=lambda f: getattr(f, "__name__", type(f).__name__),
)
def test_prompts_are_given_to_whoever_takes_them(function):
    reward = make_reward(function)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(reward(images, PROMPTS), mean(images) + torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "function", [mean, scaled, functools.partial(scaled, scale=0.0), lambda images: mean(images)]
)
def test_a_function_of_images_gets_images_only(function):
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(make_reward(function)(images, PROMPTS), mean(images))


@pytest.mark.parametrize(
    "function", [lambda: 1, lambda images, prompts, extra: 1, lambda images, *, scale: 1]
)
def test_other_signatures_are_refused(function):
    with pytest.raises(
        InvalidInput, match="must take images, or images and prompts; its signature"
    ):
        make_reward(function)


def test_a_gradient_that_passes_is_kept():
    reward = make_reward(mean)
    assert reward.differentiable
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
    torch.testing.assert_close(grad, torch.full_like(grad, 1 / (3 * 8 * 8)))


def raises_with_gradients(images):
    if images.requires_grad:
        raise RuntimeError("no gradients here")
    return mean(images)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda images: mean(images.detach()), "its scores are detached"),
        (lambda images: mean(images).tolist(), "its scores are detached"),
        (lambda images: mean(torch.from_numpy(images.numpy())), "with gradients it fails: Runtime"),
        (raises_with_gradients, "with gradients it fails: RuntimeError: no gradients here"),
        (lambda images: mean(images.round()), "its gradient is zero everywhere"),
        (lambda images: mean((images - images).sqrt() + images), "its gradient is not finite"),
        (lambda images: torch.ones(2, requires_grad=True) * 2, "its scores are detached"),
    ],
)
def test_a_broken_graph_makes_a_black_box_with_a_notice(function, why):
    with pytest.warns(TillerNotice, match=BLACK_BOX) as caught:
        reward = make_reward(function)
    assert why in str(caught[0].message)
    assert caught[0].filename == __file__
    assert not reward.differentiable
    scores = reward(torch.rand(2, 3, 8, 8, requires_grad=True), PROMPTS)
    assert scores.shape == (2,)
    assert not scores.requires_grad


def test_a_function_that_works_in_place_changes_nobodys_pictures():
    def double(images):
        return mean(images.mul_(2))

    def black(images):
        return mean(images.detach().mul_(2))

    images = torch.rand(2, 3, 8, 8)
    before = images.clone()
    with pytest.warns(TillerNotice):
        reward = make_reward([double, black])
    torch.testing.assert_close(reward(images, PROMPTS), 4 * mean(before))
    assert torch.equal(images, before)


def test_a_function_that_always_fails_is_found_before_any_picture_is_drawn():
    def broken(images):
        return mean(images) / [][0]

    with pytest.raises(RewardError, match="reward 'broken' raised IndexError") as caught:
        make_reward(broken)
    line = broken.__code__.co_firstlineno + 1
    assert f"{__file__}, line {line}" in str(caught.value)
    assert isinstance(caught.value.__cause__, IndexError)


def test_the_probe_has_the_size_that_the_model_draws():
    def picky(images):
        assert images.shape[-2:] == (24, 24)
        return mean(images)

    with pytest.raises(RewardError, match="AssertionError"):
        make_reward(picky)
    assert make_reward(picky, probe_size=24).differentiable


def test_the_probe_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    make_reward(mean)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_callable_has_no_spec():
    assert make_reward([mean, "brightness"]).spec is None


SOURCE = """\
from __future__ import annotations
from dataclasses import dataclass
import torch
from tiller.rewards import Reward

@dataclass(frozen=True)
class Inverse(Reward):
    scale: float = 1.0
    def __call__(self, images, prompts):
        return -self.scale * images.mean(dim=(1, 2, 3))

def score(images, prompts):
    return images.mean(dim=(1, 2, 3))

def fails(images):
    x = 1
    raise ValueError("later")

LIMIT = 3
"""


@pytest.fixture
def file(tmp_path):
    """A user's reward file."""
    path = tmp_path / "my rewards.py"
    path.write_text(SOURCE)
    return path


def test_a_function_of_a_file(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    reward = make_reward("my rewards.py:score:0.5")
    assert reward.differentiable
    assert reward.spec == [f"{file}:score:0.5"]
    assert reward.name == "0.5 my rewards.py:score"
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(reward(images, PROMPTS), 0.5 * mean(images))
    monkeypatch.chdir("/")
    again = make_reward(reward.spec)
    torch.testing.assert_close(again(images, PROMPTS), reward(images, PROMPTS))


def test_a_reward_class_of_a_file(file):
    reward = make_reward(f"{file}:Inverse")
    assert reward(torch.ones(1, 3, 4, 4), ["a"]).item() == -1


def test_a_file_is_run_in_isolation(file):
    before, path = set(sys.modules), list(sys.path)
    make_reward(f"{file}:score")
    added = set(sys.modules) - before
    assert all(name.startswith("tiller_reward_") for name in added)
    assert sys.path == path
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    file.write_text("def score(images):\n    return images.mean(dim=(1, 2, 3)) + 1\n")
    assert make_reward(f"{file}:score")(torch.zeros(1, 3, 4, 4), ["a"]).item() == 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("missing", "'missing' does not exist, its functions are score, fails"),
        ("LIMIT", "'LIMIT' is not callable, its functions are score, fails"),
        ("", "name the function"),
        ("not a name", "name the function"),
        ("score:heavy", "the weight in .* must be a number"),
        ("score:0", "finite number other than 0"),
    ],
)
def test_a_wrong_function_is_refused(file, function, says):
    with pytest.raises(InvalidInput, match=says):
        make_reward(f"{file}:{function}")


def test_a_file_without_its_function_is_refused(file):
    with pytest.raises(InvalidInput, match="name the function"):
        make_reward(str(file))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("import torch\n\ndef score(:\n", 3, "SyntaxError: invalid syntax"),
        ("\nimport no_such_package\n", 2, "ModuleNotFoundError: No module named .*installed pack"),
        ("\n\nx = 1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("def f():\n    raise KeyError('k')\n\nf()\n", 2, "KeyError: 'k'"),
        ("import sys\nsys.exit('stop')\n", 2, "SystemExit: stop"),
    ],
)
def test_a_file_that_does_not_import_is_refused_with_its_line(tmp_path, text, line, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    expected = f"the reward file {re.escape(str(path))}, line {line} does not import: {says}"
    with pytest.raises(InvalidInput, match=expected) as caught:
        make_reward(f"{path}:score")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert not any(
        name.startswith("tiller_reward_") and getattr(module, "__file__", "") == str(path)
        for name, module in sys.modules.items()
    )


@pytest.mark.parametrize("name", ["nowhere.py", "folder.py"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(
        InvalidInput, match=r"cannot read the reward file .*expected path/to/file\.py"
    ):
        make_reward(f"{tmp_path / name}:score")


def test_a_binary_file_is_refused(tmp_path):
    path = Path(tmp_path / "binary.py")
    path.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(InvalidInput, match="does not import"):
        make_reward(f"{path}:score")


def test_a_function_that_fails_says_where(file):
    with pytest.raises(
        RewardError, match=rf"ValueError: later \({re.escape(str(file))}, line 17\)"
    ):
        make_reward(f"{file}:fails")


def test_a_user_file_may_fail_later_and_says_where(tmp_path):
    path = tmp_path / "late.py"
    path.write_text("def score(images):\n    return images.flatten(1).mean(1)[: 8 - len(images)]\n")
    reward = make_reward(f"{path}:score")
    with pytest.raises(RewardError, match=r"reward 'late.py:score' must return .* got shape \[1\]"):
        reward(torch.rand(7, 3, 4, 4), ["a"] * 7)


def test_no_warning_for_a_differentiable_file(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_reward(f"{file}:score")
