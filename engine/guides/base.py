"""What a guide is once it is loaded. Whole-answer rewards are in `trimtab.engine.rewards`; a scorer is both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from trimtab.engine.alignment import Translation
from trimtab.engine.guides.embedding import TextEncoder
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.model import Model
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.vocabulary import Vocabulary

Role = Literal["lm", "reward", "value", "vector", "preference", "embedding", "program", "remote_reward"]


class Head(Protocol):
    """A readout of a decoder's last hidden state."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scores (..., ) float32 of hidden states (..., D)."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class LanguageGuide:
    """A causal language model that mixes its distribution with the base's, or speaks in its place."""

    name: str
    model: Model
    """the base's own for an adapter"""
    variant: Variant = PLAIN
    translation: Translation | None = None
    """base ids in the guide's vocabulary; None: the vocabularies differ and only text carries over"""
    role: Role = "lm"
    own_vocabulary: Vocabulary | None = None
    """under a chat template of its own, for an adapter that brings one"""
    attributes: tuple[str, ...] = ()
    """what a preference weighs, for an adapter with a block for each; without a preference all count evenly"""

    @property
    def vocabulary(self) -> Vocabulary:
        """How it reads conversations and writes text."""
        return self.own_vocabulary or self.model.vocabulary


@dataclass(frozen=True, eq=False, slots=True)
class ScorerGuide:
    """A decoder with a scalar head: scores any prefix, so candidates for the next token too."""

    name: str
    model: Model
    head: Head
    role: Role
    """reward or value"""
    variant: Variant = PLAIN
    translation: Translation | None = None
    own_vocabulary: Vocabulary | None = None
    """under a chat template of its own, for an adapter that brings one"""

    @property
    def vocabulary(self) -> Vocabulary:
        """How it reads conversations."""
        return self.own_vocabulary or self.model.vocabulary


@dataclass(frozen=True, eq=False, slots=True)
class HeadGuide:
    """A small value head on the base's own last hidden state; see `heads.ValueHead`."""

    name: str
    head: ValueHead
    role: Role = "value"


@dataclass(frozen=True, eq=False, slots=True)
class VectorGuide:
    """A control vector: one direction (D,) per layer, added to that layer's output."""

    name: str
    directions: Mapping[int, Tensor]
    role: Role = "vector"


@dataclass(frozen=True, eq=False, slots=True)
class PreferenceGuide:
    """How much each of several rewards counts, by the prompt."""

    name: str
    head: PreferenceHead
    role: Role = "preference"


@dataclass(frozen=True, eq=False, slots=True)
class EmbeddingGuide:
    """Vectors of texts, for searching among them; it steers nothing by itself."""

    name: str
    encoder: TextEncoder
    role: Role = "embedding"


@dataclass(frozen=True, eq=False, slots=True)
class TextGuide:
    """A reward of whole answers alone: a program, a classifier that cannot read token by token, another server's."""

    name: str
    role: Role


Guide = LanguageGuide | ScorerGuide | HeadGuide | VectorGuide | PreferenceGuide | EmbeddingGuide | TextGuide
