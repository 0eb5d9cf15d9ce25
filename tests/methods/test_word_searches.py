"""`dpo_diff`: its gradient is the derivative, its phases hold the budget, its best is the best."""

from __future__ import annotations

import itertools
import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput, TillerNotice
from tiller.core.evaluation import Autograd, evaluate
from tiller.core.rng import Draw, Stream
from tiller.core.search import Phase, Step, search_phases
from tiller.methods._soft_pictures import Shortcuts
from tiller.methods._words import Lowered
from tiller.methods.attack import Attack
from tiller.methods.base import Task
from tiller.methods.dpo_diff import DpoDiff
from tiller.models.loader import load_model
from tiller.models.trajectory import Gradient
from tiller.rewards import make_reward
from tiller.runs.survivors import survivors_of
from tiller.spaces.relaxed_words import RelaxedWords
from tiller.spaces.words import Words
from tiller.testing.conformance import check_resume
from tiller.testing.fake_pipeline import fake_lcm_pipeline, fake_pipeline
from tiller.testing.method_conformance import check_method

REWARD = make_reward("brightness")
SMALL: dict[str, Any] = {"num_inference_steps": 3, "n": 2, "library": 0, "noises": 2}


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(load_model(fake_pipeline()), "a red cat", "", REWARD, seed=5)


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Short words: the fake model reads 14 letters."""
    pinned = {"red": ["b", "c"], "cat": ["d", "ee"]}
    file = tmp_path_factory.mktemp("words") / "words.json"
    file.write_text(json.dumps({"antonyms": {"pin": pinned}, "synonyms": {"pin": pinned}}))
    return str(file)


def small(choices: str, **fields: Any) -> DpoDiff:
    """The whole algorithm, with few words and steps."""
    return DpoDiff(**{**SMALL, "solver": "gpo+es", "choices": choices, **fields})


def run(method: Any, task: Task, budget: Budget) -> list[Step]:
    return list(search_phases(method.build(task), budget, seed=task.seed))


def brute_force(method: DpoDiff, task: Task) -> dict[tuple[str, str], float]:
    """Every text of the space with its score."""
    words = method.words_of(task)
    z = torch.tensor(list(itertools.product(*map(range, words.choices))))
    found = evaluate(words, method.pictures(task), z, Draw(0, 0)).score.tolist()
    return dict(zip(words.texts(z), found, strict=True))


# The gradient


def test_the_shortcuts_are_the_papers() -> None:
    paper = Shortcuts(first_round=1)
    found = [paper.gradient(50, Draw(0, i)).t for i in range(1, 21)]
    assert found == [15 + i // 2 for i in range(20)]
    assert paper.gradient(50, Draw(0, 99)) == Gradient.shortcut(24, 1)
    assert paper.gradient(20, Draw(0, 1)) == Gradient.shortcut(6, 1)
    assert Shortcuts(k=3).gradient(4, Draw(0, 0)) == Gradient.shortcut(1, 3)
    assert Shortcuts(k=3).gradient(1, Draw(0, 0)) == Gradient.shortcut(0, 1)
    with pytest.raises(InvalidInput, match="t_first"):
        Shortcuts(t_first=1.0)
    with pytest.raises(InvalidInput, match="at least 1"):
        Shortcuts(k=0)


def ascent(method: Any, task: Task) -> Any:
    phase = next(phase for phase in method.build(task) if phase.relaxed)
    return phase.build(None)


def test_its_gradient_is_the_derivative_of_the_estimates_reward(choices: str) -> None:
    """With a shortcut that starts at the first step there is nothing before it that is constant."""
    task = Task(load_model(fake_pipeline(dtype=torch.float64)), "a red cat", "", REWARD)
    problem = ascent(small(choices, space="both", t_first=0.0, t_end=0.0, k=2), task)
    z = problem.space.sample(1, Stream(0)).double()
    draw = Draw(0, 3)
    found = evaluate(problem.space, problem.objective, z, draw, Autograd())
    assert found.grad is not None
    assert found.best_y.shape == (2, 3, 16, 16)
    step = 1e-5
    for j, size in enumerate(problem.space.space.choices):
        for i in range(size):
            move = torch.zeros_like(z)
            move[0, j, i] = step
            ends = [
                float(evaluate(problem.space, problem.objective, z + sign * move, draw).score[0])
                for sign in (1, -1)
            ]
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert float(found.grad[0, j, i]) == pytest.approx(numeric, rel=1e-4, abs=1e-9)
    assert bool((found.grad != 0).any())


def test_a_gradient_step_stops_at_the_shortcut_and_bills_its_estimates(
    choices: str, task: Task
) -> None:
    method = small(choices, iterations=3, num_inference_steps=10, gradient_share=1.0)
    steps = run(method, task, Budget(steps=4))
    assert [step.phase for step in steps] == ["prompt"] + 3 * ["gradient"]
    used = [b.cost - a.cost for a, b in itertools.pairwise(steps)]
    assert [cost.images for cost in used] == [2, 2, 2]
    # steps 0 .. t of ten, two branches, two noises; t = floor(10 (.3 + .2 i / 3))
    assert [cost.forwards for cost in used] == [4 * 4, 4 * 4, 5 * 4]
    assert [cost.backwards for cost in used] == [4, 4, 4]
    assert all(cost.reward_calls == 2 for cost in used)


def test_the_ascent_raises_the_likelihood_of_what_the_reward_likes(
    choices: str, task: Task
) -> None:
    """On one round's noise, small steps along the gradient raise the estimates' reward."""
    problem = ascent(small(choices), task)
    z, draw = problem.space.sample(1, Stream(0)), Draw(0, 2)
    scores = []
    for _ in range(6):
        found = evaluate(problem.space, problem.objective, z, draw, Autograd())
        scores.append(float(found.score[0]))
        assert found.grad is not None
        z = problem.space.project(z + 0.02 * found.grad / found.grad.norm())
    assert scores == sorted(scores)
    assert scores[-1] > scores[0]


# The phases


def test_the_phases_in_order_each_from_what_was_found(choices: str, task: Task) -> None:
    steps = run(small(choices, iterations=3), task, Budget(images=40))
    phases = [name for name, _ in itertools.groupby(step.phase for step in steps)]
    assert phases in (
        ["prompt", "gradient", "search", "words put back"],
        ["prompt", "gradient", "search"],  # where the user's own words are the best
    )
    assert [step.relaxed for step in steps] == [step.phase == "gradient" for step in steps]
    gradient = [step for step in steps if step.relaxed]
    assert len(gradient) == 3
    first = next(step for step in steps if step.phase == "search")
    learned = gradient[-1].state.solver.z[0]
    assert (
        first.z[0].tolist()
        == [  # the likeliest first, unless it is the user's own
            int(row[:size].argmax()) for row, size in zip(learned, (3, 3), strict=True)
        ]
        or not bool(learned.argmax(dim=1).any())
    )
    tried = [row for step in steps if step.phase == "search" for row in step.z.tolist()]
    assert [0, 0] not in tried
    assert len(tried) == len({tuple(row) for row in tried})


@pytest.mark.parametrize(
    ("solver", "space"),
    [
        ("gpo+es", "negative"),
        ("gpo", "negative"),
        ("epo", "negative"),
        ("random", "negative"),
        ("gpo+es", "positive"),
    ],
)
def test_with_enough_budget_the_best_of_all_texts_is_found(
    solver: str, space: str, choices: str, task: Task
) -> None:
    method = small(choices, solver=solver, space=space, iterations=2, leave_one_out=0.0)
    *_, last = run(method, task, Budget(images=400))
    scores = brute_force(method, task)
    assert last.best.score == pytest.approx(max(scores.values()), abs=1e-5)
    assert "candidates tried" in str(last.stopped)
    estimates = 2 * 2 if solver.startswith("gpo") else 0
    assert last.cost.images == 2 * len(scores) + estimates  # each text once, from two noises


def test_an_image_budget_bounds_the_ascent(choices: str, task: Task) -> None:
    steps = run(small(choices, iterations=20, gradient_share=0.5), task, Budget(images=24))
    ascent = [step for step in steps if step.phase == "gradient"]
    assert ascent[-1].cost.images == 12  # half of the budget, the user's own words counted in
    assert steps[-1].cost.images <= 24


@pytest.mark.parametrize("images", [1, 3, 4, 7, 12])
def test_an_image_budget_is_exact_and_has_a_best(images: int, choices: str, task: Task) -> None:
    method = small(choices, space="both", iterations=1, leave_one_out=0.3)
    steps = run(method, task, Budget(images=images))
    used = steps[-1].cost.images
    assert used <= max(2, images)
    ended = "budget" if steps[-1].phase != "words put back" else "all"
    assert str(steps[-1].stopped).startswith(ended) or used == max(2, images - images % 2)
    assert steps[-1].best.score >= steps[0].best.score


@pytest.mark.parametrize("budget", [Budget(steps=1), Budget(steps=2), Budget(forwards=1)])
def test_tiny_budgets_end_with_the_users_words_at_least(
    budget: Budget, choices: str, task: Task
) -> None:
    steps = run(small(choices), task, budget)
    assert steps[-1].best.z.tolist() == [[0, 0]]
    assert str(steps[-1].stopped).startswith("budget")


def test_a_word_that_is_put_back_says_what_it_is_worth(choices: str, task: Task) -> None:
    method = small(choices, iterations=1, leave_one_out=0.4, population=4)
    steps = run(method, task, Budget(images=14))
    last = steps[-1]
    assert last.phase == "words put back"
    before = steps[-2].best
    scores = brute_force(method, task)
    gains = last.problem.space.notes(last.z, last.evaluation.score)["gains"]
    assert len(gains) == int((before.z != 0).sum())
    for gain, without in zip(gains, last.z, strict=True):
        words: Words = method.words_of(task)
        (text,) = words.texts(without[None])
        assert gain["gain"] == pytest.approx(before.score - scores[text], abs=1e-5)
        assert gain["option"]


@pytest.mark.parametrize("solver", ["epo", "gpo+es"])
def test_the_journal_tells_whom_the_evolution_kept(solver: str, choices: str, task: Task) -> None:
    fields = {"population": 4, "keep": 3, "mutants": 2, "crossovers": 1, "iterations": 1}
    method = small(choices, solver=solver, space="both", **fields)
    steps = run(method, task, Budget(images=40))
    journal = [{"phase": s.phase, **s.problem.space.notes(s.z, s.evaluation.score)} for s in steps]
    found = survivors_of(journal, method.keep)
    assert found is not None
    last = [step for step in steps if step.phase == "search"][-1]
    parents = last.state.solver.parents.tolist()
    assert (found.count, found.first) == (len(parents), 4)
    for j, (word, position) in enumerate(
        zip(found.words, method.words_of(task).positions, strict=True)
    ):
        assert (word.part, word.word) == (position.part, position.slot.word)
        said = [position.text(parent[j]) for parent in parents]
        for option, share in zip(word.options, word.end, strict=True):
            assert share == said.count(option) / len(said)
        assert sum(word.start) == pytest.approx(1) == sum(word.end)


@pytest.mark.parametrize(
    "fields",
    [
        {"solver": "gpo", "space": "both"},
        {"solver": "epo", "mutants": 2, "crossovers": 1},
        {"space": "positive", "k": 2, "tau": 0.5, "start": 2.0},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())) or "defaults",
)
def test_every_variant_keeps_every_promise(
    fields: dict[str, Any], choices: str, task: Task
) -> None:
    method = small(choices, iterations=2, population=3, **fields)
    check_method(method, task, budget=Budget(steps=4))


def test_resume_in_the_middle_of_every_phase(choices: str, task: Task) -> None:
    method = small(choices, iterations=2, population=2, mutants=1, crossovers=1)
    steps = check_resume(method.build(task), Budget(images=16), seed=5)
    assert [step.phase for step in steps[:5]] == ["prompt", *2 * ["gradient"], *2 * ["search"]]


def test_all_candidates_and_the_baseline_share_the_first_noises(choices: str, task: Task) -> None:
    method = small(choices)
    words = method.words_of(task)
    own = method.noise(task).sample(2, Stream(5))
    assert torch.equal(words.noise, own)
    assert torch.equal(method.baseline(task, 5).noise, own)
    step, *_ = run(method, task, Budget(steps=1))
    pictures = method.pictures(task).render(method.baseline(task, 5), Draw(5, 0))
    torch.testing.assert_close(step.best.y, pictures)
    mean = REWARD(pictures, ["a red cat"] * 2).mean()
    assert step.best.score == pytest.approx(float(mean), abs=1e-6)


# What it is told


def test_auto_is_the_negative_prompt_and_the_prompt_without_guidance(task: Task) -> None:
    guided = DpoDiff(**SMALL).words_of(task).wording
    assert guided.negative is not None
    assert guided.positive is None
    plain = DpoDiff(**SMALL, guidance_scale=1.0).words_of(task).wording
    assert plain.positive is not None
    assert plain.negative is None
    with pytest.raises(InvalidInput, match="acts through guidance"):
        DpoDiff(**SMALL, guidance_scale=1.0, space="both").words_of(task)


def test_a_reward_without_gradient_is_searched_by_evolution(choices: str, task: Task) -> None:
    black_box = replace(task, reward=make_reward("jpeg"))
    steps = run(DpoDiff(**SMALL, choices=choices), black_box, Budget(images=10))
    assert not any(step.relaxed for step in steps)
    for solver in ("gpo", "gpo+es"):
        with pytest.raises(
            Incompatible, match=r"reward's gradient, and jpeg has none; set solver=epo"
        ):
            small(choices, solver=solver).build(black_box)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "cma"}, "solver must be one of epo"),
        ({"space": "words"}, "space must be one of auto"),
        ({"noises": 0}, "noises must be at least 1"),
        ({"noises": 100_000_000}, "noises must be at most 1024, got 100000000"),
        ({"unseen": 100_000_000}, "unseen must be at most 1024, got 100000000"),
        ({"library": -1}, "library must be at least 0"),
        ({"min_similarity": 1.5}, "min_similarity must lie"),
        ({"gradient_share": 0.0}, r"got gradient_share=0\.0, leave_one_out="),
        ({"leave_one_out": 1.0}, "leave_one_out"),
        ({"affix": "a.safetensors"}, "takes no affix"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        DpoDiff(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": "/nowhere.json"}, "expected a JSON file of word choices"),
        ({"mutation_rate": 0.0}, "mutation_rate"),
        ({"keep": 0}, r"population and keep must be at least 1, got population=20, keep=0"),
        ({"population": 0}, "got population=0, keep=10"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"tau": -1.0, "solver": "epo"}, "tau must be positive"),
        ({"lr": 0.0, "solver": "random"}, "lr must be positive"),
        ({"similarity_weight": -1.0}, "similarity_weight must be"),
        ({"start": 5.0, "solver": "epo"}, "start must lie"),
        ({"t_first": 2.0}, r"got t_first=2\.0, t_end="),
        ({"lr": -1.0}, "lr must be positive"),
        ({"library": 99}, r"0 to 14 slots of the library, .* got 99; --set library=4"),
        ({"min_similarity": 0.5, "space": "positive", "encoder": "/no"}, "cannot load"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "said",
)
def test_bad_settings_are_refused_before_anything_is_drawn(
    fields: dict[str, Any], message: str, task: Task
) -> None:
    with pytest.raises(InvalidInput, match=message):
        DpoDiff(**{**SMALL, "solver": "gpo+es", **fields}).build(task)


# The attack


def test_an_encoder_that_knows_emoji_captions_alone_is_told(task: Task) -> None:
    """The fake is no bundled model; its prompts are compared by the bundled CLIP by default."""
    with pytest.warns(TillerNotice, match="encoder='emoji', which compares prompts, was trained"):
        Attack(**SMALL, min_similarity=0.5).words_of(task)


def test_an_attack_lowers_the_reward_with_prompts_that_stay_near(task: Task) -> None:
    method = Attack(**SMALL, iterations=2, min_similarity=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = run(method, task, Budget(images=16))
    words = method.words_of(task)
    for step in steps:
        if not step.relaxed:
            assert bool((words.similarity(step.z) >= 0.9).all())
    last = steps[-1].best
    pictures = method.pictures(task)
    scores = evaluate(words, pictures, torch.cat([last.z, 0 * last.z]), Draw(0, 0)).score
    assert float(scores[0]) <= float(scores[1])
    assert -last.score == pytest.approx(float(scores[0]), abs=1e-5)
    assert words.wording.negative is None


def test_the_penalty_keeps_the_distribution_near(task: Task) -> None:
    (phase,) = (
        p for p in Attack(**SMALL, solver="gpo+es", min_similarity=0.95).build(task) if p.relaxed
    )
    assert isinstance(phase, Phase)
    problem = phase.build(None)
    (penalty,) = problem.objective.regularisers
    assert penalty.weight == 1.0
    assert isinstance(problem.space, RelaxedWords)
    attack = Attack(**SMALL, solver="gpo+es", similarity_weight=0.0)
    free = next(phase for phase in attack.build(task) if phase.relaxed)
    assert free.build(None).objective.regularisers == ()


def test_a_reward_upside_down() -> None:
    pictures = torch.rand(3, 3, 8, 8)
    lowered = Lowered(REWARD)
    assert torch.equal(lowered(pictures, ["a"] * 3), -REWARD(pictures, ["a"] * 3))
    assert lowered.differentiable
    assert not Lowered(make_reward("jpeg")).differentiable
    assert lowered.name == "-(brightness)"


def test_a_model_that_takes_the_scale_as_an_input_reads_no_negative_prompt() -> None:
    task = Task(load_model(fake_lcm_pipeline()), "a red cat", "", make_reward("brightness"))
    with pytest.raises(InvalidInput, match="a negative prompt acts through guidance"):
        DpoDiff(space="negative").build(task)
