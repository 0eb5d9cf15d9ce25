"""`ipgo` and `ipgo_dno`: the paper's algorithm step by step, and each of its switches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from tiller.core.budget import Budget
from tiller.core.errors import Incompatible, InvalidInput, MissingDependency, TillerNotice
from tiller.core.rng import Stream
from tiller.core.search import Step, search_phases
from tiller.methods.base import Task
from tiller.methods.ipgo import Ipgo
from tiller.methods.ipgo_dno import IpgoDno
from tiller.models.loader import load_model
from tiller.models.trajectory import Gradient
from tiller.rewards import make_reward
from tiller.solvers.bayes import Bayes
from tiller.solvers.cma import CmaEs
from tiller.spaces.insertion import AffixedPrompt, Words
from tiller.testing.fake_pipeline import (
    FAKE_LENGTH,
    fake_lcm_pipeline,
    fake_pipeline,
    fake_sdxl_pipeline,
)
from tiller.testing.method_conformance import check_method

SMALL = Ipgo(num_inference_steps=3, prefix=2, suffix=3, rank=4)
BOTH = IpgoDno(num_inference_steps=3, prefix=2, suffix=2, rank=4)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(load_model(fake_pipeline()), "a red cat", "", make_reward("brightness"))


def run(method: Any, task: Task, steps: int) -> list[Step]:
    return list(search_phases(method.build(task), Budget(steps=steps), seed=5))


def space_of(step: Step) -> AffixedPrompt:
    assert isinstance(step.problem.space, AffixedPrompt)
    return step.problem.space


@pytest.mark.parametrize("anchor", ["none", "padding"])
def test_the_run_is_torchs_adam_on_the_papers_loss(anchor: str, task: Task) -> None:
    """Algorithm 1: the last step's gradient, norm 1, Adam at .9 of its rate, the constraints."""
    method = replace(SMALL, anchor=anchor, gamma=0.3, lr=0.02, decay=0.5, decay_every=2)
    steps = run(method, task, 6)
    assert [step.phase for step in steps] == ["unsteered", *["ascent"] * 5]
    space, trajectory = space_of(steps[1]), method.trajectory(task.model)
    encoded = task.conditioning()
    (count,) = task.model.token_counts([task.prompt])
    assert count == len("redcata") + 2, "a token a letter, and both ends"
    words, (_, *rest) = Words.of(encoded, count), steps
    z = rest[0].z.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for step in rest:
        assert torch.allclose(step.z, z.detach(), atol=2e-5)
        optimizer.zero_grad()
        affix = space.affixes.decode(z)
        told = words.conditioning(affix)
        latents = trajectory.run(steps[0].z, told, gradient=Gradient.last(1))
        reward = task.reward(task.model.decode(latents), [task.prompt])
        anchored = words.conditioning(affix.times(0.0)).prompt_embeds
        before = anchored if affix.anchored else words.states
        off = told.prompt_embeds.mean(dim=1) - before.mean(dim=1)
        loss = -reward.sum() + 0.3 * off.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([z], 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            z.copy_(space.project(z))


def test_the_papers_tokens_stand_by_themselves_and_ours_on_the_padding(task: Task) -> None:
    pad = task.conditioning().prompt_embeds[:, -1]
    for anchor in ("none", "padding"):
        step = run(replace(SMALL, anchor=anchor), task, 2)[1]
        tokens = space_of(step).affix(step.z)
        told = space_of(step).decode(step.z).conditioning.prompt_embeds
        first = tokens.prefix[:, 0] + (pad if anchor == "padding" else 0)
        assert torch.allclose(told[:, 0], first)
        assert tokens.anchored == (anchor == "padding")


def test_it_begins_with_the_models_own_picture_and_keeps_its_noise(task: Task) -> None:
    steps = run(SMALL, task, 3)
    plain = SMALL.baseline(task, seed=5)
    assert torch.equal(steps[0].z, plain.noise)
    assert float(steps[0].evaluation.penalty[0]) == 0
    for step in steps[1:]:
        x = space_of(step).decode(step.z)
        assert torch.equal(x.noise, plain.noise)
        assert x.conditioning.prompt_embeds.shape[1] == 2 + 9 + 3


def test_it_begins_from_words_that_are_given(task: Task) -> None:
    first, second, *_ = run(replace(SMALL, start="a blue dog", anchor="none"), task, 3)
    affix, said = space_of(second).affix(second.z), "abluedog"
    states = task.model.encode(["a blue dog"], [""]).prompt_embeds
    assert affix.prefix.shape[1] == 0
    assert not affix.anchored
    assert torch.equal(affix.suffix, states[:, 1 : len(said) + 2])
    assert first.phase == "unsteered"
    with pytest.raises(InvalidInput, match="expected words as start"):
        replace(SMALL, start=" ").build(task)


def test_the_reward_rises(task: Task) -> None:
    steps = run(replace(SMALL, lr=0.1, gamma=0.0, gradient="full"), task, 12)
    assert steps[-1].best.reward > float(steps[0].evaluation.reward[0])
    assert steps[-1].evaluation.reward[0] > steps[1].evaluation.reward[0]


def test_resampled_noises_are_kept_with_what_they_drew(task: Task) -> None:
    steps = run(replace(SMALL, resample=True), task, 4)
    noises = [space_of(step).decode(step.z).noise for step in steps[1:]]
    assert not any(torch.equal(a, b) for a, b in pairwise(noises))
    for step in steps[1:]:
        again = step.problem.objective.render(space_of(step).decode(step.z), None)
        assert torch.allclose(again, step.evaluation.best_y, atol=1e-6)
    check_method(replace(SMALL, resample=True), task)


def test_a_shortcut_draws_its_picture_in_the_end(task: Task) -> None:
    method = replace(SMALL, gradient="shortcut(1, 1)", lr=0.02)
    steps = run(method, task, 8)
    assert [step.phase for step in steps[-2:]] == ["ascent", "picture"]
    assert all(step.relaxed for step in steps[1:-1])
    assert steps[-1].cost.images == 8, "an estimate is decoded and scored as a picture is"
    check_method(method, task, budget=Budget(steps=5))


@pytest.mark.parametrize("budget", ["steps=3", "steps=4", "images=3", "images=4", "forwards=15"])
def test_a_small_budget_leaves_room_for_a_shortcuts_picture(budget: str, task: Task) -> None:
    method = replace(SMALL, gradient="shortcut(1, 1)")
    steps = list(search_phases(method.build(task), Budget.parse(budget)))
    assert [step.phase for step in steps[:2]] == ["unsteered", "ascent"]
    assert steps[-1].phase == "picture"
    assert steps[-1].stopped is not None
    assert steps[-1].cost.images <= 4


@pytest.mark.parametrize("name", ["release", "plain"])
def test_other_forms_conform(name: str, task: Task) -> None:
    check_method(replace(SMALL, form=name, rank=2), task)


def test_each_constraint_can_be_left_out(task: Task) -> None:
    free = replace(
        SMALL, orthonormal=False, bounded=False, rotate=False, gamma=0.0, lr=0.5, decay=1.0
    )
    steps = run(free, task, 4)
    assert steps[1].problem.objective.regularisers == ()
    (side, _) = space_of(steps[-1]).affixes._split(steps[-1].z)
    assert "theta" not in side
    assert float(side["Z"].abs().max()) > 1
    assert float((side["E"].mT @ side["E"] - torch.eye(4)).abs().max()) > 1e-2
    held = run(replace(SMALL, lr=0.5), task, 4)[-1]
    (side, _) = space_of(held).affixes._split(held.z)
    assert float(side["Z"].abs().max()) <= 1
    assert torch.allclose(side["E"].mT @ side["E"], torch.eye(4)[None], atol=1e-5)


def test_a_black_box_is_searched_over_the_coefficients(task: Task) -> None:
    """By CMA, or where there are few by Bayesian optimization; both resume anywhere."""
    box = replace(task, reward=make_reward("jpeg"))
    wide = replace(SMALL, rank=8, popsize=4)
    problem = run(wide, box, 2)[-1].problem
    assert isinstance(problem.solver, CmaEs)
    assert problem.space.dimension == 8 * 5 + 4
    few = replace(SMALL, prefix=1, suffix=1, rank=2)
    problem = run(few, box, 2)[-1].problem
    assert isinstance(problem.solver, Bayes)
    assert problem.space.dimension == 2 * (2 + 2)
    for method in (wide, few):
        check_method(method, box)
    improved = run(wide, box, 12)
    assert improved[-1].best.score > float(improved[0].evaluation.score[0])


def test_short_prompts_get_short_affixes_and_a_word_about_it(task: Task) -> None:
    short = replace(task, prompt="cat")
    with pytest.warns(TillerNotice, match="5 tokens with its ends, so it gets 10 \\+ 3 of its own"):
        space = replace(SMALL, prefix=12).space(short)
    assert (space.affixes.prefix, space.affixes.suffix) == (10, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace(SMALL, prefix=12, shrink=None).space(short).affixes.prefix == 12
        assert SMALL.space(short).affixes.prefix == 2


@pytest.mark.filterwarnings("ignore:the prompt has:UserWarning")
def test_prompts_as_long_as_the_encoder_takes_have_room_for_affixes(task: Task) -> None:
    long = replace(task, prompt="a very long prompt of many letters", negative_prompt="dark")
    words = SMALL.words(long)
    assert words.length == FAKE_LENGTH
    assert len(run(SMALL, long, 2)) == 2
    negative = replace(task, prompt="cat", negative_prompt="of many letters")
    assert SMALL.words(negative).length == 15, "as many as the negative prompt has"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"solver": "adam"}, "solver must be one of"),
        ({"gradient": "last"}, "gradient mode"),
        ({"gamma": -1.0}, "gamma"),
        ({"popsize": 3}, "belongs to cma and bayes"),
        ({"solver": "cma", "resample": True}, "on one noise"),
        ({"form": "low"}, "form must be"),
        ({"prefix": 0, "suffix": 0}, "not both 0"),
        ({"solver": "bayes", "popsize": 0}, "popsize must lie in"),
        ({"solver": "cma", "popsize": 100_000}, "popsize must lie in"),
    ],
    ids=[
        "solver", "gradient", "gamma", "popsize", "resample", "form", "none", "none a round",
        "too many",
    ],
)  # fmt: skip
def test_bad_settings_are_refused(changes: dict[str, Any], says: str, task: Task) -> None:
    with pytest.raises(InvalidInput, match=says):
        replace(SMALL, **changes).build(task)


