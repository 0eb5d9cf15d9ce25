"""Where a search begins (equation 4), and the words that a model knows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tiller.concepts.initialize import (
    at_random,
    attended,
    embed_sentences,
    nearest_phrases,
    of_words,
    similarities,
)
from tiller.concepts.learn import _start
from tiller.concepts.pictures import load_pictures
from tiller.concepts.ti import Ti
from tiller.concepts.vocabulary import Words, notice_untaught, words_of
from tiller.core.errors import InvalidInput, TillerNotice
from tiller.models import FrozenModel, load_model
from tiller.rewards._tower import tower_for

sys.path.append(str(Path(__file__).parents[1] / "rewards"))  # the tiny CLIP of the rewards' tests
from tiny_clip import write_clip


def test_the_start_is_equation_4_at_the_length_of_a_word() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(3, 7, generator=generator)
    tables = [torch.randn(7, 5, generator=generator), torch.randn(7, 2, generator=generator)]
    found = attended(similarity, tables, 2.0)
    for e, table in zip(found, tables, strict=True):
        wanted = torch.zeros(table.shape[1])
        for row in similarity:
            weights = (2.0 * row).exp() / (2.0 * row).exp().sum()
            wanted += (weights[:, None] * table).sum(0) / 3
        length = table.norm(dim=1).median()
        assert torch.allclose(e, wanted * length / wanted.norm(), atol=1e-5)
        assert float(e.norm()) == pytest.approx(float(length), rel=1e-5)


def test_a_high_temperature_picks_the_best_word_and_none_the_mean() -> None:
    words = torch.eye(4)
    similarity = torch.tensor([[0.30, 0.25, 0.20, 0.10]])
    assert attended(similarity, [words], 1000.0)[0].argmax() == 0
    assert float(attended(similarity, [words], 1000.0)[0][0]) == pytest.approx(1.0, abs=1e-6)
    even = attended(similarity, [words], 1e-6)[0]
    assert torch.allclose(even, torch.full((4,), 0.5), atol=1e-4)  # the mean, of a word's length
    with_scale = attended(similarity, [words], 100.0)[0]
    assert with_scale[0] > 0.99  # cosines differ by hundredths: CLIP's own scale tells them apart


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("clip")))


def test_sentences_in_batches_are_what_they_are_alone(clip: str) -> None:
    tower = tower_for(clip, torch.zeros(1, 3, 16, 16))
    sentences = ["a red", "red", "a cat", "cat", "a"]
    together = embed_sentences(tower, sentences)
    alone = tower.embed_texts(sentences)
    assert torch.allclose(together, alone, atol=1e-5)


def test_pictures_and_words_meet_in_the_clip(clip: str) -> None:
    tower = tower_for(clip, torch.zeros(1, 3, 16, 16))
    words = Words(("red", "cat", "a"), (torch.eye(3),))
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    similarity, near = similarities(tower, pictures, words, "a {}")
    wanted = tower.embed_images(pictures) @ tower.embed_texts(["a red", "a cat", "a a"]).T
    assert torch.allclose(similarity, wanted, atol=1e-5)
    assert near[0] == words.names[int(wanted.mean(0).argmax())]
    assert len(near) == 3


@pytest.mark.parametrize("thing", [True, False])
def test_a_beam_that_holds_all_words_finds_the_nearest_phrases(clip: str, thing: bool) -> None:
    tower = tower_for(clip, torch.zeros(1, 3, 16, 16))
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pool = ["red", "cat", "owl", "to"]  # the last is the sentence's
    words = 3 if thing else 2
    found = nearest_phrases(tower, pictures, pool, "to {}", words, thing=thing)
    pairs = [f"{x} {y}" for x in pool[:3] for y in pool[:3]]
    written = [f"{'an' if p[0] == 'o' else 'a'} {p}" for p in pairs] if thing else pairs
    said = tower.embed_texts([f"to {phrase}" for phrase in written])
    near = (tower.embed_images(pictures) @ said.T).mean(0).tolist()
    assert sorted(found) == sorted(written)
    assert near[written.index(found[0])] == pytest.approx(max(near), abs=1e-5)


def test_the_bundled_model_begins_among_the_words_of_its_captions() -> None:
    model = load_model("emoji")
    words = words_of(model)
    assert {"rabbit", "purple", "background"} <= set(words.names)
    assert len(words.names) < 200
    assert words.tables[0].shape == (len(words.names), 192)
    red = Image.new("RGB", (64, 64), (228, 38, 38))
    given = load_pictures([red], (64, 64)).tensor()
    tower = tower_for("emoji", given)
    _, near = similarities(tower, given, words, "a {}")
    assert {"red", "crimson", "scarlet", "ruby"} & set(near)


def test_words_of_the_users_choice(model: FrozenModel) -> None:
    table, own = model.token_embeddings[0], model.tokenizers[0].get_vocab()
    one = of_words(model, "x", 1)[0]
    assert torch.equal(one[0], table[own["x</w>"]])
    two = of_words(model, "x y", 3)[0]  # in turn
    assert torch.equal(two, table[[own["x</w>"], own["y</w>"], own["x</w>"]]])
    pieces = of_words(model, "xy", 1)[0]
    assert torch.allclose(pieces[0], table[[own["x"], own["y</w>"]]].mean(0))
    with pytest.raises(InvalidInput, match="expected a word to begin with"):
        of_words(model, " ", 1)


def test_random_words_are_words(model: FrozenModel) -> None:
    words = words_of(model)
    found = at_random(words, 4, torch.Generator().manual_seed(0))[0]
    assert all(bool((words.tables[0] == e).all(1).any()) for e in found)
    assert words_of(model).names == words.names


def test_words_that_the_bundled_model_was_not_taught_are_named(model: FrozenModel) -> None:
    emoji = load_model("emoji")
    assert {"duck", "owl"} <= set(words_of(emoji).names)
    with pytest.warns(TillerNotice, match=r"does not know bird, strawberry, .* it knows cat, dog"):
        notice_untaught(emoji, ["a bird", "Strawberry"])
    notice_untaught(emoji, ["Duck", "a red owl"])  # warnings are errors here
    notice_untaught(model, ["bird"])


def test_a_search_that_begins_at_such_a_word_says_so() -> None:
    emoji, words = load_model("emoji"), words_of(load_model("emoji"))
    given = load_pictures([Image.new("RGB", (64, 64))], (64, 64))
    with pytest.warns(TillerNotice, match="does not know unicorn"):
        _start(emoji, Ti(init="unicorn"), given, words, "a {}", 0)
