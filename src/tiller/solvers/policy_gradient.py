"""Policy gradients with clipped importance ratios, for objectives that draw at random.

Where what is rendered is the end of a chain of random decisions x_0 -> x_1 -> ... -> x_T with a
known density p_z(x_t | x_{t-1}), the score's expectation has a gradient without the score's:

    d E[r] / dz = E[ r sum_t d log p_z(x_t | x_{t-1}) / dz ]

Chains drawn at z_old serve several updates, weighed by the ratio rho_t of the densities and held to
where that is fair. With A the standardised reward and D the numbers of a state:

    rho_t = exp((log p_z - log p_old)(x_t | x_{t-1}) / D)
    g     = (1/T) sum_t d mean_i min(rho_t A, clip(rho_t, 1 - c, 1 + c) A) / dz

At z = z_old this is the policy gradient of A over T D. The reward may be a black box.

Source: Black et al. 2023, "Training diffusion models with reinforcement learning" (DDPO), equation
4 and section 4.3; Schulman et al. 2017, "Proximal policy optimization algorithms", equation 7. The
1/D is in the authors' release, and c = 1e-4 is made for it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tiller.core.errors import Incompatible, InvalidInput
from tiller.core.evaluation import Estimate, Estimator, check_scores, detached
from tiller.core.objective import Objective, X_contra
from tiller.core.rng import Draw
from tiller.core.space import Space

Y = TypeVar("Y")


@dataclass(frozen=True)
class Rollout:
    """b chains that were drawn at random.

    Attributes:
        states: [b, T + 1, ...] x_0 to x_T of each.
        reward: [b] what its end is worth.
        group: [b] int64, what they are compared within (their prompt).
    """

    states: Tensor
    reward: Tensor
    group: Tensor


@dataclass(frozen=True)
class Memory:
    """What is kept from round to round; all None before the first.

    Attributes:
        states, group: of the chains under way, see `Rollout`; None once they have served.
        advantage: [b] theirs.
        log_prob: [T, b] log density of each decision at the z that made it.
        used: [] int64, the updates that they have served.
        rewards: [groups, buffer] the latest rewards of each group, oldest first, at the end.
        seen: [groups] int64, how many rewards each group has had.
    """

    states: Tensor | None = None
    group: Tensor | None = None
    advantage: Tensor | None = None
    log_prob: Tensor | None = None
    used: Tensor | None = None
    rewards: Tensor | None = None
    seen: Tensor | None = None


class Policy(Objective[X_contra, Y]):
    """An objective that can be asked for chains of random decisions, and how likely they were.

    `render` and `score` are of the run's own candidate, to compare rounds by.

    Attributes:
        groups: how many groups there are.
        decisions: T of each chain.
        at_once: chains whose densities are differentiated in one call; memory, not results.
        memory: see `Memory`; a resume restores it.
    """

    stateful = True
    groups: int = 1
    decisions: int = 1
    at_once: int | None = None
    memory: Memory = Memory()

    @abstractmethod
    def rollout(self, x: X_contra, draw: Draw) -> Rollout:
        """The round's chains, drawn as candidate x (a batch of one) decides; without a graph."""

    @abstractmethod
    def log_prob(self, x: X_contra, states: Tensor, group: Tensor, step: int) -> Tensor:
        """log p_x(x_{step+1} | x_step) [b] for states [b, T + 1, ...]; differentiable in x."""

    def state(self) -> dict[str, Tensor]:
        """The memory."""
        held = {f.name: getattr(self.memory, f.name) for f in fields(Memory)}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self.memory = Memory(**state)


