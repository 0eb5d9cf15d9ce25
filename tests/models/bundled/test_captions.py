"""The captions' language: every template can be read back, and splits never overlap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiller.core.errors import TillerError
from tiller.models.bundled import captions
from tiller.models.bundled.captions import BACKGROUNDS, COLOURS, SUBJECTS, Spec, caption, parse

colours = st.one_of(st.none(), st.sampled_from(list(COLOURS)))
subjects = st.lists(
    st.tuples(st.sampled_from(list(SUBJECTS)), colours),
    min_size=1,
    max_size=2,
    unique_by=lambda pair: pair[0],
)
specs = st.builds(
    lambda pairs, background: Spec(tuple(pairs), background),
    subjects,
    st.one_of(st.none(), st.sampled_from(BACKGROUNDS)),
)


@given(specs, st.integers(0, 2**31), st.sampled_from([0.0, 0.06, 1.0]))
def test_every_caption_reads_back_as_what_it_names(spec: Spec, seed: int, rare: float) -> None:
    assert parse(caption(spec, np.random.default_rng(seed), rare=rare)) == spec


@pytest.mark.parametrize("template", [*captions.PLAIN, *captions.WITH_BACKGROUND])
@pytest.mark.parametrize("join", captions.JOINS)
def test_every_template_and_join_is_read_back(template: str, join: str) -> None:
    text = template.format(s=f"a red cat{join}an elephant", b="a blue")
    background = "blue" if "{b}" in template else None
    assert parse(text) == Spec((("cat", "red"), ("elephant", None)), background)


def test_every_rarer_word_stands_for_one_thing_only() -> None:
    nouns = [w for name, (_, rare) in SUBJECTS.items() for w in (name, *rare)]
    shades = [w for name, rare in COLOURS.items() for w in (name, *rare)]
    assert len(set(nouns + shades)) == len(nouns + shades)
    assert set(BACKGROUNDS) <= set(COLOURS)


def test_articles_follow_the_next_word() -> None:
    rng = np.random.default_rng(0)
    texts = {caption(Spec((("owl", "orange"),), "white"), rng, rare=0.0) for _ in range(50)}
    assert all("an orange owl" in text and "a white background" in text for text in texts)
    assert len(texts) == len(set(captions.WITH_BACKGROUND))


def test_a_prompt_without_a_known_subject_is_refused_with_the_list() -> None:
    with pytest.raises(TillerError, match=r"rabbit.*got prompt='a red thing'"):
        parse("a red thing")


def test_capitals_punctuation_and_unknown_words_are_skipped() -> None:
    got = parse("A tiny, RED Cat -- beside a fluffy dog, on a Grey background!")
    assert got == Spec((("cat", "red"), ("dog", None)), "gray")


@pytest.mark.parametrize("kind", ["one", "two"])
def test_evaluation_prompts_are_unseen_distinct_and_repeatable(kind: captions.Kind) -> None:
    asked = captions.prompts("test", 60, seed=5, kind=kind)
    assert asked == captions.prompts("test", 60, seed=5, kind=kind)
    assert len({text for text, _ in asked}) == 60
    for text, spec in asked:
        assert captions.held_out(spec)
        assert parse(text) == spec
        assert len(spec.subjects) == (1 if kind == "one" else 2)


def test_a_tenth_is_held_out_and_never_in_the_training_split() -> None:
    rng = np.random.default_rng(0)
    assert not any(captions.held_out(captions.random_spec(rng, "train", "one")) for _ in range(300))
    every = [Spec(((s, c),), b) for s in SUBJECTS for c in (None, *COLOURS) for b in BACKGROUNDS]
    share = np.mean([captions.held_out(spec) for spec in every])
    assert 0.08 < share < 0.12
