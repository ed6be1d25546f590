"""A value or reward of every candidate, added to its score: the term that args, cd, fudge, rad and vas share."""

from pydantic import Field

from trimtab.decoders.params import ScorerName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.kernels.mixing import Transform


@strategy("value", cost="1 answer, with one head call or top_k scores a token", needs=("value",))
class Value(Steer):
    """`s + weight * transform(V(h, v))` on the candidates, which a part `candidates` names."""

    guide: ScorerName = Field(description="name of the guide that scores candidates")
    weight: Weight = Field(1.0, description="weight of the value")
    transform: Transform = Field("identity", description="centre: minus the mean over the candidates")

    def steer(self, draft: Draft) -> None:
        draft.value(self.guide, self.weight, self.transform, field="guide")
