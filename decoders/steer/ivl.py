"""Inverse value learning: a small model trained to be added (Lu et al. 2024, arXiv 2410.21027)."""

from pydantic import Field

from trimtab.decoders.params import ReaderName
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("ivl", paper="Lu et al. 2024, arXiv 2410.21027", cost="1 answer of the base and the guide", needs=("lm",))
class Ivl(Steer):
    """`z_base + z_value`, by a language model whose raw logits were trained as corrections."""

    value: ReaderName = Field(description="name of the language model to add")

    def steer(self, draft: Draft) -> None:
        draft.add(self.value, 1.0, field="value")
