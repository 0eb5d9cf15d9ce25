"""Rounds of several searches, evaluated together where their objectives can render in one call.

A frozen sampler is faster on a batch than on one candidate at a time. Searches that run side by
side (many prompts, many seeds) share its calls; their solvers, rewards, penalties and randomness
stay their own, so each finds what it finds alone, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tiller.core.budget import Cost, metered
from tiller.core.evaluation import (
    Autograd,
    Estimator,
    Evaluation,
    Request,
    assembled,
    check_scores,
    check_shape,
    detached,
    evaluate,
    gradients,
    penalties,
)


def evaluate_together(requests: Sequence[Request]) -> list[Evaluation]:
    """`evaluate` for each request, in order, sharing the calls of render where that is possible.

    Shared are plain scores, exact gradients, and equal estimators that are `joint`, of objectives
    with the same `joint_key`; as many candidates at once as the objective has room for. The cost of
    what is shared is divided by candidates; the seconds too.

    Raises:
        RewardError: as `evaluate`.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        key, estimator = request.objective.joint_key(), request.estimator
        if isinstance(estimator, Autograd):
            how: Hashable = Autograd
        else:
            how = i if estimator is not None and not estimator.joint else estimator
        groups.setdefault(i if key is None else (key, how), []).append(i)
    found: dict[int, Evaluation] = {}
    for members in groups.values():
        for part in _parts(requests, members):
            several = [requests[i] for i in part]
            found.update(zip(part, _jointly(several), strict=True))
    return [found[i] for i in range(len(requests))]


def _parts(requests: Sequence[Request], members: list[int]) -> Iterable[list[int]]:
    """The members in pieces of as many candidates as there is room for, at least one member."""
    first = requests[members[0]]
    if len(members) == 1:
        return [members]
    found = first.objective.room(first.space.decode(first.z[:1]), first.estimator is not None)
    room = math.inf if found is None else found
    parts: list[list[int]] = [[]]
    for i in members:
        taken = sum(len(requests[j].z) for j in parts[-1])
        if parts[-1] and taken + len(requests[i].z) > room:
            parts.append([])
        parts[-1].append(i)
    return parts


def _jointly(requests: list[Request]) -> list[Evaluation]:
    """One render for all, one score for all that share their reward; one backward for all."""
    if len(requests) == 1:
        r = requests[0]
        return [evaluate(r.space, r.objective, r.z, r.draw, r.estimator)]
    estimator = requests[0].estimator
    if estimator is not None and estimator.joint:
        return _estimated(requests, estimator)
    wanted = estimator is not None
    counts = [len(r.z) for r in requests]
    with metered() as shared, torch.set_grad_enabled(wanted):
        fixed = _penalised(requests, wanted=wanted)
        leaves = [r.z.detach().requires_grad_(wanted) for r in requests]
        xs = [r.space.decode(leaf) for r, leaf in zip(requests, leaves, strict=True)]
        ys = requests[0].objective.render_jointly(xs, [r.draw for r in requests])
        rewards, costs = _scored(requests, ys)
        values = torch.cat([reward.detach() for reward in rewards]).cpu()  # waited for once
        check_scores(values, sum(counts))
        slopes = gradients(rewards, leaves) if wanted else [None] * len(requests)
    drawing = shared.cost - sum(costs, Cost())
    evaluations = [
        assembled(reward, slope, *penalty, cost=_share(drawing, n, sum(counts)) + cost)
        for reward, slope, penalty, n, cost in zip(
            torch.split(values, counts), slopes, fixed, counts, costs, strict=True
        )
    ]
    best = [
        r.objective.pick(detached(y), evaluation.best)
        for r, y, evaluation in zip(requests, ys, evaluations, strict=True)
    ]
    return [replace(e, best_y=y) for e, y in zip(evaluations, _kept(best), strict=True)]


def _estimated(requests: list[Request], estimator: Estimator) -> list[Evaluation]:
    """What one estimator finds for all of them."""
    total = sum(len(r.z) for r in requests)
    with metered() as shared:
        fixed = _penalised(requests, wanted=True)
        found = estimator.jointly(requests)
    evaluations = [
        assembled(one.reward, one.grad, *penalty, cost=_share(shared.cost, len(r.z), total))
        for r, one, penalty in zip(requests, found, fixed, strict=True)
    ]
    best = [
        r.objective.pick(one.y, evaluation.best)
        for r, one, evaluation in zip(requests, found, evaluations, strict=True)
    ]
    return [replace(e, best_y=y) for e, y in zip(evaluations, _kept(best), strict=True)]


def _penalised(requests: list[Request], *, wanted: bool) -> list[tuple[Tensor, Tensor | None]]:
    """Each one's `penalties`, from one call for all with equal regularisers and randomness."""
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        own = request.objective.regularisers
        alike = own if all(isinstance(one, Hashable) for one in own) else i
        key = alike, request.draw, request.z.shape[1:], request.z.dtype
        groups.setdefault(key, []).append(i)
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for members in groups.values():
        first, counts = requests[members[0]], [len(requests[i].z) for i in members]
        z = torch.cat([requests[i].z for i in members])
        total, slope = penalties(first.objective, z, first.draw, wanted=wanted)
        slopes = [None] * len(members) if slope is None else torch.split(slope, counts)
        found.update(
            zip(members, zip(torch.split(total, counts), slopes, strict=True), strict=True)
        )
    return [found[i] for i in range(len(requests))]


def _scored(requests: list[Request], ys: list[Any]) -> tuple[list[Tensor], list[Cost]]:
    """Each one's rewards [n] and what they cost, from one call for all with one `score_key`."""
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        key = request.objective.score_key()
        groups.setdefault(i if key is None else (type(request.objective), key), []).append(i)
    rewards: dict[int, Tensor] = {}
    costs: dict[int, Cost] = {}
    for members in groups.values():
        objectives = [requests[i].objective for i in members]
        draws = [requests[i].draw for i in members]
        with metered() as meter:
            found = type(objectives[0]).score_jointly(objectives, [ys[i] for i in members], draws)
        total = sum(len(requests[i].z) for i in members)
        for i, reward in zip(members, found, strict=True):
            check_shape(reward, len(requests[i].z))
            rewards[i], costs[i] = reward, _share(meter.cost, len(requests[i].z), total)
    everyone = range(len(requests))
    return [rewards[i] for i in everyone], [costs[i] for i in everyone]


def _kept(best: list[Any]) -> list[Any]:
    """What is kept of a round, copied to the CPU in one transfer where all are alike.

    Copies, so that one candidate does not keep all that was rendered beside it.
    """
    if not all(isinstance(y, Tensor) for y in best) or len({(y.shape, y.dtype) for y in best}) > 1:
        return best
    whole = torch.stack(best).cpu()
    return [y.clone() for y in whole]


def _share(cost: Cost, part: int, total: int) -> Cost:
    """What `part` of `total` candidates used: every candidate of a trajectory costs the same."""
    return replace(
        cost,
        images=cost.images * part // total,
        forwards=cost.forwards * part // total,
        backwards=cost.backwards * part // total,
        recomputes=cost.recomputes * part // total,
        reward_calls=cost.reward_calls * part // total,
        seconds=cost.seconds * part / total,
    )
