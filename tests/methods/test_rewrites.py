"""Methods that write whole prompts: what they draw, what they ask, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput, LLMError
from tiller.core.rng import Stream
from tiller.core.search import Step, search_phases
from tiller.listing import bundled_folder
from tiller.methods._rewrites import _cut
from tiller.methods.base import Method, Task
from tiller.methods.llm_rewrite import LlmRewrite
from tiller.methods.manual import MODIFIERS, Manual
from tiller.methods.promptist import Promptist
from tiller.models.base import FrozenModel
from tiller.models.inputs import Inputs
from tiller.models.loader import load_model
from tiller.rewards import make_reward
from tiller.testing.fake_pipeline import fake_pipeline
from tiller.testing.fake_rewriter import save_fake_rewriter, save_fake_tokenizer
from tiller.testing.fake_server import Answer, FakeServer, Script

PROMPT = "a red cat"


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return load_model(fake_pipeline())


@pytest.fixture(scope="module")
def task(model: FrozenModel) -> Task:
    return Task(model, PROMPT, "dull", make_reward("brightness"), seed=5)


def run(method: Method, task: Task, budget: str = "steps=9") -> list[Step]:
    return list(search_phases(method.build(task), Budget.parse(budget), seed=task.seed))


def texts(step: Step) -> list[str]:
    x: Inputs = step.problem.space.decode(step.z)
    assert x.prompts is not None
    return list(x.prompts[:: len(x.prompts) // len(step.z)])


def plain(task: Task, method: Method, prompt: str) -> float:
    """The mean reward of a prompt drawn from the run's first noises, by the parts alone."""
    noise = method.noise(task).sample(method.repeats, Stream(task.seed))
    words = task.model.encode([prompt], [task.negative_prompt])
    rewards = []
    for one in noise.split(1):
        latents = method.trajectory(task.model).run(one, words)
        rewards.append(float(task.reward(task.model.decode(latents), [task.prompt])))
    return sum(rewards) / len(rewards)


class TestManual:
    def test_the_prompt_then_the_prompt_with_its_modifiers(self, task: Task) -> None:
        method = Manual(num_inference_steps=2)
        first, second = run(method, task)
        assert second.cost.images == 2 * method.noises == 6
        assert texts(first) == [PROMPT]
        assert texts(second) == [f"{PROMPT}, {MODIFIERS}"]
        assert second.stopped == "1 round of proposals tried"
        for step in (first, second):
            (text,) = texts(step)
            assert float(step.evaluation.score) == pytest.approx(plain(task, method, text))

    def test_the_first_round_is_the_baseline_of_the_run(self, task: Task) -> None:
        method = Manual(num_inference_steps=2)
        baseline = method.baseline(task, task.seed)
        x: Inputs = run(method, task)[0].problem.space.decode(run(method, task)[0].z)
        assert torch.equal(x.noise, baseline.noise)
        assert torch.equal(x.conditioning.prompt_embeds, baseline.conditioning.prompt_embeds)

    def test_every_beginning_of_the_list(self, task: Task) -> None:
        method = Manual(num_inference_steps=1, modifiers="sharp, , bright ", each=True)
        _, second = run(method, task)
        assert texts(second) == ["a red cat, sharp", "a red cat, sharp, bright"]

    def test_a_list_longer_than_a_text_is_by_default_is_not_cut(self, task: Task) -> None:
        method = Manual(num_inference_steps=1, modifiers="very " * 200 + "red")
        _, second = run(method, task)
        assert texts(second)[0].endswith("very red")

    def test_without_modifiers_it_is_refused(self, task: Task) -> None:
        with pytest.raises(InvalidInput, match="expected modifiers separated by commas"):
            Manual(modifiers=" , ").build(task)


def test_the_reward_compares_with_the_users_own_prompt(model: FrozenModel) -> None:
    seen: list[str] = []

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    task = Task(model, PROMPT, "", make_reward([reward]))
    seen.clear()
    run(Manual(num_inference_steps=1, noises=2), task)
    assert seen == [PROMPT] * 4


@pytest.mark.parametrize("fields", [{"noises": 0}, {"unseen": -1}])
def test_fields_out_of_range(fields: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="expected noises of at least 1"):
        Manual(**fields)


