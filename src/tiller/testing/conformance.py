"""Conformance: what every solver, space and reward must do, for ours and for third parties'.

Call one function per part in a test; an `AssertionError` says which promise is broken, where, and
what to change.

    def test_my_solver():
        problem = FakeQuadratic(dimension=3)
        check_solver(MySolver(), problem.space, problem, reaches=-1e-3, within=Budget(steps=200))
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.evaluation import evaluate
from tiller.core.objective import Objective
from tiller.core.rng import Draw, Stream
from tiller.core.search import Phase, Problem, SearchState, Step, search, search_phases
from tiller.core.solver import Solver
from tiller.core.space import Continuous, Discrete, Space
from tiller.core.state import Packed, pack, same, unpack


def check_solver(
    solver: Solver[Any],
    space: Space[Any],
    objective: Objective[Any, Any],
    *,
    reaches: float | None = None,
    within: Budget | None = None,
    rounds: int = 5,
) -> None:
    """All promises of a solver, on one small problem.

    Args:
        solver: with settings that suit the problem.
        space, objective: the problem; its objective should bill its images with `count`.
        reaches: the score that a search must reach, near a known optimum: higher is better.
        within: the budget for that.
        rounds: length of the runs that are interrupted, at each of their steps.
    """
    check_settings(solver)
    check_ask_and_tell(solver, space, objective)

    def run(budget: Budget, seed: int = 0, resume: Any = None) -> list[Step]:
        return list(search(space, objective, solver, budget, seed=seed, resume=resume))

    run = _from_the_same_start(objective, run)
    whole = run(Budget(steps=rounds))
    _require(
        len(whole) == rounds or whole[-1].stopped is not None,
        f"a search of {rounds} steps made {len(whole)} and gave no reason to stop",
    )
    _same_runs(whole, run(Budget(steps=rounds)), "two runs with one seed", solver)
    other = run(Budget(steps=rounds), seed=1)
    single = isinstance(space, Discrete) and space.size == 1
    _require(
        single or not all(torch.equal(a.z, b.z) for a, b in zip(whole, other, strict=False)),
        f"{_name(solver)} tries the same candidates for seeds 0 and 1; draw them from `rng`",
    )
    problem = Problem(space, objective, solver)
    check_resume([Phase("search", lambda _: problem)], Budget(steps=rounds))
    check_batching(solver, space, objective, rounds=rounds)
    check_budgets(solver, space, objective)
    if reaches is not None:
        *_, last = run(within or Budget(steps=100))
        _require(
            last.best.score >= reaches,
            f"{_name(solver)} reached {last.best.score:.6g} of {reaches:.6g} in {last.index} "
            f"steps ({last.stopped}); higher is better, only a solver negates",
        )


def check_settings(solver: Solver[Any]) -> None:
    """The settings are a frozen dataclass, and `init` names the state's type, a dataclass."""
    name = _name(solver)
    frozen = getattr(getattr(type(solver), "__dataclass_params__", None), "frozen", False)
    _require(frozen, f"{name} must be a frozen dataclass: add @dataclass(frozen=True)")
    hint = get_type_hints(type(solver).init).get("return")
    _require(
        isinstance(hint, type) and dataclasses.is_dataclass(hint),
        f"{name}.init must name its state's dataclass as its return type, got {hint!r}; a resume "
        "builds the state from that",
    )


def check_ask_and_tell(
    solver: Solver[Any], space: Space[Any], objective: Objective[Any, Any]
) -> None:
    """`init`, `ask` and `tell` are functions of their arguments: no state is changed in place."""
    name, rng = _name(solver), Stream(0)
    state = solver.init(space, rng)
    hint = get_type_hints(type(solver).init)["return"]
    for round_ in range(3):
        packed, position = pack(state), rng.position
        restored = unpack(hint, through_json(packed))
        _require(
            same(pack(restored).tree, packed.tree) and same(restored, state),
            f"{name}'s state does not come back from a file as it was: {packed.tree}",
        )
        z = solver.ask(space, state, rng)
        expected = space.shape if isinstance(space, Continuous) else (len(_choices(space)),)
        _require(
            len(z) >= 1 and tuple(z.shape[1:]) == tuple(expected),
            f"{name}.ask must return z [n, {', '.join(map(str, expected))}], got {list(z.shape)}",
        )
        sample = space.sample(1, Stream(0))
        _require(z.dtype == sample.dtype, f"{name}.ask returned {z.dtype}, not {sample.dtype}")
        check_points(space, z, f"{name}.ask")
        again = solver.ask(space, restored, Stream(0, position=position))
        _require(torch.equal(z, again), f"{name}.ask gave other candidates for an equal state")
        evaluation = evaluate(space, objective, z, Draw(0, round_), solver.gradient())
        told = solver.tell(space, state, z, evaluation)
        _require(
            same(state, restored),
            f"{name}.ask or .tell changed the state in place; return a new one",
        )
        _require(
            same(told, solver.tell(space, restored, z, evaluation)),
            f"{name}.tell gave another state for equal arguments; keep everything in the state",
        )
        state = told
        if solver.finished(space, state):
            return


