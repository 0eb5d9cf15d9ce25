"""The build: on a tiny database in WordNet's own format, and that the shipped file is the build."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tiller.core.errors import InvalidInput, MissingDependency
from tiller.words.build import LICENCE, SHIPPED, build
from tiller.words.lexicon import Lexicon
from tiller.words.wndb import FILES, FOLDER, Pointer, RawWord, read_database

LICENCE_LINES = [f"  {i} {'WordNet 3.0 Copyright' if i == 14 else 'text'}  " for i in range(1, 30)]

# offset file type words pointers | gloss; offsets are names here, the reader never seeks.
DATA = {
    "noun": [
        "00000010 05 n 02 feline 0 felid 0 002 ~ 00000020 n 0000 ~ 00000030 n 0000 | like a cat",
        "00000020 05 n 03 cat 0 true_cat 0 Felis_catus 0 001 @ 00000010 n 0000 | a small feline",
        "00000030 05 n 01 lion 0 001 @ 00000010 n 0000 | a large feline",
        "00000040 18 n 01 cat 1 001 ;u 00000050 n 0000 | a slur in this tale",
        "00000050 10 n 01 ethnic_slur 0 000 | a slur",
        "00000060 14 n 01 taxonomic_group 0 001 ~ 00000070 n 0000 | a group",
        "00000070 05 n 01 genus_Felis 0 001 @ 00000060 n 0000 | a genus",
        (
            "00000080 27 n 04 "
            "sexual_activity 0 genitalia 0 fecal_matter 0 sexual_pleasure 0 000 | not said"
        ),
    ],
    "verb": ["00000010 38 v 01 rise 0 000 01 + 02 00 | go up"],
    "adj": [
        "00000010 00 a 01 big 0 002 ! 00000020 a 0101 & 00000030 a 0000 | of size",
        "00000020 00 a 01 small 0 001 ! 00000010 a 0101 | of little size",
        "00000030 00 s 02 huge 0 asleep(p) 0 001 & 00000010 a 0000 | very big",
    ],
    "adv": ["00000010 02 r 01 up 0 000 | to the top"],
}
INDEX = {
    "noun": [
        "cat n 2 1 @ 2 1 00000020 00000040  ",
        "ethnic_slur n 1 0 1 0 00000050  ",
        "fecal_matter n 1 0 1 0 00000080  ",
        "felid n 1 1 ~ 1 0 00000010  ",
        "feline n 1 1 ~ 1 0 00000010  ",
        "felis_catus n 1 1 @ 1 0 00000020  ",
        "genitalia n 1 0 1 0 00000080  ",
        "genus_felis n 1 1 @ 1 0 00000070  ",
        "lion n 1 1 @ 1 0 00000030  ",
        "sexual_activity n 1 0 1 0 00000080  ",
        "sexual_pleasure n 1 0 1 0 00000080  ",
        "taxonomic_group n 1 1 ~ 1 0 00000060  ",
        "true_cat n 1 1 @ 1 0 00000020  ",
    ],
    "verb": ["rise v 1 0 1 0 00000010  "],
    "adj": [
        "asleep a 1 1 & 1 0 00000030  ",
        "big a 1 2 ! & 1 1 00000010  ",
        "huge a 1 1 & 1 0 00000030  ",
        "small a 1 1 ! 1 1 00000020  ",
    ],
    "adv": ["up r 1 0 1 0 00000010  "],
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "dict"
    folder.mkdir()
    for name in FILES.values():
        for kind, lines in (("data", DATA), ("index", INDEX)):
            text = "\n".join([*LICENCE_LINES, *lines[name]]) + "\n"
            (folder / f"{kind}.{name}").write_text(text)
    (folder / "cntlist.rev").write_text("cat%1:05:00:: 1 18\nbig%3:00:00:: 1 7\n")
    return folder


def test_the_reader_reads_the_format(tiny: Path) -> None:
    database = read_database(tiny)
    cat = database.synsets["n", 20]
    assert cat.topic == "noun.animal"
    assert cat.words == (RawWord("cat", ""), RawWord("true cat", ""), RawWord("Felis catus", ""))
    assert cat.pointers == (Pointer("@", ("n", 10), 0, 0),)
    assert cat.gloss == "a small feline"
    big = database.synsets["a", 10]
    assert big.pointers[0] == Pointer("!", ("a", 20), 1, 1)
    huge = database.synsets["a", 30]
    assert huge.satellite
    assert huge.words[1] == RawWord("asleep", "p")
    assert database.senses["n", "cat"] == (20, 40)
    assert database.count("cat", ("n", 20)) == 18
    assert database.count("lion", ("n", 30)) == 0


def test_the_build_reads_back(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zip"
    build(tiny, out)
    lexicon = Lexicon(out.read_bytes(), out.name)
    (cat,) = lexicon.senses("cat", "n")  # the slur is left out
    assert [word.text for word in cat.words] == ["cat", "true cat"]  # no scientific name
    assert cat.words[0].count == 18
    assert not cat.words[0].crude  # common enough in the other sense
    (feline,) = lexicon.senses("feline", "n")
    assert cat.parents == (feline.id,)
    assert [lexicon.synset(child).words[0].text for child in feline.children] == ["cat", "lion"]
    assert [word.text for word in lexicon.antonyms("big", "a")] == ["small"]
    (huge,) = lexicon.senses("huge", "a")
    assert [lexicon.synset(head).words[0].text for head in huge.similar] == ["big"]
    assert huge.words[1].place == "p"
    assert "genus felis" not in lexicon
    assert all(word.crude for word in lexicon.senses("genitalia", "n")[0].words)
    assert (tmp_path / LICENCE).read_text() == lexicon.licence
    assert "WordNet 3.0 Copyright" in lexicon.licence


def test_the_same_input_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    build(tiny, tmp_path / "a.zip")
    build(tiny, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_missing_files_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="apt-get install wordnet-base"):
        read_database(tmp_path)


def test_another_version_is_refused(tiny: Path) -> None:
    path = tiny / "data.adv"
    path.write_text(path.read_text().replace("WordNet 3.0", "WordNet 3.1"))
    with pytest.raises(InvalidInput, match=r"expected WordNet 3\.0.*data\.adv"):
        read_database(tiny)


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tiller.words.build", "--wordnet", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "wordnet-base" in done.stderr


@pytest.mark.skipif(
    not (FOLDER / "data.noun").is_file(), reason=f"WordNet's files are not in {FOLDER}"
)
def test_the_shipped_file_is_what_the_build_makes(tmp_path: Path) -> None:
    """Members are compared, not bytes: another zlib packs the same text otherwise."""
    out = tmp_path / "wordnet.zip"
    build(FOLDER, out)
    with zipfile.ZipFile(out) as made, zipfile.ZipFile(SHIPPED) as shipped:
        assert made.namelist() == shipped.namelist()
        for name in made.namelist():
            assert made.read(name) == shipped.read(name), (
                f"{name}: run python -m tiller.words.build"
            )
    assert (tmp_path / LICENCE).read_text() == SHIPPED.with_name(LICENCE).read_text()