@pytest.mark.parametrize(
    ("text", "cut"),
    [("ab cd ef", "ab cd"), ("ab cd", "ab cd"), ("abcdefgh", "abcdef"), ("a\0b", "a b")],
)
def test_long_texts_are_cut_at_a_space(text: str, cut: str) -> None:
    assert _cut(text, 6) == cut


Serve = Callable[[Script], FakeServer]


class TestLlmRewrite:
    @pytest.fixture
    def serve(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Serve]:
        servers: list[FakeServer] = []
        monkeypatch.setenv("TILLER_CACHE", str(tmp_path))

        def start(script: Script) -> FakeServer:
            servers.append(FakeServer(script).__enter__())
            for name, value in servers[-1].environment.items():
                monkeypatch.setenv(name, value)
            return servers[-1]

        yield start
        for server in servers:
            server.__exit__()

    def test_rounds_are_told_the_scores_best_last(self, task: Task, serve: Serve) -> None:
        server = serve([said("one", "two", "three"), said("four"), said("five", "six")])
        method = LlmRewrite(num_inference_steps=1, n=3, iterations=3, history=2, temperature=0.5)
        steps = run(method, task)
        assert [texts(step) for step in steps] == [
            [PROMPT],
            ["one", "two", "three"],
            ["four"],
            ["five", "six"],
        ]
        assert steps[-1].stopped == "all 3 rounds of proposals tried"
        third = server.requests[2]["messages"][0]["content"]
        tried = [(float(score), text) for s in steps[:3] for score, text in scored(s)]
        best = [f"{score:.4g}  {text}" for score, text in sorted(tried)[-2:]]
        assert third.split("is better):\n")[1].split("\n")[:2] == best
        assert {body["temperature"] for body in server.requests} == {0.5}
        assert len({body["seed"] for body in server.requests}) == 3
        assert steps[-1].cost.tokens == 3 * 15
        assert steps[-1].best.score == max(score for s in steps for score, _ in scored(s))

    def test_one_iteration_is_a_plain_rewrite(self, task: Task, serve: Serve) -> None:
        server = serve([said("one", "two")])
        steps = run(LlmRewrite(num_inference_steps=1, n=1, iterations=1), task)
        assert [texts(step) for step in steps] == [[PROMPT], ["one"]]
        assert len(server.requests) == 1

    def test_the_same_run_asks_and_pays_once(self, task: Task, serve: Serve) -> None:
        server = serve([said("one"), said("two"), said("three")])
        method = LlmRewrite(num_inference_steps=1)
        first, again = run(method, task), run(method, task)
        assert len(server.requests) == 3
        assert torch.equal(first[-1].best.z, again[-1].best.z)
        assert again[-1].cost.tokens == 0

    def test_an_image_budget_is_met_exactly(self, task: Task, serve: Serve) -> None:
        serve([said(*(f"{k} {i}" for i in range(5))) for k in "abcd"])
        steps = run(LlmRewrite(num_inference_steps=1, iterations=9), task, "images=39")
        assert [len(step.z) for step in steps] == [1, 5, 5, 2]

    def test_a_server_that_fails_ends_the_search_with_its_steps(
        self, task: Task, serve: Serve
    ) -> None:
        serve([said("one"), Answer("off", status=500, headers={"X-Should-Retry": "false"})])
        found = search_phases(LlmRewrite(num_inference_steps=1).build(task), Budget(steps=9))
        assert [texts(next(found)) for _ in range(2)] == [[PROMPT], ["one"]]
        with pytest.raises(LLMError, match=r"status 500 \(off\)"):
            next(found)

    def test_without_a_server_it_is_refused_as_it_is_built(
        self, task: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(InvalidInput, match="no LLM server is configured: set OPENAI_BASE_URL"):
            LlmRewrite().build(task)

    @pytest.mark.parametrize("field", ["n", "iterations", "history"])
    def test_fields_out_of_range(self, field: str) -> None:
        with pytest.raises(InvalidInput, match=f"{field}=0"):
            LlmRewrite(**{field: 0})
        with pytest.raises(InvalidInput, match="temperature"):
            LlmRewrite(temperature=-0.1)


def said(*prompts: str) -> str:
    return json.dumps({"prompts": prompts})


def scored(step: Step) -> list[tuple[float, str]]:
    return list(zip(step.evaluation.score.tolist(), texts(step), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fake_rewriter(tmp_path_factory.mktemp("rewriter"))


class TestPromptist:
    def settings(self, folder: Path, **fields: Any) -> Promptist:
        return Promptist(num_inference_steps=1, rewriter=str(folder), **fields)

    @pytest.mark.parametrize("candidates", [1, 3])
    def test_the_beams_are_those_of_transformers(
        self, folder: Path, task: Task, candidates: int
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        method = self.settings(folder, max_new_tokens=12, candidates=candidates)
        first, second = run(method, task)
        assert texts(first) == [PROMPT]
        model = AutoModelForCausalLM.from_pretrained(folder)
        words = AutoTokenizer.from_pretrained(folder)
        read = words(f"{PROMPT} Rephrase:", return_tensors="pt")
        found = model.generate(
            **read,
            do_sample=False,
            max_new_tokens=12,
            num_beams=8,
            num_return_sequences=candidates,
            length_penalty=-1.0,
            pad_token_id=words.eos_token_id,
        )
        whole = words.batch_decode(found, skip_special_tokens=True)
        expected = [" ".join(text.split("Rephrase:")[1].split()) for text in whole]
        assert texts(second) == list(dict.fromkeys(expected))
        assert all(expected)

    def test_a_tokenizer_from_elsewhere(self, folder: Path, task: Task, tmp_path: Path) -> None:
        bare = save_fake_rewriter(tmp_path / "bare", tokenizer=False)
        words = save_fake_tokenizer(tmp_path / "words")
        method = self.settings(bare, tokenizer=str(words), max_new_tokens=12)
        assert torch.equal(
            run(method, task)[1].z, run(self.settings(folder, max_new_tokens=12), task)[1].z
        )
        with pytest.raises(InvalidInput, match=r"has no tokenizer.*--set tokenizer=FOLDER"):
            self.settings(bare, tokenizer=str(tmp_path / "nothing")).build(task)
        with pytest.raises(InvalidInput, match="expected a tokenizer of at most 257 tokens"):
            self.settings(bare, tokenizer=str(bundled_folder() / "tokenizer")).build(task)

    def test_pickled_weights_are_never_read(self, folder: Path, task: Task, tmp_path: Path) -> None:
        pickled = tmp_path / "pickled"
        shutil.copytree(folder, pickled)
        (pickled / "model.safetensors").unlink()
        torch.save({}, pickled / "pytorch_model.bin")
        with pytest.raises(InvalidInput, match=r"expected .* config.json and model.safetensors"):
            self.settings(pickled).build(task)

    def test_torn_weights_are_refused(self, folder: Path, task: Task, tmp_path: Path) -> None:
        torn = shutil.copytree(folder, tmp_path / "torn") / "model.safetensors"
        torn.write_bytes(torn.read_bytes()[:100])
        with pytest.raises(InvalidInput, match=r"model\.safetensors"):
            self.settings(torn.parent).build(task)

    def test_a_missing_model_says_what_to_do(self, task: Task) -> None:
        with pytest.raises(InvalidInput) as caught:
            Promptist(num_inference_steps=1).build(task)
        text = str(caught.value)
        assert "\n" not in text
        assert "HF_HUB_OFFLINE=1" in text
        assert "'microsoft/Promptist'" in text
        assert "--set rewriter=FOLDER" in text

    def test_a_prompt_beyond_what_the_rewriter_reads(
        self, folder: Path, model: FrozenModel
    ) -> None:
        task = Task(model, "cat " * 30, "", make_reward("brightness"))
        with pytest.raises(InvalidInput, match=r"reads 53 tokens .* the prompt has 129"):
            self.settings(folder).build(task)

    def test_fields_out_of_range(self, folder: Path) -> None:
        for wrong in ({"candidates": 9}, {"candidates": 0}, {"num_beams": 0}):
            with pytest.raises(InvalidInput, match="1 <= candidates <= num_beams"):
                self.settings(folder, **wrong)
        with pytest.raises(InvalidInput, match="max_new_tokens must be at least 1"):
            self.settings(folder, max_new_tokens=0)
