"""Texts made of pieces pass through the text encoder: exact where decided, smooth between."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tiller.core.errors import InvalidInput
from tiller.models import Choice, Conditioning, FrozenModel, Tokens, load_model
from tiller.models.loader import BUNDLED
from tiller.testing.fake_pipeline import fake_pipeline

COLOURS = ("red", "dark green", "chartreuse", "")  # 1, 2, several and no tokens


def small_clip(dtype: torch.dtype = torch.float32, use_attention_mask: bool = False) -> FrozenModel:
    """The bundled tokenizer at CLIP's 77 tokens, with another padding, before a random encoder."""
    folder = str(BUNDLED["emoji"] / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="!")
    state = torch.get_rng_state()
    torch.manual_seed(1)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            use_attention_mask=use_attention_mask,
        )
    )
    torch.set_rng_state(state)
    pipeline = fake_pipeline(dtype=dtype)
    pipeline.tokenizer, pipeline.text_encoder = tokenizer, encoder.eval().to(dtype)
    return load_model(pipeline)


@pytest.fixture(scope="module")
def emoji() -> FrozenModel:
    return load_model("emoji")


@pytest.fixture(scope="module")
def clip() -> FrozenModel:
    return small_clip()


@pytest.fixture(scope="module")
def precise() -> FrozenModel:
    return small_clip(torch.float64)


def one_hot(options: Sequence[str], chosen: str, **how: Any) -> Choice:
    index = list(options).index(chosen)
    weights = torch.nn.functional.one_hot(torch.tensor(index), len(options)).float()
    return Choice(tuple(options), weights.to(how.get("dtype", torch.float32)).requires_grad_())


def weighted(options: Sequence[str], *weights: float) -> Choice:
    return Choice(tuple(options), torch.tensor(weights, dtype=torch.float64))


def test_the_options_have_one_several_and_no_tokens(clip: FrozenModel) -> None:
    """Both ends are counted; the others test what they say only if this holds."""
    counts = clip.token_counts(COLOURS)
    assert counts[0] == 3
    assert counts[1] == 4
    assert counts[2] > 4
    assert counts[3] == 2


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a", "cat on a table"),
        ("", "cat"),  # first
        ("the cat is", ""),  # last
        (" (a, ", " ), cat's!"),  # spaces do not matter, marks are words of their own
        ("big " * 72, "cat"),  # reaches the end of the 77
    ],
)
def test_decided_weights_are_the_ordinary_text_bit_for_bit(
    clip: FrozenModel, colour: str, before: str, after: str
) -> None:
    whole = f"{before} {colour} {after}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the longest option does not fit
        expected = clip.encode([whole]).prompt_embeds
        soft = clip.encode_pieces([[before, one_hot(COLOURS, colour), after]]).prompt_embeds
    assert soft.requires_grad
    assert torch.equal(soft, expected)


@pytest.mark.parametrize("length", [73, 74, 75, 76, 200])
def test_at_the_limit_the_same_is_cut_and_said(clip: FrozenModel, length: int) -> None:
    """Two stretches at the end, of which some tokens, or all, are beyond the 77."""
    before = " ".join(["big"] * length)
    pieces = [before, one_hot(COLOURS, "dark green"), one_hot(COLOURS, "red")]
    whole = f"{before} dark green red"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = clip.encode([whole]).prompt_embeds
        soft = clip.encode_pieces([pieces]).prompt_embeds
    assert torch.equal(soft, expected)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == (2 if length + 3 > 75 else 0)
    assert len(set(texts)) <= 1  # word for word the ordinary warning
    assert all("green" in text or "red" in text or text.endswith("…") for text in texts)


def test_with_the_bundled_model(emoji: FrozenModel) -> None:
    pieces = ["a photo of a", one_hot(COLOURS, "dark green"), one_hot(("cat", "owl"), "owl")]
    expected = emoji.encode(["a photo of a dark green owl"], ["blue"])
    soft = emoji.encode_pieces([pieces], [[one_hot(("", "blue"), "blue")]])
    # Two rows in one batch: the same to float rounding.
    torch.testing.assert_close(soft.prompt_embeds, expected.prompt_embeds, rtol=1e-5, atol=1e-5)
    assert soft.negative_prompt_embeds is not None
    torch.testing.assert_close(
        soft.negative_prompt_embeds, expected.negative_prompt_embeds, rtol=1e-5, atol=1e-5
    )
    alone = emoji.encode_pieces([pieces])
    assert torch.equal(alone.prompt_embeds, expected.prompt_embeds)
    assert alone.negative_prompt_embeds is not None
    assert torch.equal(alone.negative_prompt_embeds, emoji.encode([""]).prompt_embeds)


def test_fixed_pieces_are_the_ordinary_text_from_the_cache(clip: FrozenModel) -> None:
    calls: list[int] = []
    expected = clip.encode(["a red cat", ""], ["dull"])
    hook = clip.pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    found = clip.encode_pieces([["a red cat"], []], [["dull"]])
    clip.encode_pieces([["a red", "cat"]], [["dull"]])
    hook.remove()
    assert torch.equal(found.prompt_embeds, expected.prompt_embeds)
    assert torch.equal(found.negative_prompt_embeds, expected.negative_prompt_embeds)
    assert not calls


