"""What a user writes as a reward: names, weights, settings, and lists of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageColor

from tiller.core.errors import InvalidInput
from tiller.rewards import Part, Reward, RewardSum, available, make_reward
from tiller.rewards._held_out import default_held_out
from tiller.rewards.brightness import LUMA, Brightness
from tiller.rewards.clip import Clip
from tiller.rewards.colour import Colour
from tiller.rewards.jpeg import Jpeg

NAMES = {
    "brightness",
    "clip",
    "clip_heldout",
    "colour",
    "darkness",
    "jpeg",
    "preference",
    "spherical_clip",
}


def test_the_folder_lists_the_rewards_of_the_first_release():
    assert set(available()) >= NAMES
    assert all(issubclass(kind, Reward) for kind in available().values())


@pytest.mark.parametrize(
    ("spec", "reward", "weight"),
    [
        ("clip", Clip(), 1.0),
        ("clip:0.5", Clip(), 0.5),
        (" Clip : -2 ", Clip(), -2.0),
        ("clip:openai/clip-vit-base-patch32", Clip("openai/clip-vit-base-patch32"), 1.0),
        ("clip:folder/of=mine/clip:1e-3", Clip("folder/of=mine/clip"), 1e-3),
        ("colour:red", Colour("red"), 1.0),
        ("colour:Red:0.5", Colour("red"), 0.5),
        ("colour:#F80:2", Colour("#f80"), 2.0),
        ("colour:colour=teal", Colour("teal"), 1.0),
        ("jpeg:80", Jpeg(), 80.0),
        ("jpeg:quality=80", Jpeg(80), 1.0),
        ("jpeg:quality=80:.1", Jpeg(80), 0.1),
        ("brightness:luma=rec709", Brightness("rec709"), 1.0),
    ],
)
def test_one_spec(spec, reward, weight):
    (part,) = make_reward(spec).parts
    assert (part.reward, part.weight) == (reward, weight)


def test_hyphens_are_underscores():
    assert make_reward("clip-heldout").parts[0].name == "clip_heldout"


def test_a_list_is_a_sum_with_every_part_reported():
    reward = make_reward(["brightness:2", "colour:white:-0.5", "jpeg"])
    assert reward.name == "2 brightness + -0.5 colour:white + jpeg"
    assert not reward.differentiable
    images = torch.rand(2, 3, 16, 16)
    scores = reward.parts_scores(images, ["a", "b"])
    assert list(scores) == ["brightness", "colour:white", "jpeg"]
    expected = 2 * Brightness()(images, []) - 0.5 * Colour("white")(images, []) + Jpeg()(images, [])
    torch.testing.assert_close(reward(images, ["a", "b"]), expected)


def test_reward_objects_are_specs_too():
    class Mine(Reward):
        """Somebody's own."""

        def __call__(self, images, prompts):
            return images.mean(dim=(1, 2, 3))

    assert make_reward([Jpeg(70), "clip"]).spec == ["jpeg:quality=70", "clip"]
    mine = make_reward(Mine())
    assert mine.spec is None
    assert mine(torch.ones(1, 3, 2, 2), [""]).item() == 1


WEIGHTS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda w: w != 0)
ONE = st.one_of(
    st.sampled_from(["clip", "clip_heldout", "preference", "jpeg"]),
    st.builds("colour:{}".format, st.sampled_from(sorted(ImageColor.colormap))),
    st.builds("darkness:luma={}".format, st.sampled_from(sorted(set(LUMA) - {"equal"}))),
    st.builds(
        "spherical_clip:{}/{}".format, *[st.from_regex(r"[a-z][a-z0-9_-]*", fullmatch=True)] * 2
    ),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ONE, WEIGHTS), min_size=1, max_size=4, unique_by=lambda pair: pair[0]))
def test_specs_survive_the_round_trip(pairs):
    written = [name if weight == 1 else f"{name}:{weight!r}" for name, weight in pairs]
    reward = make_reward(written)
    assert reward.spec == written
    assert make_reward(reward.spec) == reward
    assert [(part.name, part.weight) for part in reward.parts] == pairs


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("brightnes", "unknown reward 'brightnes'; expected one of brightness, .*'brightness'"),
        ("color:red", "unknown reward 'color'.*Did you mean 'colour'"),
        ("", "unknown reward ''"),
        ("colour", 'needs its colour, as in "colour:red"'),
        ("colour:0.5", "needs its colour"),
        ("colour:red:blue", "cannot read 'blue' in reward 'colour:red:blue'"),
        ("brightness:high", "cannot read 'high'.*expected a weight, a number, at the end"),
        ("clip:", "cannot read ''"),
        ("clip:0.5:0.5", "cannot read '0.5' in reward"),
        ("jpeg:quality=good", "quality of reward 'jpeg:quality=good' must be a whole number"),
        ("jpeg:size=3", "cannot read 'size=3'.*this reward takes quality=..."),
        ("clip:0", "the weight of reward 'clip' must be a finite number other than 0, got 0.0"),
        ("clip:nan", "must be a finite number other than 0, got nan"),
        ("clip:-inf", "must be a finite number other than 0, got -inf"),
        ([], "expected at least one reward"),
        (["clip", "clip:2"], "two rewards are called 'clip'"),
        (3, 'expected a reward as "name".*got 3'),
        (Clip, "expected a reward as"),
        ([["clip"]], "expected a reward as"),
    ],
)
def test_what_cannot_be_read_is_refused(spec, says):
    with pytest.raises(InvalidInput, match=says):
        make_reward(spec)


def test_a_sum_is_no_part_of_another():
    with pytest.raises(InvalidInput, match="list its parts instead"):
        make_reward([make_reward("clip")])


@pytest.mark.parametrize("weight", [0, 0.0, math.nan, math.inf])
def test_useless_weights_are_refused(weight):
    with pytest.raises(InvalidInput, match="finite number other than 0"):
        RewardSum((Part(Brightness(), weight),))


def test_the_default_held_out_reward_is_one_that_is_not_optimized() -> None:
    assert default_held_out(make_reward("brightness")) == ["clip_heldout"]
    assert default_held_out(make_reward("clip_heldout")) == ["clip"]
    assert default_held_out(make_reward(["clip", "clip_heldout", "brightness"])) == ["preference"]
    with pytest.raises(InvalidInput, match="none is left"):
        default_held_out(make_reward(["clip", "clip_heldout", "brightness", "preference", "jpeg"]))
