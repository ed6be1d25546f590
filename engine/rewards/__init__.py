"""Rewards: scorers of whole answers, in Python or by a classifier model."""

from trimtab.engine.rewards.base import Pair, Reward
from trimtab.engine.rewards.config import GuideConfig, RewardModelConfig, build_rewards, default_guides

__all__ = ["GuideConfig", "Pair", "Reward", "RewardModelConfig", "build_rewards", "default_guides"]
