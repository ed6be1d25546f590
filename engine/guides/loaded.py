"""What is loaded now: one view of the base and its guides, replaced as a whole when a guide comes or goes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from trimtab.engine.alignment import Translation
from trimtab.engine.guides.base import Guide, HeadGuide, LanguageGuide, ScorerGuide
from trimtab.engine.guides.card import Card
from trimtab.engine.guides.config import GuideConfig
from trimtab.engine.model import Model
from trimtab.engine.plan import BASE
from trimtab.engine.rewards.base import Reward
from trimtab.engine.rewards.contract import Contract

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Guides:
    """Everything that the configuration names, loaded; all by the guides' names."""

    base: Model
    configs: Mapping[str, GuideConfig]
    by_name: Mapping[str, Guide]
    rewards: Mapping[str, Reward]
    """of whole answers"""
    cards: Mapping[str, Card]
    """of the guides whose folder has one"""
    contracts: Mapping[str, Contract]
    """of the rewards that are models, and of embedding models"""

    @property
    def models(self) -> dict[str, Model]:
        """The base, and what guides have brought."""
        brought = {name: guide.model for name, guide in self._readers.items() if guide.model is not self.base}
        return {BASE: self.base} | brought

    @property
    def translations(self) -> dict[str, Translation | None]:
        """Of the base's ids, for the guides that read along."""
        return {name: guide.translation for name, guide in self._readers.items()}

    @property
    def judges(self) -> list[str]:
        """Names of what can score answers: rewards, and value heads of one value."""
        heads = (name for name, guide in self.by_name.items() if isinstance(guide, HeadGuide) and guide.head.width == 1)
        return [*self.rewards, *heads]

    def with_(self, others: Self) -> Self:
        """These guides and others of the same base."""
        return replace(
            self,
            configs={**self.configs, **others.configs},
            by_name={**self.by_name, **others.by_name},
            rewards={**self.rewards, **others.rewards},
            cards={**self.cards, **others.cards},
            contracts={**self.contracts, **others.contracts},
        )

    def without(self, name: str) -> Self:
        """These guides but one."""
        return replace(
            self,
            configs=_without(self.configs, name),
            by_name=_without(self.by_name, name),
            rewards=_without(self.rewards, name),
            cards=_without(self.cards, name),
            contracts=_without(self.contracts, name),
        )

    @property
    def _readers(self) -> dict[str, LanguageGuide | ScorerGuide]:
        return {name: each for name, each in self.by_name.items() if isinstance(each, LanguageGuide | ScorerGuide)}


def _without(mapping: Mapping[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in mapping.items() if key != name}