def test_what_needs_no_task_is_refused_at_once(task: Task) -> None:
    with pytest.raises(InvalidInput, match="shrink"):
        Ipgo(shrink=0.0)
    with pytest.raises(InvalidInput, match="anchor must be padding or none"):
        Ipgo(anchor="eos")
    for changes in ({"decay": 0.0}, {"decay": 2.0}, {"decay_every": 0}):
        with pytest.raises(InvalidInput, match=r"0 < decay <= 1 .* decay_every >= 1, got decay="):
            Ipgo(**changes)  # type: ignore[arg-type]  # numbers all
    for changes in ({"noise_lr": -1.0}, {"noise_clip_norm": 0.0}):
        with pytest.raises(InvalidInput, match=f"{next(iter(changes))} must be positive"):
            IpgoDno(**changes)
    with pytest.raises(Incompatible, match="got jpeg; leave solver out, or set solver=cma"):
        replace(SMALL, solver="gradient").build(replace(task, reward=make_reward("jpeg")))


def test_a_solver_that_is_not_installed_is_missed_before_anything_is_drawn(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependency, match=r"or choose cma \(`--set solver=cma`\)"):
        replace(SMALL, solver="bayes").build(task)


def test_a_rank_above_the_width_is_cut_with_a_word_about_it(task: Task) -> None:
    with pytest.warns(TillerNotice, match="rank=17 is more .* so the bases have 16 columns"):
        assert replace(SMALL, rank=17).affixes(task.model).rank == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace(SMALL, rank=Ipgo.rank).affixes(task.model).rank == 16, "nobody asked for it"


