"""Insertion: prefix, the unpadded prompt, suffix; the other branch as long; conformity."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.rng import Draw, Stream
from tiller.models.base import Conditioning
from tiller.spaces.affixes import Affix, Affixes
from tiller.spaces.insertion import AffixedPrompt, Conformity, Prompts, Words, padded
from tiller.spaces.noise import Noise

LENGTH, WIDTH = 7, 4


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ENCODED = Conditioning(numbers(1, LENGTH, WIDTH, seed=1), numbers(1, LENGTH, WIDTH, seed=2))
AFFIX = Affix(numbers(2, 3, WIDTH, seed=3), numbers(2, 2, WIDTH, seed=4))


def test_the_layout_is_prefix_words_suffix_and_both_branches_are_as_long() -> None:
    told = Words.of(ENCODED, 4).conditioning(AFFIX)
    assert list(told.prompt_embeds.shape) == [2, 3 + 4 + 2, WIDTH]
    for i in range(2):
        assert torch.equal(told.prompt_embeds[i, :3], AFFIX.prefix[i])
        assert torch.equal(told.prompt_embeds[i, 3:7], ENCODED.prompt_embeds[0, :4])
        assert torch.equal(told.prompt_embeds[i, 7:], AFFIX.suffix[i])
    negative = told.negative_prompt_embeds
    plain = ENCODED.negative_prompt_embeds
    assert negative is not None and plain is not None  # noqa: PT018
    assert torch.equal(negative[0, :LENGTH], plain[0])
    assert torch.equal(negative[0, LENGTH:], plain[0, -1:].expand(2, -1)), "two beyond its padding"


def test_a_short_affixed_prompt_cuts_the_other_branchs_padding() -> None:
    told = Words.of(ENCODED, 2).conditioning(Affix(AFFIX.prefix[:1, :1], AFFIX.suffix[:1, :1]))
    plain = ENCODED.negative_prompt_embeds
    assert plain is not None
    assert torch.equal(told.negative_prompt_embeds, plain[:, :4])  # type: ignore[arg-type]
    assert torch.equal(padded(plain, LENGTH), plain)


def test_a_long_negative_prompt_keeps_its_words() -> None:
    words = Words.of(ENCODED, 3, negative_count=6)
    assert words.length == 6
    assert Words.of(ENCODED, 5, negative_count=2).length == 5


def test_two_encoders_states_are_affixed_and_the_pooled_ones_left_alone() -> None:
    pooled = Conditioning(
        ENCODED.prompt_embeds,
        ENCODED.negative_prompt_embeds,
        pooled_prompt_embeds=numbers(1, 5),
        negative_pooled_prompt_embeds=numbers(1, 5, seed=9),
        time_ids=torch.ones(1, 6),
    )
    told = Words.of(pooled, 3).conditioning(AFFIX)
    for field in fields(Conditioning):
        if "pooled" in field.name or field.name == "time_ids":
            kept = getattr(pooled, field.name)
            assert torch.equal(getattr(told, field.name), kept.expand(2, -1))


def test_anchored_tokens_are_added_to_the_prompts_padding() -> None:
    words, pad = Words.of(ENCODED, 3), ENCODED.prompt_embeds[:, -1:]
    anchored = replace(AFFIX, anchored=True)
    told = words.conditioning(anchored).prompt_embeds
    plain = words.conditioning(AFFIX).prompt_embeds
    assert torch.equal(told[:, :3], plain[:, :3] + pad)
    assert torch.equal(told[:, 3:6], plain[:, 3:6])
    assert torch.equal(told[:, 6:], plain[:, 6:] + pad)
    nothing = words.conditioning(anchored.times(0.0)).prompt_embeds
    assert torch.equal(nothing[:, 6:], pad.expand(2, 2, -1)), "the prompt, padded"
    assert torch.equal(anchored.times(2.0).prefix, 2 * AFFIX.prefix)


def test_affixes_can_be_put_around_affixes() -> None:
    inner = Affix(AFFIX.prefix[:1], AFFIX.suffix[:1])
    outer = Affix(numbers(1, 1, WIDTH, seed=5), numbers(1, 0, WIDTH))
    states = Words.of(ENCODED, 3).within(inner).conditioning(outer).prompt_embeds
    expected = [outer.prefix, inner.prefix, ENCODED.prompt_embeds[:, :3], inner.suffix]
    assert torch.equal(states, torch.cat(expected, dim=1))


def test_precision_is_the_states_own_and_gradients_still_reach_the_affix() -> None:
    half = ENCODED.to(torch.float16)
    leaf = AFFIX.prefix.clone().requires_grad_()
    told = Words.of(half, 3).conditioning(Affix(leaf, AFFIX.suffix))
    assert told.prompt_embeds.dtype == torch.float16
    told.prompt_embeds.float().sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_wrong_widths_and_counts_are_refused() -> None:
    with pytest.raises(InvalidInput, match="width 4, got 6; they belong to another model"):
        Words.of(ENCODED, 3).conditioning(Affix(numbers(1, 2, 6), numbers(1, 2, 6)))
    with pytest.raises(InvalidInput, match=r"count of its tokens in \[1, 7\]"):
        Words.of(ENCODED, 8)
    with pytest.raises(InvalidInput, match="one encoded prompt"):
        Words.of(ENCODED.expand(2), 3)


SPACE = Affixes(width=WIDTH, prefix=2, suffix=1, rank=2, dtype=torch.float64)


@pytest.mark.parametrize("anchored", [False, True])
def test_conformity_is_equation_11_and_its_gradient_the_difference_quotient(
    anchored: bool,
) -> None:
    """The squared distance of mean embeddings, over a batch of prompts of different lengths."""
    wide = ENCODED.to(torch.float64)
    batch = [Words.of(wide, 3), Words.of(wide, 6)]
    space = replace(SPACE, anchored=anchored)
    penalty = Conformity(space.decode, lambda draw: Prompts.of(batch), weight=0.5)
    z = (space.sample(2, Stream(0)) + 0.3).requires_grad_()
    affix = space.decode(z)
    expected = torch.zeros(2, dtype=torch.float64)
    for words in batch:
        told = words.conditioning(affix).prompt_embeds
        before = words.conditioning(affix.times(0.0)).prompt_embeds if anchored else words.states
        off = told.mean(dim=1) - before.mean(dim=1)
        expected += off.square().sum(dim=1) / len(batch)
    value = penalty.value(z, Draw(0, 0))
    assert torch.allclose(value, expected)
    assert torch.autograd.gradcheck(lambda z: penalty.value(z, Draw(0, 0)), (z,))


def test_affixes_that_repeat_the_prompts_mean_conform() -> None:
    plain = Affixes(width=WIDTH, prefix=2, suffix=1, form="plain", rank=1)
    words = Words.of(ENCODED, 5)
    mean = words.states.mean(dim=1)
    z = torch.cat([side["V"].flatten(1) for side in plain._split(torch.zeros(1, 12))], dim=1)
    z = torch.cat([mean[:, :, None].expand(1, WIDTH, m).reshape(1, -1) for m in (2, 1)], dim=1) + z
    penalty = Conformity(plain.decode, lambda draw: Prompts.of([words]))
    assert float(penalty.value(z, Draw(0, 0))) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(InvalidInput, match="gamma"):
        Conformity(plain.decode, lambda draw: Prompts.of([words]), weight=-1.0)


def test_the_noise_stands_beside_the_affixes() -> None:
    noise = numbers(1, 2, 3, 2, 2)
    words = Words.of(ENCODED, 3)
    own = Affixes(width=WIDTH, prefix=2, suffix=1, rank=2)
    fixed = AffixedPrompt(own, words, noise)
    assert torch.equal(fixed.decode(fixed.sample(3, Stream(0))).noise, noise.expand(3, 2, 3, 2, 2))
    both = AffixedPrompt(own, words, noise, moving=Noise((2, 3, 2, 2), ENCODED, trust=0.0))
    assert both.dimension == own.dimension + noise.numel()
    z = both.sample(2, Stream(0))
    assert torch.equal(both.decode(z).noise, noise.expand(2, 2, 3, 2, 2)), "it begins there"
    assert torch.equal(both.split(z)[0], own.sample(2, Stream(0)))
    projected = both.split(both.project(3 * z))[1]
    assert projected is not None
    assert torch.allclose(projected.flatten(2).norm(dim=2), torch.tensor(12.0).sqrt())