@dataclass(frozen=True)
class PolicyGradient(Estimator):
    """The gradient of E[A] by clipped ratios; the reward that is reported is the candidate's own.

    A round is one update. Every `updates` rounds new chains are drawn at the z of that round.

    Attributes:
        clip_range: c.
        clip_advantage: |A| is cut to this.
        updates: rounds that the same chains serve.
        buffer: rewards of a group that its mean and deviation are taken over.
        least: until a group has had so many, the round's mean and deviation are used.
        standardise: A = (r - mean) / deviation; False takes A = r, uncut.

    Raises:
        InvalidInput: a field is out of its range.
    """

    clip_range: float = 1e-4
    clip_advantage: float = 5.0
    updates: int = 2
    buffer: int = 32
    least: int = 16
    standardise: bool = True

    needs_gradient = False

    def __post_init__(self) -> None:
        for name in ("clip_range", "clip_advantage"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidInput(
                    f"{name} must be positive and finite, got {getattr(self, name)!r}"
                )
        for name in ("updates", "buffer", "least"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1, got {getattr(self, name)!r}")

    def __call__(
        self, space: Space[Any], objective: Objective[Any, Any], z: Tensor, draw: Draw
    ) -> Estimate:
        """The reward [1] of what is rendered for z [1, ...], and the gradient [1, ...].

        Raises:
            Incompatible: an objective that is no `Policy`, or several candidates.
        """
        if not isinstance(objective, Policy) or len(z) != 1:
            raise Incompatible(
                f"a policy gradient trains one candidate of a Policy, got {len(z)} of "
                f"{type(objective).__name__}; set population=1, or use another estimator"
            )
        with torch.no_grad():
            x = space.decode(z)
            y = objective.render(x, draw)
            reward = objective.score(y, draw)
            check_scores(reward, 1)
            if objective.memory.states is None:
                objective.memory = self._drawn(objective, x, draw)
        grad = self._gradient(space, objective, z)
        memory = objective.memory
        assert memory.used is not None
        if int(memory.used) >= self.updates:
            objective.memory = Memory(rewards=memory.rewards, seen=memory.seen)
        return Estimate(reward.detach(), grad, detached(y))

    def _drawn(self, objective: Policy[Any, Any], x: Any, draw: Draw) -> Memory:
        """New chains with their advantages."""
        rollout = objective.rollout(x, draw)
        check_scores(rollout.reward, len(rollout.states))
        reward, group = rollout.reward.cpu().double(), rollout.group.cpu()
        old = objective.memory
        past = Past.empty(objective.groups, self.buffer)
        if old.rewards is not None and old.seen is not None:
            past = Past(old.rewards, old.seen)
        advantage = reward
        if self.standardise:
            advantage, past = standardised(reward, group, past, self.least)
            advantage = advantage.clamp(-self.clip_advantage, self.clip_advantage)
        return Memory(
            states=rollout.states,
            group=group,
            advantage=advantage,
            used=torch.tensor(0),
            rewards=past.rewards,
            seen=past.seen,
        )

    def _gradient(self, space: Space[Any], objective: Policy[Any, Any], z: Tensor) -> Tensor:
        """g [1, ...], one decision of a few chains at a time; remembers the first log densities."""
        memory = objective.memory
        assert memory.states is not None
        assert memory.group is not None
        assert memory.advantage is not None
        assert memory.used is not None
        b, numbers = len(memory.states), memory.states[0, 0].numel()
        grad, found = torch.zeros_like(z), []
        for step in range(objective.decisions):
            parts = []
            for rows in torch.split(torch.arange(b), objective.at_once or b):
                with torch.enable_grad():
                    leaf = z.detach().requires_grad_()
                    log_prob = objective.log_prob(
                        space.decode(leaf), memory.states[rows], memory.group[rows], step
                    )
                    now = log_prob / numbers
                    before = now.detach()
                    if memory.log_prob is not None:
                        before = memory.log_prob[step, rows].to(now)
                    gain = clipped(now, before, memory.advantage[rows].to(now), self.clip_range)
                    (slope,) = torch.autograd.grad(gain.sum(), leaf)
                grad += slope / (b * objective.decisions)
                parts.append(before.cpu())
            found.append(torch.cat(parts))
        objective.memory = replace(memory, log_prob=torch.stack(found), used=memory.used + 1)
        return grad


def clipped(now: Tensor, before: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """min(rho A, clip(rho, 1 - c, 1 + c) A) [b] with rho = exp(now - before), all [b].

    Source: Schulman et al. 2017, equation 7.

    Example:
        >>> one, better = torch.zeros(2), torch.tensor([0.1, -0.1])
        >>> clipped(better, one, torch.tensor([1.0, 1.0]), 0.05)
        tensor([1.0500, 0.9048])
    """
    ratio = torch.exp(now - before)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)


@dataclass(frozen=True)
class Past:
    """The latest rewards of each group; see `Memory`."""

    rewards: Tensor
    seen: Tensor

    @classmethod
    def empty(cls, groups: int, buffer: int) -> Past:
        """No rewards yet."""
        return cls(torch.zeros(groups, buffer, dtype=torch.float64), torch.zeros(groups).long())

    def after(self, group: int, reward: Tensor) -> Past:
        """With the rewards [k] of one group; the oldest fall out."""
        rewards, seen = self.rewards.clone(), self.seen.clone()
        rewards[group] = torch.cat([rewards[group], reward])[-rewards.shape[1] :]
        seen[group] += len(reward)
        return Past(rewards, seen)

    def of(self, group: int) -> Tensor:
        """What is known of one group, oldest first."""
        known = min(int(self.seen[group]), self.rewards.shape[1])
        return self.rewards[group, self.rewards.shape[1] - known :]


def standardised(reward: Tensor, group: Tensor, past: Past, least: int) -> tuple[Tensor, Past]:
    """A = (r - mean) / (deviation + 1e-6) [b] within each group, and the past with r in it.

    Mean and deviation are over a group's latest rewards, these included; while a group has had
    fewer than `least`, over the round's. So prompts that are easy to please do not drown the
    others.

    Args:
        reward: [b], float64.
        group: [b] int64.
        past: what came before.
        least: see above.

    Source: Black et al. 2023, section 4.3 and appendix ("per-prompt stat tracking").

    Example:
        >>> reward, group = torch.tensor([1.0, 3.0]).double(), torch.tensor([0, 0])
        >>> standardised(reward, group, Past.empty(1, 8), least=2)[0].round(decimals=3).tolist()
        [-1.0, 1.0]
    """
    advantage = torch.empty_like(reward)
    for one in torch.unique(group).tolist():
        mine = group == one
        past = past.after(one, reward[mine])
        over = past.of(one) if int(past.seen[one]) >= least else reward
        deviation = over.std(correction=0) + 1e-6
        advantage[mine] = (reward[mine] - over.mean()) / deviation
    return advantage, past
