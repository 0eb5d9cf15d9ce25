"""What a run says about words: read from its journal, in the page, in the comparison."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_report import HOSTILE, Checked, a_run

from tiller.runs.advice import advice
from tiller.runs.found_words import _TOKEN, Piece, Worth, compared, found_words, listed
from tiller.runs.record import read_run
from tiller.runs.report import _panels, write_report
from tiller.runs.store import RunStore, versions
from tiller.runs.survivors import survivors
from tiller.runs.word_charts import BARS
from tiller.runs.words_view import unseen_verdict, words_view

PROMPT, BEST = "a red cat", "a scarlet feline"


def candidate(prompt: str, score: float, negative: str = "") -> dict[str, Any]:
    return {"prompt": prompt, "negative_prompt": negative, "score": score, "similarity": 0.95}


def gain(word: str, start: int, option: str, by: float, part: str = "prompt") -> dict[str, Any]:
    place = {"part": part, "word": word, "start": start, "end": start + len(word)}
    return {**place, "option": option, "source": "wordnet-synonym", "gain": by}


def distribution(red: list[float]) -> list[dict[str, Any]]:
    options = ["red", "scarlet", "<b>ruby</b>"]
    many = [f"option {i}" for i in range(40)]
    return [
        {"part": "prompt", "word": "red", "options": options, "probabilities": red},
        {"part": "negative_prompt", "word": "library 1", "options": ["", *many],
         "probabilities": [1 / 41] * 41},
    ]  # fmt: skip


def words_run(
    out: Path,
    *,
    lowers: bool = False,
    prompt: str = PROMPT,
    best: str = BEST,
    negative: str = "blurry, dog",
    change: tuple[float, float, float] = (0.1, 0.05, 0.15),
    unseen: bool = True,
    dropped: bool = False,
    settings: dict[str, Any] | None = None,
    says: dict[str, list[str]] | None = None,
) -> Path:
    """A finished search for words: the user's, two relaxed rounds, two of prompts, words put back.

    The reward moves from .5 by .1 and .2, up or (an attack) down; the search's score is negated in
    an attack, as the engine writes it. `says` has the slots of each prompt.
    """
    sign = -1 if lowers else 1
    spec = {
        "method": {"name": "attack" if lowers else "dpo_diff",
                   "settings": settings or {"seeds": 2}},
        "citation": "Wang et al.", "model": "emoji", "prompt": prompt, "negative_prompt": "",
        "lowers": lowers, "reward": ["clip"], "held_out": ["jpeg"], "budget": "images=40",
        "seed": 0, "versions": versions(),
    }  # fmt: skip

    def raw(by: float) -> float:
        return sign * (0.5 + sign * by)

    user = candidate(prompt, raw(0))
    rounds: list[dict[str, Any]] = [
        {"phase": "prompt", "candidates": [user], "best_score": raw(0)},
        {"phase": "gradient", "relaxed": True, "distribution": distribution([0.6, 0.2, 0.2])},
        {"phase": "gradient", "relaxed": True, "distribution": distribution([0.1, 0.8, 0.1])},
        {"phase": "search", "best_score": raw(0.1),
         "candidates": [candidate("a scarlet cat", raw(0.1)), candidate("a red moggy", raw(-0.1))]},
        {"phase": "search", "best_score": raw(0.2),
         "candidates": [candidate(best, raw(0.2), negative), candidate("a red kitty", raw(0.05))]},
        {"phase": "words put back", "best_score": raw(0.25 if dropped else 0.2),
         "candidates": [candidate("a red feline", raw(0.05), negative),
                        candidate("a scarlet cat", raw(0.25 if dropped else 0.1), negative)],
         "gains": [gain("red", 2, "scarlet", 0.15), gain("cat", 6, "feline", 0.2 - 0.25)
                   if dropped else gain("cat", 6, "feline", 0.1)]},
    ]  # fmt: skip
    for entry in rounds if says else ():
        if entry["phase"] in ("prompt", "search"):
            entry["slots"] = [{"part": "prompt", "word": word} for word in ("red", "cat")]
            for one in entry["candidates"]:
                one["says"] = (says or {})[one["prompt"]]
    with RunStore.create(out, spec, "words") as store:
        for name in ("baseline", "best"):
            store.save_image(name, torch.rand(1, 3, 8, 8))
            store.save_image(f"{name}-seeds", torch.rand(1, 3, 8, 16))
        scores = {"clip": 0.5, "jpeg": 3.0}
        store.append({"kind": "space", "text": "a space"})
        store.append({"kind": "baseline", "scores": scores, "image": "images/baseline.png"})
        last = raw(0)
        for step, entry in enumerate(rounds, start=1):
            last, cost = entry.pop("best_score", last), {"images": 2 * step, "forwards": 40 * step}
            scores = {"clip": sign * last, "jpeg": 3.0}
            store.append({"kind": "step", "step": step, "score": last, "best_score": last,
                          "scores": scores, "cost": cost, "image": None,
                          "stopped": "budget: images=40" if step == len(rounds) else None,
                          **entry})  # fmt: skip
        if unseen:
            mean, low, high = change
            for which in ("before", "after"):
                store.save_image(f"unseen-{which}", torch.rand(1, 3, 8, 32))
            store.append(
                {"kind": "unseen", "noises": 4, "prompt": best, "negative_prompt": negative,
                 "baseline_scores": {"clip": [0.5] * 4},
                 "scores": {"clip": [0.5 + mean] * 3 + [0.5 - mean]},
                 "change": {"clip": {"mean": mean, "low": low, "high": high}},
                 "images": {w: f"images/unseen-{w}.png" for w in ("before", "after")}}
            )  # fmt: skip
    return store.path


@pytest.mark.parametrize("lowers", [False, True])
def test_the_journal_read_back_has_the_rewards_own_sign(tmp_path: Path, lowers: bool) -> None:
    found = found_words(read_run(words_run(tmp_path, lowers=lowers)))
    assert found is not None
    sign = -1 if lowers else 1
    assert found.own.score == pytest.approx(0.5)
    assert found.best.score == pytest.approx(0.5 + sign * 0.2)
    assert (found.best.prompt, found.best.negative_prompt) == (BEST, "blurry, dog")
    assert [len(scores) for scores in found.generations] == [1, 2, 2], "nothing relaxed or put back"
    scores = [prompt.score for prompt in found.prompts]
    assert scores == sorted(scores, reverse=not lowers)
    assert len(found.prompts) == 7, "each once"
    assert [worth.change for worth in found.worths] == pytest.approx([sign * 0.15, sign * 0.1])
    assert found.learned[0].start == (0.6, 0.2, 0.2)
    assert found.learned[0].end == (0.1, 0.8, 0.1)


def test_a_word_that_was_put_back_is_not_in_the_best(tmp_path: Path) -> None:
    run = words_run(tmp_path, dropped=True)
    found = found_words(read_run(run))
    assert found is not None
    assert found.best.prompt == "a scarlet cat"
    assert [(w.option, w.dropped) for w in found.worths] == [("scarlet", False), ("feline", True)]
    assert "better without" in write_report(run).read_text()


def test_a_run_without_words_has_none(tmp_path: Path) -> None:
    record = read_run(a_run(tmp_path))
    assert found_words(record) is None
    assert words_view(record) is None


def texts(pieces: list[Piece], *kinds: str) -> list[str]:
    return [word for piece in pieces if piece.kind in kinds for word in _TOKEN.findall(piece.text)]


@given(st.text("ab cé.,'🦉\n", max_size=30), st.text("ab cé.,'🦉\n", max_size=30))
def test_a_comparison_holds_both_texts_word_for_word(before: str, after: str) -> None:
    pieces = compared(before, after)
    assert texts(pieces, "same", "out") == _TOKEN.findall(before)
    assert texts(pieces, "same", "in") == _TOKEN.findall(after)
    entries = listed(before, after)
    for text, kind in ((before, "out"), (after, "in")):
        kept = [piece.text for piece in entries if piece.kind in ("same", kind)]
        assert kept == [part for part in (p.strip() for p in text.split(",")) if part]


def test_a_word_that_came_beside_the_one_it_extends_has_its_worth() -> None:
    plane = Worth("prompt", "jet", 5, 8, "jet plane", "s", -0.3)
    pieces = compared("on a jet background", "on a jet plane background", [plane])
    assert [(p.kind, p.text, p.changes) for p in pieces if p.kind != "same"] == [
        ("in", "plane", (-0.3,))
    ]
    (came,) = compared("", "plane", [plane])
    assert (came.kind, came.changes) == ("in", ())


def test_each_changed_word_stands_beside_its_own_worth() -> None:
    worths = [
        Worth("prompt", "red", 2, 5, "scarlet", "s", 0.1),
        Worth("prompt", "ice cream", 6, 15, "gelato", "s", -0.2),
    ]
    pieces = compared("a red ice cream cone", "a scarlet gelato cone", worths)
    came = {piece.text: piece.changes for piece in pieces if piece.kind == "in"}
    assert sorted(sum(came.values(), ())) == [-0.2, 0.1]
    assert [piece.text for piece in pieces if piece.kind == "same"] == ["a", "cone"]
    one = compared("a red cat, sleeping", "a scarlet cat, sleeping", worths[:1])
    assert [(piece.kind, piece.text) for piece in one] == [
        ("same", "a"), ("out", "red"), ("in", "scarlet"), ("same", "cat, sleeping"),
    ]  # fmt: skip
    negative = Worth("negative_prompt", "cat", 6, 9, "dog", "s", 0.3)
    assert listed("blurry", "blurry, dog", [negative])[1].changes == (0.3,)


def test_the_page_says_what_was_found_and_loads_nothing(tmp_path: Path) -> None:
    path = write_report(words_run(tmp_path))
    page = Checked(path.read_text())
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert len(set(page.ids)) == len(page.ids)
    assert page.tags.count("img") == 2 + 2 * 2 + 2 * 4, "the pair, the noises, the unseen ones"
    assert page.tags.count("del") == 2
    assert page.tags.count("ins") == 4
    text = " ".join(" ".join(page.words).split())
    for part in (
        "The words", BEST, "blurry, dog", "+0.150", "wordnet-synonym", "similarity", "0.950",
        "On 4 noises that the search did not see", "leaves zero out", "+0.0500 to +0.150",
        "higher on 3 of 4", "What the gradient learned", "80%", "The prompts, round by round",
        "a red kitty", "yours", "2 of the new words were not put back", "Score of mixed words",
    ):  # fmt: skip
        assert part in text, part
    copied = re.findall(r"<pre>(.*?)</pre>", path.read_text(), re.DOTALL)
    assert copied[:2] == [BEST, "blurry, dog"], "whole, to be copied"


@pytest.mark.parametrize("lowers", [False, True])
def test_the_page_shows_what_an_evolution_kept(tmp_path: Path, lowers: bool) -> None:
    """Of the five prompts of the journal the best two live on: one of each generation."""
    says = {
        PROMPT: ["red", "cat"], "a scarlet cat": ["scarlet", "cat"], BEST: ["scarlet", "feline"],
        "a red moggy": ["red", "moggy"], "a red kitty": ["red", "kitty"],
    }  # fmt: skip
    run = words_run(tmp_path, lowers=lowers, settings={"solver": "epo", "keep": 2}, says=says)
    found = survivors(read_run(run))
    assert found is not None
    assert (found.count, found.first) == (2, 2)
    red, cat = found.words
    assert (red.options, red.start, red.end) == (("red", "scarlet"), (0.5, 0.5), (0.0, 1.0))
    assert (cat.options, cat.end) == (("cat", "feline", "moggy"), (0.5, 0.5, 0.0))
    text = " ".join(" ".join(Checked(write_report(run).read_text()).words).split())
    assert "What the evolution kept of each word" in text
    assert "in the 2 best prompts, those that lived on" in text
    assert "of the 2 prompts of the first generation" in text


def test_a_run_that_bred_nothing_shows_no_survivors(tmp_path: Path) -> None:
    runs = [words_run(tmp_path), words_run(tmp_path, settings={"solver": "epo", "keep": 2})]
    assert survivors(read_run(runs[0])) is None, "its solver is none that breeds"
    assert survivors(read_run(runs[1])) is None, "a journal from before slots were noted"
    assert "What the evolution kept" not in write_report(runs[1]).read_text()


def test_an_attack_says_lower_where_lower_is_better(tmp_path: Path) -> None:
    run = words_run(tmp_path, lowers=True, change=(-0.1, -0.15, -0.05))
    html = write_report(run).read_text()
    text = " ".join(" ".join(Checked(html).words).split())
    for part in ("Attacked by attack", "The words that break it", "lowered", "lower on 3 of 4"):
        assert part in text, part
    assert re.search(r'<td class="number good">−0\.200</td>', html), "the fall is the aim"
    assert "tiller attack" in text
    assert "--method" not in text
    panels, _ = _panels(read_run(run))
    assert panels[0].title == "Score (lowered)"
    assert panels[0].baseline == panels[0].curves[1].y[0] == 0.5
    assert panels[0].curves[1].y[-1] == pytest.approx(0.3)


def test_any_word_is_only_text(tmp_path: Path) -> None:
    run = words_run(tmp_path, prompt=HOSTILE, best=f"{HOSTILE} 👩‍👩‍👧", negative=HOSTILE)
    page = Checked(write_report(run).read_text())
    assert "script" not in page.tags
    assert "b" not in page.tags, "nor is an option of a learned distribution"
    shown = "".join(page.words)
    assert '<script>alert("x")</script>' in shown
    assert "👩‍👩‍👧" in shown
    assert "\x07" not in shown


def test_only_the_likeliest_options_are_drawn(tmp_path: Path) -> None:
    view = words_view(read_run(words_run(tmp_path)))
    assert view is not None
    assert view.distributions is not None
    for svg in view.distributions.values():
        assert svg.count("option ") == BARS - 1
        assert "(nothing)" in svg, "and the one that the search began with"


@pytest.mark.parametrize(
    ("lowers", "change", "wanted"),
    [
        (False, (0.1, 0.05, 0.15), "leaves zero out"),
        (False, (0.1, -0.05, 0.15), "contains zero"),
        (False, (-0.1, -0.15, -0.05), "the other way"),
        (True, (-0.1, -0.15, -0.05), "leaves zero out"),
        (True, (0.1, 0.05, 0.15), "the other way"),
    ],
)
def test_the_verdict_on_unseen_noises(
    tmp_path: Path, lowers: bool, change: tuple[float, float, float], wanted: str
) -> None:
    record = read_run(words_run(tmp_path, lowers=lowers, change=change))
    assert wanted in unseen_verdict(record)
    carried = any("did not see" in sentence for sentence in advice(record))
    assert carried == (wanted != "leaves zero out")


def test_words_that_are_not_better_are_said_to_be_the_users(tmp_path: Path) -> None:
    run = words_run(tmp_path, unseen=False)
    lines = (run / "journal.jsonl").read_text().splitlines()
    (run / "journal.jsonl").write_text("\n".join(lines[:3]) + "\n")  # up to the user's own words
    text = " ".join(Checked(write_report(run).read_text()).words)
    assert "Your own words are the best" in text
    assert "No words are better than your own" in " ".join(advice(read_run(run)))


def test_a_comparison_shows_the_best_words_of_each(tmp_path: Path) -> None:
    runs = [words_run(tmp_path), words_run(tmp_path, lowers=True), a_run(tmp_path)]
    text = " ".join(Checked(write_report(runs).read_text()).words)
    assert text.count(BEST) == 2
    assert "not: blurry, dog" in text
