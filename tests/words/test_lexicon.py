"""The shipped lexicon: what it says, how it opens, and what it must not say."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tiller.words
from tiller.core.errors import InvalidInput
from tiller.words.archive import write_archive
from tiller.words.lexicon import Lexicon, Pos, base36, load_lexicon

SHIPPED = Path(tiller.words.__file__).with_name("wordnet.zip")
LEXICON = load_lexicon()


def spelled(lemma: str, pos: Pos, sense: int = 0) -> list[str]:
    return [word.text for word in LEXICON.senses(lemma, pos)[sense].words]


def test_senses_in_order_of_frequency() -> None:
    assert spelled("rabbit", "n") == ["rabbit", "coney", "cony"]
    assert spelled("ice cream", "n") == ["ice cream", "icecream"]
    cat, guy = LEXICON.senses("CAT", "n")[:2]
    assert (cat.topic, cat.words[0].count, guy.words[0].text) == ("noun.animal", 18, "guy")


@pytest.mark.parametrize(
    ("lemma", "pos", "antonym"),
    [
        ("black", "a", "white"),
        ("man", "n", "woman"),
        ("ascend", "v", "descend"),
        ("up", "r", "down"),
    ],
)
def test_antonyms(lemma: str, pos: Pos, antonym: str) -> None:
    assert antonym in [word.text for word in LEXICON.antonyms(lemma, pos)]


def test_parents_and_children_point_at_each_other() -> None:
    for lemma in ("cat", "dog", "hammer", "walk", "red"):
        for pos in ("n", "v"):
            for synset in LEXICON.senses(lemma, pos):
                for parent in synset.parents:
                    assert synset.id in LEXICON.synset(parent).children
                for child in synset.children:
                    assert synset.id in LEXICON.synset(child).parents


def test_satellites_point_at_their_head() -> None:
    huge = LEXICON.senses("huge", "a")[0]
    assert any(LEXICON.synset(head).word("large") for head in huge.similar)


def test_every_lemma_has_senses_that_spell_it() -> None:
    for i, lemma in enumerate(LEXICON.lemmas()):
        if i % 997 == 0:
            for pos, numbers in LEXICON.sense_ids(lemma).items():
                for number in numbers:
                    synset = LEXICON.synset(number)
                    assert synset.pos == pos
                    assert synset.word(lemma) is not None, lemma


def test_words_that_are_not_there() -> None:
    for lemma in ("", "qwxzy", "zzzz", "\x00", "cat\tn"):
        assert lemma not in LEXICON
        assert LEXICON.senses(lemma, "n") == ()
        assert LEXICON.familiarity(lemma, "n") == 0


def test_worth_is_high_for_a_common_word_that_mostly_means_this() -> None:
    dog = LEXICON.senses("dog", "n")[0]
    known = {word.text: word.worth for word in dog.words}
    assert known["dog"] > 0.5 > 0.1 > known["domestic dog"]
    assert all(0 <= word.worth <= 1 for word in dog.words)


def test_slurs_are_left_out_and_their_spellings_marked() -> None:
    kitty = next(s for s in LEXICON.senses("pussycat", "n") if s.topic == "noun.animal")
    marked = {word.text: word.crude for word in kitty.words}
    assert marked["pussy"]
    assert not marked["kitty"]
    assert "kike" not in LEXICON
    assert not LEXICON.senses("black", "a")[0].words[0].crude
    assert not LEXICON.senses("queen", "n")[0].words[0].crude


def test_no_taxa() -> None:
    assert "felis catus" not in LEXICON
    assert "genus felis" not in LEXICON
    assert "ginkgo" in LEXICON


def test_the_file_is_small_and_carries_its_licence() -> None:
    assert SHIPPED.stat().st_size < 3_000_000
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in LEXICON.licence
    beside = SHIPPED.with_name("WORDNET-LICENSE.txt").read_text()
    assert beside == LEXICON.licence
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    assert "src/tiller/words/wordnet.zip" in notice


def test_a_fresh_interpreter_opens_it_without_anything_heavy() -> None:
    script = (
        "import sys, time\n"
        "import tiller.words\n"
        "start = time.process_time()\n"
        "lexicon = tiller.words.load_lexicon()\n"
        "lexicon.senses('cat', 'n'), lexicon.antonyms('black', 'a')\n"
        "took = time.process_time() - start\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'numpy', 'lemminflect'} & {*sys.modules}\n"
        "print(took < 0.1, sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "True []"


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    data = SHIPPED.read_bytes()
    with pytest.raises(InvalidInput, match="damaged"):
        Lexicon(data[: len(data) // 2])
    with pytest.raises(InvalidInput, match="damaged"):
        Lexicon(b"")
    write_archive(tmp_path / "other.zip", {"about": "something else 7"}, {}, 10)
    with pytest.raises(InvalidInput, match="something else 7"):
        Lexicon((tmp_path / "other.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InvalidInput, match="without it"):
        Lexicon((tmp_path / "empty.zip").read_bytes())


def test_numbers_read_back() -> None:
    for number in (0, 35, 36, 1295, 1296, 117_658):
        assert int(base36(number), 36) == number
