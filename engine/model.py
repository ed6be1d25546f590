"""A language model, or the decoder of a scorer, as the engine runs it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
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