def check_resume(phases: Sequence[Phase], budget: Budget, *, seed: int = 0) -> list[Step]:
    """A search resumed at any step, from memory or from a file, equals the one that ran through.

    Compares whole steps, all but wall seconds and peak memory. Every phase's objective must be
    able to load its state; `phases` are built anew for each resume. Returns the whole run.
    """
    first = phases[0].build(None).objective
    start = pack(first.state())

    def run(resume: Any) -> list[Step]:
        if resume is None:
            first.load_state(unpack(dict[str, Tensor], start))
        return list(search_phases(phases, budget, seed=seed, resume=resume))

    whole = run(None)
    packed = [through_json(pack(step.state)) for step in whole]
    for k, step in enumerate(whole):
        for how, saved in (("its file", packed[k]), ("memory", step)):
            where = f"the run resumed from {how} after step {step.index}"
            _same_runs(whole[k + 1 :], run(saved), where, "this search")
    return whole


def check_batching(
    solver: Solver[Any], space: Space[Any], objective: Objective[Any, Any], *, rounds: int = 5
) -> None:
    """Evaluating candidates one at a time gives what a whole round at once gives."""
    if objective.stateful:
        return  # its state may rightly depend on the order of evaluation
    runs = []
    for size in (None, 1, 2):
        chunked = copy.copy(objective)
        chunked.batch_size = size
        runs.append(list(search(space, chunked, solver, Budget(steps=rounds))))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            close = torch.allclose(a.z.double(), b.z.double(), rtol=1e-6, atol=1e-9)
            _require(
                close and abs(a.best.score - b.best.score) <= 1e-6 * (1 + abs(a.best.score)),
                f"{_name(solver)} depends on how candidates are batched, at step {a.index}",
            )


def check_budgets(solver: Solver[Any], space: Space[Any], objective: Objective[Any, Any]) -> None:
    """A budget is ended on, or overrun by less than the last round."""
    run = _from_the_same_start(
        objective, lambda budget: list(search(space, objective, solver, budget))
    )
    for steps in (1, 3):
        done = run(Budget(steps=steps))
        ended = done[-1].stopped or ""
        _require(
            len(done) == steps or "budget" not in ended,
            f"{_name(solver)} made {len(done)} steps of a budget of {steps}: {ended}",
        )
    for images in (1, 7, 20):
        done = run(Budget(images=images, steps=50))
        used = [step.cost.images for step in done]
        before = used[-2] if len(used) > 1 else 0
        _require(
            before < images, f"{_name(solver)} began a round after {before} of {images} images"
        )
        if solver.divisible and "images" in (done[-1].stopped or ""):
            _require(
                used[-1] == images,
                f"{_name(solver)} is divisible and used {used[-1]} of {images} images",
            )


def check_space(space: Space[Any], *, n: int = 5) -> None:
    """All promises of a space: sampling by candidate, valid points, decoding that batches."""
    name = type(space).__name__
    kind = isinstance(space, (Continuous, Discrete))
    _require(kind, f"{name} must subclass Continuous or Discrete")
    rng = Stream(3)
    z = space.sample(n, rng)
    shape = space.shape if isinstance(space, Continuous) else (len(_choices(space)),)
    _require(
        tuple(z.shape) == (n, *shape),
        f"{name}.sample({n}) must have shape {[n, *shape]}, got {list(z.shape)}",
    )
    _require(
        rng.position == n,
        f"{name}.sample({n}) took {rng.position} generators of its stream; take one a candidate",
    )
    _require(
        torch.equal(z, torch.cat([space.sample(1, Stream(3, position=i)) for i in range(n)])),
        f"{name}.sample depends on the batch; draw candidate i from the i-th generator alone",
    )
    check_points(space, z, f"{name}.sample")
    _require(bool(space.describe().strip()), f"{name}.describe must say what moves")
    x = _tensors(space.decode(z))
    alone = [_tensors(space.decode(z[i : i + 1])) for i in range(n)]
    for k, whole in enumerate(x):
        if whole.ndim and len(whole) == n:
            parts = torch.cat([one[k] for one in alone])
            _require(
                torch.allclose(whole.double(), parts.double(), rtol=1e-4, atol=1e-5),
                f"{name}.decode depends on the batch",
            )
    if not isinstance(space, Continuous):
        return
    far = 3 * z + 1
    projected = space.project(far)
    _require(
        projected.shape == z.shape and projected.dtype == z.dtype,
        f"{name}.project must keep shape and kind, got {list(projected.shape)} {projected.dtype}",
    )
    _require(
        torch.allclose(space.project(projected), projected, rtol=1e-5, atol=1e-6),
        f"{name}.project must leave alone what it has projected",
    )
    leaf = z.clone().requires_grad_()
    moving = [t for t in _tensors(space.decode(leaf)) if t.is_floating_point()]
    _require(
        not moving or any(t.requires_grad for t in moving),
        f"{name}.decode cuts the graph; gradient solvers need it differentiable",
    )