def test_a_population_is_one_forward_and_its_rows_are_their_own(clip: FrozenModel) -> None:
    """30 concepts in 2 templates, with an undecided word: the batch changes no row."""
    shapes: list[int] = []
    generator = torch.Generator().manual_seed(0)
    concepts = 0.02 * torch.randn(30, 2, 16, generator=generator)
    colour = weighted(COLOURS, 0.4, 0.3, 0.2, 0.1)
    texts = [
        [template, Tokens((concept,)), "of a", colour, "cat"]
        for concept in concepts
        for template in ("a photo of", "the")
    ]
    hook = clip.pipeline.text_encoder.register_forward_hook(  # type: ignore[attr-defined]
        lambda module, args, output: shapes.append(len(output[0]))
    )
    together = clip.encode_pieces(texts).prompt_embeds
    hook.remove()
    assert shapes[0] == 60
    assert len(shapes) <= 2  # and the empty negative prompt, once
    for row in (0, 7, 59):
        alone = clip.encode_pieces([texts[row]]).prompt_embeds[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-5, atol=1e-6)
    assert not torch.equal(together[0], together[2])


def mean_at(model: FrozenModel, position: int, weights: dict[str, float]) -> Tensor:
    """The mixture at a position of the stretch by its definition; "" is the end token."""
    table, tokenizer = model.token_embeddings[0], model.tokenizers[0]
    total, mixed = 0.0, torch.zeros(table.shape[1], dtype=torch.float64)
    for option, weight in weights.items():
        ids = tokenizer(option, add_special_tokens=False).input_ids
        ids = ids or [tokenizer.eos_token_id] * (position + 1)
        if position < len(ids):
            total += weight
            mixed += weight * table[ids[position]]
    return mixed / total


@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.2, 0.1), (0.5, 0.2, 0.2, 0.1)])
def test_a_mixture_is_the_learned_tokens_of_its_mean(
    precise: FrozenModel, weights: tuple[float, ...]
) -> None:
    """A reduction: the stretch equals `Tokens` with the weighted mean at each of its positions."""
    shares = dict(zip(COLOURS, weights, strict=True))
    heaviest = max(shares, key=lambda option: shares[option])
    positions = precise.token_counts([heaviest])[0] - 2
    mean = torch.stack([mean_at(precise, p, shares) for p in range(positions)])
    soft = precise.encode_pieces([["a", weighted(COLOURS, *weights), "cat"]]).prompt_embeds
    same = precise.encode_pieces([["a", Tokens((mean,)), "cat"]]).prompt_embeds
    torch.testing.assert_close(soft, same, rtol=1e-10, atol=1e-12)


def test_the_embeddings_of_words_as_learned_tokens_are_the_words(clip: FrozenModel) -> None:
    ids = clip.tokenizers[0]("dark green", add_special_tokens=False).input_ids
    learned = Tokens((clip.token_embeddings[0][ids],))
    found = clip.encode_pieces([["a", learned, "cat"]]).prompt_embeds
    assert torch.equal(found, clip.encode(["a dark green cat"]).prompt_embeds)


def test_where_nothing_is_the_heaviest_the_stretch_has_no_position(precise: FrozenModel) -> None:
    weights = torch.tensor([0.2, 0.1, 0.1, 0.6], dtype=torch.float64, requires_grad=True)
    found = precise.encode_pieces([["a", Choice(COLOURS, weights), "cat"]]).prompt_embeds
    assert torch.equal(found, precise.encode(["a cat"]).prompt_embeds)
    found.sum().backward()
    assert weights.grad is not None
    assert not weights.grad.any()  # zero, not missing


