"""Rewards: pictures and prompts to scores, higher is better. One file a reward."""

from tiller.rewards._compose import Part, RewardSum
from tiller.rewards.base import Reward
from tiller.rewards.parse import available, make_reward

__all__ = ["Part", "Reward", "RewardSum", "available", "make_reward"]