def test_both_parts_move_each_at_its_own_rate(task: Task) -> None:
    method = replace(BOTH, lr=0.003, noise_lr=0.04)
    steps = run(method, task, 3)
    space = space_of(steps[1])
    assert torch.equal(space.decode(steps[1].z).noise, method.baseline(task, seed=5).noise)
    (tokens, noise), (tokens2, noise2) = (space.split(step.z) for step in steps[1:])
    assert noise is not None and noise2 is not None  # noqa: PT018
    # Adam's first move is the rate itself; the bases are put back on their manifold, Z is not.
    coefficients = space.affixes._split(tokens)[0]["Z"], space.affixes._split(tokens2)[0]["Z"]
    moved = (coefficients[1] - coefficients[0]).abs()
    assert float(moved.max()) == pytest.approx(0.003, rel=1e-2)
    assert float((noise2 - noise).abs().median()) == pytest.approx(0.04, rel=1e-2)


def test_together_they_find_more_than_either(task: Task) -> None:
    together = run(replace(BOTH, lr=0.02, noise_lr=0.05), task, 8)[-1].best.reward
    noise_alone = run(replace(BOTH, lr=1e-9, noise_lr=0.05), task, 8)[-1].best.reward
    tokens_alone = run(replace(BOTH, lr=0.02, noise_lr=1e-9), task, 8)[-1].best.reward
    assert together > max(noise_alone, tokens_alone)