def check_points(space: Space[Any], z: Tensor, where: str) -> None:
    """The candidates z [n, ...] lie in the space and hold no graph."""
    _require(not z.requires_grad, f"{where}: candidates must not hold a graph; detach them")
    if isinstance(space, Continuous):
        _require(z.is_floating_point(), f"{where}: expected floating point, got {z.dtype}")
        _require(bool(torch.isfinite(z).all()), f"{where}: candidates that are not finite")
        return
    limits = torch.tensor(_choices(space))
    _require(z.dtype == torch.int64, f"{where}: expected int64, got {z.dtype}")
    _require(
        bool(((z >= 0) & (z < limits)).all()),
        f"{where}: an option outside 0 <= z < {limits.tolist()}: {z.tolist()}",
    )


def check_reward(
    reward: Callable[[Tensor, list[str]], Tensor], images: Tensor, prompts: list[str]
) -> None:
    """All promises of a reward.

    Args:
        reward: any callable; an attribute `differentiable` says whether gradients are expected.
        images: [n, 3, H, W] in [0, 1], at least two.
        prompts: n of them.
    """
    name = getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__)
    n = len(images)
    _require(n >= 2 and n == len(prompts), "give check_reward two or more images, a prompt each")
    kept = images.clone()
    scores = reward(images, prompts).detach()
    _require(
        scores.shape == (n,), f"{name} must return scores [{n}], got shape {list(scores.shape)}"
    )
    _require(bool(torch.isfinite(scores).all()), f"{name} returned {scores.tolist()}")
    _require(torch.equal(images, kept), f"{name} changed the images in place; work on a copy")
    _require(torch.equal(scores, reward(images, prompts).detach()), f"{name} is not deterministic")
    alone = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]).detach() for i in range(n)])
    _require(
        torch.allclose(scores.double(), alone.double(), rtol=1e-3, atol=1e-4),
        f"{name} depends on the batch: together {scores.tolist()}, alone {alone.tolist()}",
    )
    if not getattr(reward, "differentiable", False):
        return
    leaf = images.clone().requires_grad_()
    scores = reward(leaf, prompts)
    _require(scores.requires_grad, f"{name} says it is differentiable and cuts the graph")
    (grad,) = torch.autograd.grad(scores.sum(), leaf)
    _require(bool(torch.isfinite(grad).all()), f"{name}'s gradient is not finite")
    _require(bool((grad != 0).any()), f"{name}'s gradient is zero everywhere")


def through_json(packed: Packed) -> Packed:
    """`packed` as a file gives it back: a parsed tree, and tensors that share no memory."""
    tree = json.loads(json.dumps(packed.tree, allow_nan=False))
    return Packed(tree, {name: tensor.clone() for name, tensor in packed.tensors.items()})


def comparable(step: Step) -> dict[str, Any]:
    """All of a step but wall seconds and peak memory, which no resume can repeat."""

    def timeless(value: Any) -> Any:
        return dataclasses.replace(value, seconds=0.0, peak_memory_bytes=0)

    state: SearchState = dataclasses.replace(
        step.state, cost=timeless(step.state.cost), phase_cost=timeless(step.state.phase_cost)
    )
    evaluation = dataclasses.replace(step.evaluation, cost=timeless(step.evaluation.cost))
    return {
        "index": step.index,
        "phase": step.phase,
        "stopped": step.stopped,
        "z": step.z,
        "evaluation": evaluation,
        "best": step.best,
        "cost": timeless(step.cost),
        "state": state,
    }


def _same_runs(expected: list[Step], got: list[Step], what: str, who: Any) -> None:
    """Raise unless both hold the same steps, naming the first field that differs."""
    who = who if isinstance(who, str) else _name(who)
    for a, b in zip(expected, got, strict=False):
        left, right = comparable(a), comparable(b)
        differing = [name for name in left if not same(left[name], right[name])]
        _require(not differing, f"{who}: {what} differs at step {a.index} in {differing}")
    _require(len(expected) == len(got), f"{who}: {what} has {len(got)} steps, not {len(expected)}")


def _from_the_same_start(
    objective: Objective[Any, Any], run: Callable[..., list[Step]]
) -> Callable[..., list[Step]]:
    """`run`, a stateful objective put back to its present state before each."""
    start = pack(objective.state())

    def again(*args: Any, **kwargs: Any) -> list[Step]:
        objective.load_state(unpack(dict[str, Tensor], start))
        return run(*args, **kwargs)

    return again


def _tensors(x: Any) -> list[Tensor]:
    """The tensors in x, in order: itself, or those of its items and fields."""
    if isinstance(x, Tensor):
        return [x]
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        x = [getattr(x, f.name) for f in dataclasses.fields(x)]
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        return [tensor for item in x for tensor in _tensors(item)]
    return []


def _choices(space: Space[Any]) -> tuple[int, ...]:
    assert isinstance(space, Discrete), "a space is Continuous or Discrete"
    return space.choices


def _name(solver: Solver[Any]) -> str:
    return type(solver).__name__


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
