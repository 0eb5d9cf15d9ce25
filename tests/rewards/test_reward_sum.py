"""The composite: what it gives to rewards, what it checks, what it counts."""

from __future__ import annotations

import pytest
import torch

from tiller.core.budget import metered
from tiller.core.errors import InvalidInput, RewardError
from tiller.rewards import Part, Reward, RewardSum, make_reward

PROMPTS = ["a", "b"]


class Returning(Reward):
    """A fake reward that remembers what it was given."""

    def __init__(self, answer, differentiable=True):
        self.answer = answer
        self.differentiable = differentiable
        self.seen = []

    @property
    def name(self):
        """A name for messages."""
        return "fake"

    def __call__(self, images, prompts):
        """The answer, called if it can be."""
        self.seen.append((images, torch.is_grad_enabled()))
        return self.answer(images) if callable(self.answer) else self.answer


def total(answer, differentiable=True):
    reward = Returning(answer, differentiable)
    return reward, RewardSum((Part(reward),))


def mean(images):
    return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (torch.zeros(2, 1), r"one score an image, shape \[2\]; got shape \[2, 1\]\. Reduce"),
        (torch.tensor(1.0), r"got shape \[\]\. It is given all n images at once"),
        (0.5, r"got shape \[\]\. It is given all n images at once"),
        (torch.zeros(3), r"got shape \[3\]"),
        (torch.tensor([1.0, float("nan")]), r"must return finite scores, got \[1, nan\]; look for"),
        ([float("inf"), 0.0], r"must return finite scores, got \[inf, 0\]"),
        (torch.zeros(2, dtype=torch.complex64), "must return real scores, got torch.complex64"),
        (None, "must return a tensor of 2 scores, got NoneType; return one number for each"),
        ("high", "must return a tensor of 2 scores, got str"),
    ],
)
@pytest.mark.parametrize("differentiable", [True, False])
def test_unusable_scores_are_an_error_that_names_the_reward(answer, says, differentiable):
    _, reward = total(answer, differentiable)
    with pytest.raises(RewardError, match=f"reward 'fake'.*{says}"):
        reward(torch.rand(2, 3, 4, 4), PROMPTS)


def test_an_exception_keeps_its_chain_and_one_line():
    def fail(images):
        raise KeyError("first\nsecond")

    with pytest.raises(RewardError, match="reward 'fake' raised KeyError: ") as caught:
        total(fail)[1](torch.rand(2, 3, 4, 4), PROMPTS)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "\n" not in str(caught.value)
    assert "images [2, 3, 4, 4] and 2 prompts" in str(caught.value)


def test_broken_images_are_not_blamed_on_the_reward():
    images = torch.full((2, 3, 4, 4), float("nan"))
    with pytest.raises(RewardError, match=r"given images that are not finite.*try a smaller step"):
        total(mean)[1](images, PROMPTS)


@pytest.mark.parametrize(
    ("images", "prompts", "says"),
    [
        (torch.rand(3, 4, 4), ["a"], r"images \[n, 3, H, W\].*got \[3, 4, 4\]"),
        (torch.rand(1, 4, 4, 3), ["a"], r"got \[1, 4, 4, 3\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a"], "torch.uint8"),
        (torch.rand(2, 3, 4, 4), ["a"], "one prompt an image, 2 of them; got 1"),
        (torch.rand(2, 3, 4, 4), "ab", "got one string"),
    ],
)
def test_unusable_inputs_are_refused(images, prompts, says):
    with pytest.raises(InvalidInput, match=says):
        total(mean)[1](images, prompts)


def test_a_black_box_gets_detached_float32_without_a_graph():
    fake, reward = total(mean, differentiable=False)
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    scores = reward(images, PROMPTS)
    ((given, grad_enabled),) = fake.seen
    assert (given.dtype, given.device.type, given.requires_grad) == (torch.float32, "cpu", False)
    assert not grad_enabled
    assert not reward.differentiable
    assert (scores.dtype, scores.requires_grad) == (torch.float64, False)


def test_half_precision_images_are_scored_in_float32():
    fake, reward = total(mean)
    images = torch.rand(2, 3, 4, 4).to(torch.bfloat16).requires_grad_()
    scores = reward(images, PROMPTS)
    assert fake.seen[0][0].dtype == scores.dtype == torch.float32
    (grad,) = torch.autograd.grad(scores.sum(), images)
    assert grad.dtype == torch.bfloat16


def test_half_a_gradient_is_none():
    reward = make_reward(["brightness", "jpeg"])
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert not reward.differentiable
    assert not reward(images, PROMPTS).requires_grad


def test_the_gradient_of_a_sum_is_the_weighted_sum_of_gradients():
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(
        make_reward(["brightness:3", "darkness:1.5"])(images, PROMPTS).sum(), images
    )
    torch.testing.assert_close(grad, torch.full_like(grad, (3 - 1.5) / (3 * 8 * 8)))


def test_each_picture_counts_once_however_many_parts_score_it():
    reward = make_reward(["brightness", "colour:red", "jpeg"])
    with metered() as meter:
        reward(torch.rand(5, 3, 8, 8), ["a"] * 5)
        reward.parts_scores(torch.rand(2, 3, 8, 8), PROMPTS)
    assert meter.cost.reward_calls == 7


def test_a_failing_reward_was_still_called():
    with metered() as meter, pytest.raises(RewardError):
        total(torch.zeros(1))[1](torch.rand(2, 3, 4, 4), PROMPTS)
    assert meter.cost.reward_calls == 2


def test_total_takes_back_the_parts_scores():
    reward = make_reward(["brightness:2", "jpeg:0.1"])
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(reward.total(reward.parts_scores(images, PROMPTS)), reward(images, PROMPTS))