def test_the_noise_can_be_held_where_noise_is(task: Task) -> None:
    steps = run(replace(BOTH, trust=0.5, noise_lr=0.5), task, 4)
    noise = space_of(steps[-1]).decode(steps[-1].z).noise
    typical = noise[0, 0].numel() ** 0.5
    assert float((noise.flatten(2).norm(dim=2) - typical).abs().max()) <= 0.5 + 1e-3


def test_the_joint_search_conforms_for_black_boxes_too(task: Task) -> None:
    check_method(BOTH, replace(task, reward=make_reward("jpeg")), budget=Budget(steps=3))


@pytest.mark.parametrize(
    "changes",
    [{"gradient": "last(1)"}, {"gradient": "shortcut(1, 1)"}, {"gradient": "last(2)", "eta": 0.0}],
    ids=["last", "shortcut", "ode"],
)
def test_a_gradient_that_misses_the_noise_is_refused(changes: dict[str, Any], task: Task) -> None:
    with pytest.raises(InvalidInput, match="must reach the noises"):
        replace(BOTH, **changes).build(task)
    with pytest.raises(InvalidInput, match="ddim"):
        replace(BOTH, scheduler="lms").build(task)


@pytest.mark.parametrize("kind", [fake_sdxl_pipeline, fake_lcm_pipeline], ids=["xl", "lcm"])
def test_other_families_are_affixed_alike(kind: Callable[[], Any]) -> None:
    """Two encoders' states side by side, their pooled states left alone; no second branch."""
    model = load_model(kind())
    own = Task(model, "a red cat", "", make_reward("brightness"))
    steps = run(replace(SMALL, num_inference_steps=2, lr=0.1, gamma=0.0), own, 4)
    told = space_of(steps[-1]).decode(steps[-1].z).conditioning
    plain = own.conditioning()
    assert told.prompt_embeds.shape[1:] == (2 + 9 + 3, plain.prompt_embeds.shape[2])
    assert (told.negative_prompt_embeds is None) == (plain.negative_prompt_embeds is None)
    if plain.pooled_prompt_embeds is not None:
        assert torch.equal(told.pooled_prompt_embeds, plain.pooled_prompt_embeds)
    assert steps[-1].evaluation.reward[0] > steps[1].evaluation.reward[0]


def test_equal_seeds_begin_with_equal_tokens(task: Task) -> None:
    """What an ablation compares: other forms, and the joint search, start where `ipgo` does."""
    first = run(SMALL, task, 2)[1]
    plain = run(replace(SMALL, form="plain"), task, 2)[1]
    mine, theirs = (space_of(step).affix(step.z) for step in (first, plain))
    assert torch.allclose(mine.prefix, theirs.prefix, atol=1e-6)
    joint = run(replace(BOTH, prefix=2, suffix=3), task, 2)[1]
    assert torch.equal(space_of(joint).affix(joint.z).prefix, mine.prefix)
    assert not torch.equal(SMALL.space(task).sample(1, Stream(0)), first.z)