def test_gradients_are_those_of_finite_differences(precise: FrozenModel) -> None:
    """To weights in both prompts and to learned vectors, through every layer of the encoder."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    logits[:, 1] = logits.max() + 0.5  # two positions, none of which is empty
    vectors = 0.02 * torch.randn(2, 16, generator=generator, dtype=torch.float64)
    probe = torch.randn(2, 77, 16, generator=generator, dtype=torch.float64)

    def value(logits: Tensor, vectors: Tensor) -> Tensor:
        prompt, negative = (Choice(COLOURS, row.softmax(0)) for row in logits)
        found = precise.encode_pieces(
            [["a", prompt, Tokens((vectors,)), "cat"]], [["no", negative, "dog"]]
        )
        assert found.negative_prompt_embeds is not None
        both = torch.cat([found.prompt_embeds, found.negative_prompt_embeds])
        return (both * probe).sum()

    inputs = [logits.requires_grad_(), vectors.requires_grad_()]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)
    grads = torch.autograd.grad(value(*inputs), inputs)
    assert all(bool((grad != 0).all()) for grad in grads)


def test_weights_shared_by_several_texts_gather_their_gradients(precise: FrozenModel) -> None:
    weights = torch.tensor([0.2, 0.5, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    texts = [["a", Choice(COLOURS, weights), animal] for animal in ("cat", "dog")]

    def grad(some: list[Any]) -> Tensor:
        return torch.autograd.grad(
            precise.encode_pieces(some).prompt_embeds.square().sum(), weights
        )[0]

    torch.testing.assert_close(grad(texts), grad(texts[:1]) + grad(texts[1:]))


def test_padding_is_masked_as_in_ordinary_encoding() -> None:
    model = small_clip(use_attention_mask=True)
    found = model.encode_pieces([["a", one_hot(COLOURS, "dark green"), "cat"]]).prompt_embeds
    assert torch.equal(found, model.encode(["a dark green cat"]).prompt_embeds)
    assert not torch.equal(found, small_clip().encode(["a dark green cat"]).prompt_embeds)


def test_half_precision_stays_exact() -> None:
    model = small_clip(torch.bfloat16)
    found = model.encode_pieces([["a", one_hot(COLOURS, "dark green"), "cat"]]).prompt_embeds
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, model.encode(["a dark green cat"]).prompt_embeds)


def test_the_encoder_is_left_as_it_was(clip: FrozenModel) -> None:
    """Also when it fails in between."""
    embedding = clip.pipeline.text_encoder.get_input_embeddings()  # type: ignore[attr-defined]
    text = ["a", weighted(COLOURS, 0.4, 0.3, 0.2, 0.1)]
    clip.encode_pieces([text])
    assert not embedding._forward_hooks

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = clip.pipeline.text_encoder.encoder.register_forward_pre_hook(fail)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        clip.encode_pieces([text])
    hook.remove()
    assert not embedding._forward_hooks


def test_counts_are_what_is_read(clip: FrozenModel) -> None:
    texts = ["", "a red cat", "word " * 500]
    assert clip.token_counts(texts) == [2, 5, 77]
    assert clip.token_counts(texts, cut=False) == [2, 5, 502]
    (table,), (tokenizer,) = clip.token_embeddings, clip.tokenizers
    assert table.shape == (len(tokenizer), 16)
    assert not table.requires_grad


HALF = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "weights", "says"),
    [
        ((), torch.zeros(0), "at least one option"),
        (["a", "b"], HALF, "tuple of at least one option"),
        (("a", 3), HALF, "must be texts, got 3"),
        (("a", "b"), torch.tensor([1, 0]), "must be a float tensor"),
        (("a", "b"), torch.ones(3) / 3, "expected 2 weights"),
    ],
)
def test_a_choice_that_cannot_be(options: Any, weights: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Choice(options, weights)


@pytest.mark.parametrize("weights", [[0.9, 0.9], [1.5, -0.5], [float("nan"), 1.0], [0.0, 0.0]])
def test_weights_that_are_no_weights(clip: FrozenModel, weights: list[float]) -> None:
    with pytest.raises(InvalidInput, match=r"weights of \('a', 'b'\) must be at least 0 with sum"):
        clip.encode_pieces([[Choice(("a", "b"), torch.tensor(weights))]])


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ((), "a tuple of one tensor"),
        (torch.zeros(1, 4), "a tuple of one tensor"),
        ((torch.zeros(4),), r"must be float tensors \[k, D\], got \[4\]"),
        ((torch.zeros(0, 4),), "expected k >= 1 vectors"),
        ((torch.zeros(1, 4), torch.zeros(2, 4)), r"as many for each text encoder, got \[1, 2\]"),
    ],
)
def test_learned_tokens_that_cannot_be(vectors: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Tokens(vectors)


def test_what_is_made_for_another_model_is_refused(clip: FrozenModel) -> None:
    with pytest.raises(InvalidInput, match="width 16 for text encoder 1, got 768"):
        clip.encode_pieces([["a", Tokens((torch.zeros(1, 768),))]])
    with pytest.raises(InvalidInput, match="vectors for 1 text encoders, got 2"):
        clip.encode_pieces([["a", Tokens((torch.zeros(1, 16), torch.zeros(1, 16)))]])


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("a cat", "got a text"),
        (["a cat"], r"write \[\['a cat'\]\]"),
        ([], "at least one text in prompts"),
        ([["a", 3]], "got a int"),
    ],
)
def test_what_is_no_list_of_pieces_is_refused(clip: FrozenModel, texts: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        clip.encode_pieces(texts)
    with pytest.raises(InvalidInput, match="1 or 2 negative_prompts"):
        clip.encode_pieces([["a"], ["b"]], [["x"], ["y"], ["z"]])


class Wordless(FrozenModel):
    """A model that has no text encoder."""

    name = "wordless"

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None
    ) -> Conditioning:
        return Conditioning(torch.zeros(len(prompts), 1, 1))

    def denoise(self, latents: Tensor, *args: Any, **inputs: Any) -> Tensor:
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def test_a_model_without_a_text_encoder_says_so() -> None:
    model = Wordless()
    with pytest.raises(InvalidInput, match="takes no pieces"):
        model.encode_pieces([["a"]])
    with pytest.raises(InvalidInput, match="reads no tokens"):
        model.token_counts(["a"])
    for attribute in ("tokenizers", "token_embeddings"):
        with pytest.raises(InvalidInput, match="with a text encoder"):
            getattr(model, attribute)
