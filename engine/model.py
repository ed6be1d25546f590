"""A language model, or the decoder of a scorer, as the engine runs it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab.engine.plan import Variant
from trimtab.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from trimtab.engine.remote.base import RemoteBase
    from trimtab.engine.runner import ModelRunner


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """Weights, page pool and vocabulary; filled at load. Several guides may share one (adapters, second prompts)."""

    name: str
    """`base`, or the name of the guide that brought it"""
    runner: "ModelRunner"
    vocabulary: Vocabulary
    context_length: int
    eos_ids: frozenset[int]
    salt: bytes
    """of the weights; starts the hashes of cached pages"""
    editions: Counter[str] = field(default_factory=Counter)
    """how often an adapter or a control vector of a name was taken from this model"""
    remote: "RemoteBase | None" = None
    """the server that runs it; None: its forwards run here"""

    def salt_of(self, variant: Variant) -> bytes:
        """Starts the hashes of pages that rows of a variant write; never those of an earlier namesake's."""
        names = (variant.adapter or "", *(name for name, _ in variant.vectors))
        edition = sum(self.editions[name] for name in names)
        return b"|".join((self.salt, variant.salt, b"%d" % edition if edition else b""))
