"""Relaxed words: one-hot weights are the words, gradients are the derivative, laws of Gumbel."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiller
from tiller.core.errors import InvalidInput
from tiller.core.rng import Draw, Stream
from tiller.methods._soft_pictures import gumbel
from tiller.models.base import Conditioning, FrozenModel
from tiller.models.loader import load_model
from tiller.spaces.relaxed_words import RelaxedWords, SimilarityPenalty
from tiller.spaces.words import LearnedWords, Wording, Words
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.words import Slot, Substitute, Substitutions, positive_substitutions
from tiller.words.similarity import Similarity

NOISE = torch.zeros(2, 1, 4, 8, 8)


@pytest.fixture(scope="module")
def double() -> FrozenModel:
    return load_model(fake_pipeline(dtype=torch.float64))


def negative(*slots: tuple[str, ...]) -> Substitutions:
    made = [Slot("s", 0, 0, tuple(Substitute(t, "library", 0.0) for t in texts)) for texts in slots]
    return Substitutions("cat", True, tuple(made))


def one_hot(space: Words, z: torch.Tensor) -> torch.Tensor:
    shape = RelaxedWords(space).shape
    return torch.nn.functional.one_hot(z, shape[1]).float()


def fields(conditioning: Conditioning) -> list[torch.Tensor]:
    both = conditioning.prompt_embeds, conditioning.negative_prompt_embeds
    return [tensor for tensor in both if tensor is not None]


def check_one_hot(space: Words, z: torch.Tensor) -> None:
    """Mixtures that are certain are encoded to the last bit as the words that they are."""
    hard = space.decode(z).conditioning.index(slice(None, None, len(space.noise)))
    soft = RelaxedWords(space).encoded(one_hot(space, z))
    for a, b in zip(fields(hard), fields(soft), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("own", ["", "blurry", "bad quality,"])
def test_one_hot_weights_are_the_ordinary_encoding_on_the_bundled_model(own: str) -> None:
    model = tiller.load_model("emoji")
    prompt = "a red cat near an owl"
    against = negative(("green", "a dog"), ("white", "green"), ("too many arms", "glitch"))
    wording = Wording(prompt, own, positive_substitutions(prompt, n=2), against)
    space = Words(model, wording, torch.zeros(1, 1, 4, 16, 16))
    z = torch.cat([torch.zeros(1, len(space.choices)).long(), space.sample(12, Stream(0))])
    check_one_hot(space, z)


@settings(deadline=None, max_examples=25)
@given(
    slots=st.lists(
        st.lists(st.sampled_from(["a", "b c", "dd"]), min_size=1, max_size=3, unique=True),
        min_size=1,
        max_size=3,
    ),
    own=st.sampled_from(["", "x", "x, "]),
)
def test_one_hot_weights_for_any_list(slots: list[list[str]], own: str) -> None:
    space = Words(MODEL, Wording("cat", own, negative=negative(*map(tuple, slots))), NOISE)
    check_one_hot(space, torch.tensor(list(itertools.product(*map(range, space.choices)))))


MODEL = load_model(fake_pipeline())


def test_certain_logits_are_certain_words_whatever_the_noise() -> None:
    space = Words(MODEL, Wording("red cat", "", positive_substitutions("red cat", n=2)), NOISE)
    relaxed = RelaxedWords(space)
    z = torch.tensor([[1, 0]])
    soft = relaxed.decode(1e4 * one_hot(space, z)).conditioning(gumbel((2, *relaxed.shape), DRAW))
    for a, b in zip(fields(soft), fields(space.decode(z).conditioning), strict=True):
        torch.testing.assert_close(a, b)


DRAW = Draw(seed=3, round=2)


def test_the_start_the_bounds_and_what_is_handed_on() -> None:
    space = Words(MODEL, Wording("cat", "", negative=negative(("a", "b"), ("c",))), NOISE)
    relaxed = RelaxedWords(space)
    (z,) = relaxed.sample(1, Stream(0))
    assert z.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert relaxed.project(torch.tensor([[[-1.0, 4.0, 2.0]]])).tolist() == [[[0, 3, 2]]]
    assert LearnedWords(space, z).mode.tolist() == [[0, 0]]
    (first, second) = relaxed.notes(z[None], torch.zeros(1))["distribution"]
    assert first["options"] == ["", "a", "b"]
    assert sum(first["probabilities"]) == pytest.approx(1)
    assert second["probabilities"] == pytest.approx(torch.tensor([1.0, 0.0]).softmax(0).tolist())
    assert relaxed.decode(z[None]).noise.shape == NOISE.shape
    with pytest.raises(InvalidInput, match="space of 1 prompt"):
        RelaxedWords(Words(MODEL, Wording("cat"), NOISE))
    with pytest.raises(InvalidInput, match=r"start must lie in \[0, 3\]"):
        RelaxedWords(space, start=4.0)


def test_gumbel_noise_makes_the_argmax_a_draw_of_the_softmax() -> None:
    logits, n = torch.tensor([1.0, 0.0, 2.0, 0.5]), 4000
    g = gumbel((n, 4), DRAW)
    counts = torch.bincount((logits + g).argmax(dim=1), minlength=4) / n
    assert float((counts - logits.softmax(0)).abs().max()) < 4 * (0.25 / n) ** 0.5
    assert float(g.mean()) == pytest.approx(0.5772, abs=4 * 1.2825 / (4 * n) ** 0.5)
    assert torch.equal(g, gumbel((n, 4), DRAW))
    assert not torch.equal(g[:2], gumbel((2, 4), Draw(3, 3)))


def test_the_gradient_reaches_every_logit_through_the_text_encoder(double: FrozenModel) -> None:
    wording = Wording(
        "red cat", "", positive_substitutions("red cat", n=2), negative(("dog", "owl", "pig"))
    )
    space = Words(double, wording, NOISE.double())
    relaxed = RelaxedWords(space)
    g = gumbel((2, *relaxed.shape), DRAW)
    torch.manual_seed(0)
    z = relaxed.project(relaxed.sample(1, Stream(0)).double() + 0.3 * torch.randn(*relaxed.shape))
    probe: list[Any] = [torch.randn_like(t) for t in fields(relaxed.decode(z).conditioning(g))]

    def value(at: torch.Tensor) -> torch.Tensor:
        states = fields(relaxed.decode(at).conditioning(g))
        return torch.stack([(s * p).sum() for s, p in zip(states, probe, strict=True)]).sum()

    leaf = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(leaf), leaf)
    step = 1e-5
    for j, size in enumerate(space.choices):
        for i in range(relaxed.shape[1]):
            move = torch.zeros_like(z)
            move[0, j, i] = step
            numeric = float(value(z + move) - value(z - move)) / (2 * step)
            assert float(grad[0, j, i]) == pytest.approx(numeric, rel=1e-5, abs=1e-7)
            assert (float(grad[0, j, i]) != 0) == (i < size)


def letters(texts: Any) -> torch.Tensor:
    return torch.tensor([[text.count(c) for c in "abcdefghijklmnopqrst "] for text in texts])


def test_the_penalty_is_the_expected_loss_above_what_is_allowed() -> None:
    prompt = "red cat"
    near = Similarity(prompt, letters)
    wording = Wording(prompt, "", positive_substitutions(prompt, n=3), None, near, 0.95)
    space = Words(MODEL, wording, NOISE)
    relaxed = RelaxedWords(space)
    penalty = SimilarityPenalty(space, weight=2.0)
    sure = 1e4 * one_hot(space, torch.eye(2).long())  # one word changed, certainly
    losses = 1 - space.similarity(torch.eye(2).long())
    torch.testing.assert_close(
        penalty.value(sure.double(), DRAW), (losses - 0.05).clamp(min=0), atol=1e-6, rtol=1e-6
    )
    assert float(penalty.value(1e4 * one_hot(space, torch.zeros(1, 2).long()), DRAW)[0]) == 0
    z = relaxed.sample(1, Stream(0)).double()
    value, slope = penalty.value_and_gradient(z, DRAW)
    assert float(value[0]) > 0
    assert torch.autograd.gradcheck(
        lambda at: penalty.value(at, DRAW), z.clone().requires_grad_(), atol=1e-6
    )
    lower = penalty.value(relaxed.project(z - 0.5 * slope), DRAW)
    assert float(lower[0]) < float(value[0])
    with pytest.raises(InvalidInput, match="weight"):
        SimilarityPenalty(space, weight=-1.0)
