"""Rewards: scorers of whole answers, in Python or by a classifier model."""

from trimtab.engine.rewards.base import Pair, Reward

__all__ = ["Pair", "Reward"]
