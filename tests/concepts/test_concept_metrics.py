"""Reconstruction, editability and the judge's verdicts, against their definitions."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tiller.concepts import templates
from tiller.concepts.drawing import sample, told_by
from tiller.concepts.metrics import Measured, _at_once, evaluate
from tiller.core.errors import InvalidInput
from tiller.models import FrozenModel, load_model
from tiller.models.concepts import Concept
from tiller.rewards._tower import tower_for


@pytest.fixture(scope="module")
def emoji() -> FrozenModel:
    import dataclasses

    model = load_model("emoji")
    model.defaults = dataclasses.replace(model.defaults, num_inference_steps=2, guidance_scale=1.0)
    return model


@pytest.fixture(scope="module")
def measured(emoji: FrozenModel) -> Measured:
    return evaluate(emoji, "owl", torch.rand(2, 3, 64, 64), images=2, seed=5)


def test_a_word_that_a_concept_copies_measures_the_same(
    emoji: FrozenModel, measured: Measured
) -> None:
    """The word's own vector under a new name: the same pictures, the same numbers."""
    table = emoji.token_embeddings[0]
    owl = Concept("<owl>", (table[[emoji.tokenizers[0].get_vocab()["owl</w>"]]].clone(),))
    torch.manual_seed(0)
    given = torch.rand(2, 3, 64, 64)
    a = evaluate(emoji, owl, given, images=2, seed=5)
    b = evaluate(emoji, "owl", given, images=2, seed=5)
    assert a.clips == b.clips
    assert a.judge == b.judge


def test_the_numbers_are_the_papers(emoji: FrozenModel) -> None:
    given = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = evaluate(emoji, "owl", given, images=3, seed=5, clips=["emoji"])
    tower = tower_for("emoji", given)

    def drawn(prompt: str) -> torch.Tensor:
        return sample(emoji, told_by(emoji, [prompt]), range(5, 8), at_once=16)

    plain = tower.embed_images(drawn("a picture of owl"))
    pairs = [float(a @ b) for a in plain for b in tower.embed_images(given)]
    assert found.reconstruction == pytest.approx(sum(pairs) / 9, abs=1e-5)
    edits = templates.edits("object", emoji=True)
    wanted = []
    for template, rest in edits[:2]:
        middle = tower.embed_images(drawn(templates.filled(template, "owl"))).mean(0)
        wanted.append(float(F.normalize(middle, dim=0) @ tower.embed_texts([rest])[0]))
    got = found.clips["emoji"].edits
    assert [got[rest] for _, rest in edits[:2]] == pytest.approx(wanted, abs=1e-5)
    assert found.editability == pytest.approx(sum(got.values()) / len(got))


def test_what_is_placed_is_compared_with_the_picture_of_its_ground(emoji: FrozenModel) -> None:
    """Two pictures on blue, one on pink, and one that has no plain ground."""
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(4, 3, 64, 64, generator=generator)
    for i, rgb in enumerate([(40, 90, 220), (250, 120, 185), (40, 90, 220)]):
        given[i, :, :8], given[i, :, -8:] = 0, 0
        given[i, :, :, :8], given[i, :, :, -8:] = 0, 0
        edge = (given[i] == 0).all(0)
        given[i, :, edge] = torch.tensor(rgb)[:, None] / 255
    found = evaluate(emoji, "owl", given, images=3, seed=5, clips=["emoji"])
    tower = tower_for("emoji", given)
    wanted = []
    for ground, own in (("blue", [0, 2]), ("pink", [1])):
        told = told_by(emoji, [f"a picture of owl on a {ground} background"])
        drawn = tower.embed_images(sample(emoji, told, range(5, 7), at_once=16))
        wanted.append(float((drawn @ tower.embed_images(given[own]).T).mean()))
    assert found.placed == pytest.approx(sum(wanted) / 2, abs=1e-5)
    assert found.plain()["placed"] == found.placed
    bare = evaluate(emoji, "owl", given[3:], images=1, seed=5, clips=["emoji"])
    assert bare.placed is None


def test_shares_and_names(measured: Measured) -> None:
    assert list(measured.clips) == ["emoji-heldout", "emoji"]
    assert measured.reconstruction == measured.clips["emoji-heldout"].reconstruction
    assert measured.judge is not None
    assert measured.judge.same_subject is not None
    assert 0 <= measured.judge.same_subject <= 1
    assert 0 <= measured.judge.edited <= 1
    found = json.loads(json.dumps(measured.plain()))
    assert found["reconstruction"] == measured.reconstruction
    assert (found["token"], found["images"]) == ("owl", 2)


def test_what_cannot_be_measured_is_refused(model: FrozenModel) -> None:
    given = torch.rand(1, 3, 16, 16)
    with pytest.raises(InvalidInput, match="expected a CLIP to compare with, got none"):
        evaluate(model, "x", given)
    with pytest.raises(InvalidInput, match="at least one picture of each prompt"):
        evaluate(model, "x", given, images=0)
    with pytest.raises(InvalidInput, match="expected a word to compare with"):
        evaluate(model, " ", given, images=1, clips=["emoji"])


@pytest.mark.parametrize("emoji_words", [True, False])
@pytest.mark.parametrize("subject", templates.SUBJECTS)
def test_every_sentence_has_its_place_for_the_word(subject: str, emoji_words: bool) -> None:
    said = templates.training(subject, emoji=emoji_words)
    assert len(said) == len(set(said))
    assert all(text.count("{}") == 1 for text in said)
    if emoji_words:  # of a sentence without an article the bundled model draws anything
        edits = [template for template, _ in templates.edits(subject, emoji=True)]
        assert all(text.startswith("a ") for text in (*said, *edits))
    if not emoji_words:
        assert len(said) == {"object": 27, "style": 19}[subject]
    for template, rest in templates.edits(subject, emoji=emoji_words):
        assert template.count("{}") == 1
        assert "{}" not in rest
        assert rest.split()[-1] in template


@pytest.mark.parametrize(
    ("device", "side", "most"),
    [("cpu", 64, 16), ("cpu", 512, 1), ("cuda", 64, 256), ("cuda", 512, 4)],
)
def test_a_batch_holds_fewer_of_large_pictures(device: str, side: int, most: int) -> None:
    model: Any = SimpleNamespace(
        device=torch.device(device), defaults=SimpleNamespace(height=side, width=side)
    )
    assert _at_once(model) == most
