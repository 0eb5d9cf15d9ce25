"""How similar two prompts are, and which words keep a prompt near."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tiller.core.errors import InvalidInput
from tiller.words import positive_substitutions
from tiller.words.similarity import Similarity, sentence_encoder, within

LETTERS = "abcdefghijklmnopqrstuvwxyz "


class Letters:
    """Counts letters, and how many texts it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[text.count(letter) for letter in LETTERS] for text in texts])


def test_it_is_the_cosine_and_each_text_is_embedded_once() -> None:
    embed = Letters()
    similarity = Similarity("ab", embed)
    found = similarity(["ba", "aab", "c", "ba", "ab"])
    expected = torch.tensor([1.0, 3 / 10**0.5, 0.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    similarity(["c", "aab"])
    assert sorted(embed.asked) == ["aab", "ab", "ba", "c"]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiller.words.similarity._REMEMBERED", 3)
    similarity = Similarity("ab", Letters())
    first = similarity(["a", "b"])
    similarity(["aa", "bb", "ab", "c"])
    assert torch.equal(similarity(["a", "b"]), first)


def test_words_that_alone_leave_the_prompt_are_dropped() -> None:
    space = positive_substitutions("a red cat and a blue dog", n=5)
    similarity = Similarity(space.prompt, Letters())
    near = within(space, similarity, 0.98)
    kept = {(slot.word, option.text) for slot in near.slots for option in slot.options}
    for k, slot in enumerate(space.slots):
        for o, option in enumerate(slot.options, 1):
            choice = [o if j == k else 0 for j in range(len(space.slots))]
            good = float(similarity([space.text(choice)])[0]) >= 0.98
            assert ((slot.word, option.text) in kept) == good
    assert all(slot.options for slot in near.slots)
    assert within(space, similarity, 1.01).size == 1
    assert 1 < near.size < space.size


def test_embeddings_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"embeddings \[1, D\] of 1 texts, got \[3\]"):
        Similarity("a", lambda texts: torch.zeros(3))(["b"])
    with pytest.raises(InvalidInput, match="got list"):
        Similarity("a", lambda texts: [1.0])(["b"])  # type: ignore[arg-type, return-value]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with a tokenizer of words, in the hub's layout."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "a", "red", "scarlet", "cat", "dog"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_a_sentence_encoder_of_transformers(encoder: Path) -> None:
    embed = sentence_encoder(str(encoder))
    texts = ["a red cat", "a cat", "dog"]
    together = embed(texts)
    assert together.shape == (3, 8)
    torch.testing.assert_close(together, torch.cat([embed([text]) for text in texts]))
    model = BertModel.from_pretrained(encoder)
    states = model(torch.tensor([[2, 3, 5]])).last_hidden_state
    torch.testing.assert_close(together[0], states[0].mean(dim=0).detach())
    found = Similarity("a red cat", embed)(["a red cat", "dog"])
    assert found[0] == 1.0 > found[1]


@pytest.mark.parametrize("source", ["/nowhere/at/all", ""])
def test_an_encoder_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(InvalidInput, match="cannot load the sentence encoder"):
        sentence_encoder(source)


def test_an_encoder_of_torn_weights_is_named(encoder: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(encoder, tmp_path / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(InvalidInput, match=r"cannot load the sentence encoder .* got: "):
        sentence_encoder(str(torn.parent))
