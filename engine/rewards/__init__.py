"""Rewards: scorers of whole answers, in Python or by a classifier model."""

from trimtab.engine.rewards.base import Judgement, Pair, Reward

__all__ = ["Judgement", "Pair", "Reward"]
