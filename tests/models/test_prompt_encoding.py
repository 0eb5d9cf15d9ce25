"""Any text can be encoded, as the pipeline would, and what is cut is said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tiller.core.errors import InvalidInput
from tiller.models import SamplerSettings, Trajectory, load_model
from tiller.testing.fake_pipeline import FAKE_LENGTH, fake_pipeline

TEXTS = [
    "",
    "a red cat",
    " ",
    "🐈‍⬛🟩",
    "tab\tnull\x00bell\x07\n",
    "Ünïcode ≠ ascii",
    "<|endoftext|>",
]


@pytest.mark.filterwarnings("ignore:the prompt has:UserWarning")
@pytest.mark.parametrize("text", TEXTS)
def test_states_equal_the_pipelines(pipeline: Any, model: Any, text: str) -> None:
    ours = model.encode([text], ["blue"])
    with torch.no_grad():
        theirs, negative = pipeline.encode_prompt([text], "cpu", 1, True, ["blue"])
    assert torch.equal(ours.prompt_embeds, theirs)
    assert torch.equal(ours.negative_prompt_embeds, negative)


def test_a_half_surrogate_is_replaced(model: Any) -> None:
    assert torch.equal(model.encode(["\ud83d"]).prompt_embeds, model.encode(["?"]).prompt_embeds)


def test_long_prompts_are_cut_and_the_dropped_words_named(model: Any) -> None:
    """The fake reads one token a letter: 14 of them."""
    with pytest.warns(UserWarning, match=r"16 tokens and pipeline reads 14; .* dropped: og$"):
        ours = model.encode(["abcdefg hijklm dog"])
    assert ours.prompt_embeds.shape == (1, FAKE_LENGTH, 16)


def test_counting_what_is_too_long_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    fresh = load_model(fake_pipeline())
    assert fresh.token_counts(["a long prompt of words"], cut=False) == [20]
    assert caplog.messages == [], "nor does the tokenizer"


def test_five_hundred_words(model: Any) -> None:
    with pytest.warns(UserWarning, match="these words are dropped"):
        states = model.encode([" ".join(["word"] * 500)]).prompt_embeds
    assert torch.isfinite(states).all()


def test_a_prompt_that_just_fits_is_not_warned_about(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(["abcdefghijklmn"])


def test_encoding_does_not_depend_on_the_batch_or_the_cache(pipeline: Any) -> None:
    together = load_model(pipeline).encode(["a", "b c", ""], ["x", "y", ""])
    fresh = load_model(pipeline)
    for i, (prompt, negative) in enumerate([("a", "x"), ("b c", "y"), ("", "")]):
        alone = fresh.encode([prompt], [negative])
        assert torch.equal(alone.prompt_embeds[0], together.prompt_embeds[i])
        assert torch.equal(alone.negative_prompt_embeds[0], together.negative_prompt_embeds[i])


def test_each_text_is_encoded_once() -> None:
    pipeline = fake_pipeline()
    model = load_model(pipeline)
    calls: list[int] = []
    pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    model.encode(["a", "b", "a", ""])
    assert len(calls) == 3  # a, b and the empty prompt
    model.encode(["b"], ["a"])
    assert len(calls) == 3


def test_changing_a_result_does_not_change_the_cache(model: Any) -> None:
    first = model.encode(["a"]).prompt_embeds
    kept = first.clone()
    first.add_(1)
    assert torch.equal(model.encode(["a"]).prompt_embeds, kept)


def test_one_negative_prompt_serves_all(model: Any) -> None:
    negative = model.encode(["a", "b"], ["x"]).negative_prompt_embeds
    assert torch.equal(negative[0], negative[1])
    with pytest.raises(InvalidInput, match="1 or 3 negative_prompts"):
        model.encode(["a", "b", "c"], ["x", "y"])


@pytest.mark.parametrize("prompts", ["a cat", [], [None], [3]])
def test_what_is_not_a_list_of_texts_is_refused(model: Any, prompts: Any) -> None:
    with pytest.raises(InvalidInput, match=r"prompts|text"):
        model.encode(prompts)


def test_odd_prompts_draw_finite_pictures(model: Any) -> None:
    path = Trajectory(model, SamplerSettings(2, 5.0, 0.0, 16, 16))
    noise = path.sample_noise(torch.Generator().manual_seed(0))[None]
    for text in ("", "🐈", "\x00\x1b[31m"):
        images = model.decode(path.run(noise, model.encode([text])))
        assert torch.isfinite(images).all()
        assert images.min() >= 0
        assert images.max() <= 1
