"""The report: well-formed, complete in itself, and safe with any text."""

from __future__ import annotations

import re
import shlex
from html import unescape
from html.parser import HTMLParser

import pytest
import torch

from tiller.core.errors import InvalidInput
from tiller.runs.advice import advice
from tiller.runs.record import read_run
from tiller.runs.report import _panels, write_report
from tiller.runs.store import RunStore, versions

HOSTILE = '<script>alert("x")</script> & \U0001f989 it\'s \x07 \ud83d {{ 7*7 }} $a_b$'
VOID = {"meta", "link", "img", "br", "hr", "input", "source", "col", "wbr"}


class Checked(HTMLParser):
    """Fails on tags that do not nest; collects what a browser would load, and the text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.loads, self.ids, self.tags, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} runs a script"
            if name in {"src", "href", "data", "action", "srcset", "xlink:href"}:
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)
            if name == "style" and "url(" in value:
                self.loads += re.findall(r"url\(([^)]*)\)", value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def a_run(out, prompt="a black rabbit", rewards=("clip",), steps=8, size=8, falls=False, **spec):
    """A finished run whose score rises from .2 by .05 a round."""
    full = {
        "method": {"name": "dno", "settings": {"eta": 1.0, "clip_norm": None, "mode": "a b"}},
        "citation": "Tang et al.",
        "model": "emoji",
        "prompt": prompt,
        "negative_prompt": "",
        "reward": list(rewards),
        "held_out": ["clip_heldout"],
        "budget": f"steps={steps}",
        "seed": 3,
        "sampler": {"num_inference_steps": 20, "eta": 1.0},
        "versions": versions(),
        **spec,
    }
    with RunStore.create(out, full, "dno") as store:
        store.save_image("baseline", torch.rand(1, 3, size, size))
        scores = {"clip": 0.2, "clip_heldout": 0.3}
        store.append({"kind": "baseline", "scores": scores, "image": "images/baseline.png"})
        for step in range(1, steps + 1):
            better = step % 3 != 2
            best = 0.2 + 0.05 * (step if better else step - 1)
            scores = {"clip": best, "clip_heldout": 0.3 + (-0.01 if falls else 0.01) * step}
            if better:
                for name in ("best", f"best-{step:04d}"):
                    store.save_image(name, torch.full((1, 3, size, size), step / (steps + 1)))
            entry = {
                "kind": "step", "step": step, "score": best if better else best - 0.01,
                "reward": best, "penalty": 0.0, "best_score": best, "best_reward": best,
                "scores": scores, "image": f"images/best-{step:04d}.png" if better else None,
                "cost": {"steps": step, "images": step, "forwards": 40 * step,
                         "backwards": 40 * step, "seconds": 1.5 * step,
                         "peak_memory_bytes": 2_000_000_000},
                "stopped": f"budget: steps={steps}" if step == steps else None,
            }  # fmt: skip
            store.append(entry)
    return store.path


def test_one_file_that_loads_nothing(tmp_path):
    path = write_report(a_run(tmp_path))
    text = path.read_text()
    page = Checked(text)
    assert path.name == "report.html"
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert "http" not in text
    assert page.tags.count("img") == 2 + 1 + 5 + 0  # before and after; the film's baseline, frames
    assert len(set(page.ids)) == len(page.ids)
    assert "script" not in page.tags
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_it_says_what_happened(tmp_path):
    text = " ".join(Checked(write_report(a_run(tmp_path)).read_text()).words)
    for part in (
        "a black rabbit", "dno", "clip_heldout", "held out", "optimized", "0.2000", "0.5500",
        "+0.350", "budget was used (steps=8)", "640", "12 s", "2.0 GB", "Tang et al.",
        "sampler: eta", f"torch {versions()['torch']}", "the best, from round 7",
    ):  # fmt: skip
        assert part in text, part


def test_the_same_run_gives_the_same_page(tmp_path):
    run = a_run(tmp_path)
    assert write_report(run).read_bytes() == write_report(run, tmp_path / "b.html").read_bytes()


def test_any_text_is_only_text(tmp_path):
    run = a_run(
        tmp_path,
        prompt=HOSTILE,
        negative_prompt=HOSTILE,
        rewards=[HOSTILE],
        held_out=[HOSTILE],
        citation=HOSTILE,
        model=HOSTILE,
    )
    with RunStore.open(run) as store:
        entry = {"step": 9, "best_score": 1.0, "score": 1.0, "scores": {HOSTILE: 1.0}}
        store.append({"kind": "step", **entry})
        store.append({"kind": "error", "text": HOSTILE})
    page = Checked(write_report(run).read_text())
    assert "script" not in page.tags
    shown = "".join(page.words)
    assert '<script>alert("x")</script>' in shown
    assert "{{ 7*7 }}" in shown
    assert "\x07" not in shown
    page = Checked(write_report([run, run], tmp_path / "both.html").read_text())
    assert "script" not in page.tags


def test_the_command_repeats_the_run(tmp_path):
    run = a_run(tmp_path, prompt='it\'s a "cat"; $(rm -rf /)', rewards=["clip:0.5", "brightness"])
    assert shlex.split(read_run(run).command()) == [
        "tiller", "steer", "it's a \"cat\"; $(rm -rf /)", "--method", "dno", "--model", "emoji",
        "--reward", "clip:0.5", "--reward", "brightness", "--held-out", "clip_heldout",
        "--seed", "3", "--budget", "steps=8", "--set", "eta=1.0",
        "--set", "clip_norm=none", "--set", "mode=a b",
    ]  # fmt: skip
    (shown,) = re.findall(r"<pre>(.*?)</pre>", write_report(run).read_text(), re.DOTALL)
    pasted = unescape(shown).replace("\\\n", "")
    assert shlex.split(pasted) == shlex.split(read_run(run).command())
    dashed = read_run(a_run(tmp_path, prompt="--help"))
    assert shlex.split(dashed.command())[-2:] == ["--", "--help"]


def test_the_command_has_the_concepts_and_the_page_says_what_no_command_can(tmp_path):
    options = {"dtype": "float16", "variant": None, "concepts": ["/x/duck.safetensors=<duck>"]}
    run = a_run(tmp_path / "a", model_options=options)
    words = read_run(run).arguments()
    assert words[words.index("--concept") + 1] == "/x/duck.safetensors=<duck>"
    text = " ".join(Checked(write_report(run).read_text()).words)
    assert "dtype=float16, given to load_model." in text
    objects = a_run(tmp_path / "b", reward=None, model=None)
    text = " ".join(Checked(write_report(objects).read_text()).words)
    assert "the model, a Python object; the reward, a Python object." in text
    assert "toward clip ." in " ".join(text.split()), "by the name that its scores have"
    assert "In Python alone" not in write_report(a_run(tmp_path / "c")).read_text()


def test_small_pictures_are_squares_and_large_ones_are_not(tmp_path):
    assert 'class="pixelated"' in write_report(a_run(tmp_path)).read_text()
    large = write_report(a_run(tmp_path, size=300, steps=3)).read_text()
    assert 'class="pixelated"' not in large
    assert "data:image/jpeg" in large


def test_the_unsteered_score_is_the_weighted_sum_of_its_rewards(tmp_path):
    for rewards, score in (
        (["clip"], 0.2),
        (["clip:0.5"], 0.1),
        (["clip:2", "clip_heldout"], 0.7),
        (["unknown"], None),
    ):
        record = read_run(a_run(tmp_path, rewards=rewards, held_out=[], steps=2))
        panels, _ = _panels(record)
        assert panels[0].baseline == (score if score is None else pytest.approx(score))


def test_a_long_run_keeps_its_film_short(tmp_path):
    page = Checked(write_report(a_run(tmp_path, steps=60)).read_text())
    assert page.tags.count("img") == 2 + 12
    shown = "".join(page.words)
    assert all(f"round {step}" in shown for step in (1, 60)), "the first and the last are kept"


def test_several_runs_are_compared(tmp_path):
    runs = [a_run(tmp_path), a_run(tmp_path, seed=4, steps=5), a_run(tmp_path, prompt="an owl")]
    path = write_report(runs)
    assert path == tmp_path / "comparison.html"
    page = Checked(path.read_text())
    assert page.tags.count("img") == 6
    assert len(set(page.ids)) == len(page.ids)
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    text = " ".join(page.words)
    assert "3 runs compared" in text
    assert "an owl" in text
    with pytest.raises(InvalidInput, match="at least one run"):
        write_report([])


def test_a_run_that_has_hardly_begun(tmp_path):
    with RunStore.create(tmp_path, {"prompt": "x"}, "raw") as store:
        pass
    text = " ".join(Checked(write_report(store.path).read_text()).words)
    assert "not drawn yet" in text
    assert "It has not finished" in text


def test_a_run_with_one_round(tmp_path):
    Checked(write_report(a_run(tmp_path, steps=1)).read_text())


def test_advice(tmp_path):
    assert "still improving" in advice(read_run(a_run(tmp_path, steps=10)))[0]
    fell = advice(read_run(a_run(tmp_path, falls=True)))
    assert "clip_heldout, which was not optimized, fell" in fell[0]
    run = a_run(tmp_path)
    with RunStore.open(run) as store:
        store.append({"kind": "error", "text": "reward clip returned NaN"})
    assert "ended with an error" in advice(read_run(run))[0]
    page = write_report(run).read_text()
    assert "reward clip returned NaN" in page
    with RunStore.open(run) as store:
        store.append({"kind": "resumed", "step": 8})
    assert read_run(run).error is None
