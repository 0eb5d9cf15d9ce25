"""Rounds of several searches, evaluated together where their objectives can render in one call.

A frozen sampler is faster on a batch than on one candidate at a time. Searches that run side by
side (many prompts, many seeds) share its calls; their solvers, rewards, penalties and randomness
stay their own, so each finds what it finds alone, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tiller.core.budget import Cost, Meter, metered
from tiller.core.evaluation import (
    Autograd,
    Estimator,
    Evaluation,
    assembled,
    check_scores,
    detached,
    evaluate,
    gradients,
    penalties,
)
from tiller.core.objective import Objective
from tiller.core.rng import Draw
from tiller.core.space import Space


@dataclass(frozen=True)
class Request:
    """One search's round: the arguments of `evaluate`."""

    space: Space[Any]
    objective: Objective[Any, Any]
    z: Tensor
    draw: Draw
    estimator: Estimator | None = None


def evaluate_together(requests: Sequence[Request]) -> list[Evaluation]:
    """`evaluate` for each request, in order, sharing the calls of render where that is possible.

    Shared are exact gradients and plain scores of objectives with the same `joint_key`, as many
    candidates at once as the objective has room for. The cost of what is shared is divided by
    candidates; the seconds too.

    Raises:
        RewardError: as `evaluate`.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        key = request.objective.joint_key()
        shared = key is not None and isinstance(request.estimator, Autograd | None)
        groups.setdefault((key, request.estimator is None) if shared else i, []).append(i)
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
    """One render for all, then each one's own scores; one backward for all."""
    if len(requests) == 1:
        r = requests[0]
        return [evaluate(r.space, r.objective, r.z, r.draw, r.estimator)]
    wanted = requests[0].estimator is not None
    own = [Meter() for _ in requests]
    fixed = [penalties(r.objective, r.z, r.draw, wanted=wanted) for r in requests]
    with metered() as shared, torch.set_grad_enabled(wanted):
        leaves = [r.z.detach().requires_grad_(wanted) for r in requests]
        xs = [r.space.decode(leaf) for r, leaf in zip(requests, leaves, strict=True)]
        first = requests[0].objective
        ys = first.render_jointly(xs, [r.draw for r in requests])
        rewards = []
        for k, (request, y) in enumerate(zip(requests, ys, strict=True)):
            with metered() as meter:
                rewards.append(request.objective.score(y, request.draw))
            check_scores(rewards[-1], len(request.z))
            own[k] = meter
        slopes = gradients(rewards, leaves) if wanted else [None] * len(requests)
    total = sum(len(r.z) for r in requests)
    scoring = sum((meter.cost for meter in own), Cost())
    evaluations = []
    for k, request in enumerate(requests):
        cost = _share(shared.cost - scoring, len(request.z), total) + own[k].cost
        evaluation = assembled(rewards[k].detach(), slopes[k], *fixed[k], cost=cost)
        y = request.objective.pick(detached(ys[k]), evaluation.best)
        evaluations.append(replace(evaluation, best_y=y))
    return evaluations


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
