"""Every reward found on disk keeps the promises of a reward; those of the bundled model draw on it.

Where the bundled weights are not there (they are made by training), random ones of the same layout
stand in: what is tested here does not depend on what a model has learned.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_clip import write_clip

import tiller.rewards
from tiller.core.budget import metered
from tiller.core.errors import TillerError
from tiller.models import bundled
from tiller.models.bundled import loaders
from tiller.rewards import _tower, available, make_reward, preference
from tiller.testing.conformance import check_reward

SPECS = {"colour": "colour:teal"}  # of the rewards that cannot do without a setting
PROMPTS = ["a red cat", "a dog", ""]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The bundled weights, or random ones laid out like them."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            bundled.weights_dir()
        except TillerError:
            folder = tmp_path_factory.mktemp("weights")
            write_clip(folder / "clip", seed=1, side=loaders.SIDE)
            write_clip(folder / "clip_heldout", seed=2, side=loaders.SIDE)
            write_clip(folder / "tokenizer")
            with torch.random.fork_rng():
                torch.manual_seed(3)
                head = loaders.PreferenceHead(features=8, hidden=4)
            save_file(head.state_dict(), folder / "preference.safetensors")
            patch.setattr(loaders, "weights_dir", lambda: folder)
        _tower._load.cache_clear()
        preference._head.cache_clear()
        yield
    _tower._load.cache_clear()
    preference._head.cache_clear()


@pytest.fixture
def images():
    """Three smooth pictures, 64 pixels a side."""
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (64, 64), mode="bilinear") * 0.8 + 0.1


@pytest.mark.parametrize("name", sorted(available()))
def test_every_reward_keeps_its_promises(name, weights, images):
    reward = make_reward(SPECS.get(name, name))
    (part,) = reward.parts
    check_reward(reward, images, PROMPTS)
    check_reward(part.reward, images, PROMPTS)
    assert part.reward.differentiable == available()[name].differentiable
    assert part.name.split(":")[0] == name
    assert make_reward(reward.spec) == reward
    assert "Example:" in str(type(part.reward).__doc__)
    with metered() as meter:
        part.reward(images, PROMPTS)
    assert meter.cost.reward_calls == 0  # only the sum counts


@pytest.mark.parametrize("name", sorted(available()))
def test_every_reward_takes_other_sizes_and_a_single_picture(name, weights, images):
    reward = make_reward(SPECS.get(name, name))
    for height, width in ((48, 80), (100, 70)):
        resized = F.interpolate(images[:1], (height, width), mode="bilinear")
        assert reward(resized, PROMPTS[:1]).shape == (1,)


@pytest.mark.parametrize(("name", "held_out"), [("clip", False), ("clip_heldout", True)])
def test_the_bundled_clip_rewards_are_cosines_of_their_own_models(name, held_out, weights, images):
    model, tokenizer = bundled.load_clip(held_out)
    with torch.no_grad():
        pictures = model.get_image_features(bundled.preprocess(images)).pooler_output
        texts = model.get_text_features(
            **tokenizer(PROMPTS, padding=True, return_tensors="pt")
        ).pooler_output
    expected = F.cosine_similarity(pictures, texts)
    torch.testing.assert_close(make_reward(name)(images, PROMPTS), expected, rtol=0, atol=5e-6)


def test_reading_the_bundled_clip_prints_nothing(weights, capfd):
    bundled.load_clip()
    assert capfd.readouterr() == ("", "")


def test_the_two_bundled_clips_are_different(weights, images):
    scores = make_reward(["clip", "clip_heldout"]).parts_scores(images, PROMPTS)
    assert not torch.allclose(scores["clip"], scores["clip_heldout"], atol=1e-3)


def test_preference_is_the_head_on_the_first_clips_features(weights, images):
    model, _ = bundled.load_clip()
    with torch.no_grad():
        features = model.get_image_features(bundled.preprocess(images)).pooler_output
        expected = bundled.load_preference()(features)
    # The head may be steep: its input's float32 rounding counts some ten times.
    torch.testing.assert_close(
        make_reward("preference")(images, PROMPTS), expected, atol=1e-5, rtol=1e-4
    )


def test_the_slope_of_preference(weights, images, check_slope):
    reward = make_reward("preference")
    check_slope(lambda pictures: reward(pictures, PROMPTS), images)


def test_weights_are_loaded_once_for_all_rewards_that_read_them(weights, images, monkeypatch):
    loads = []
    original = loaders.load_clip
    monkeypatch.setattr(
        loaders, "load_clip", lambda held_out=False: loads.append(1) or original(held_out)
    )
    _tower._load.cache_clear()
    for _ in range(2):
        make_reward(["clip", "spherical_clip", "preference"])(images, PROMPTS)
    assert len(loads) == 1


MODULES = [info.name for info in pkgutil.iter_modules(tiller.rewards.__path__, "tiller.rewards.")]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings(module):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


def test_the_examples_in_the_documentation(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    monkeypatch.chdir(tmp_path)
    files = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL))
    for name, source in files.items():
        (tmp_path / name).write_text(source)
    test = doctest.DocTestParser().get_doctest(text, {}, "rewards.md", "rewards.md", 0)
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert failed == 0
    assert tried > 5
