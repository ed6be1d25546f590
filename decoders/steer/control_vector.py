"""Control vectors: representation engineering at inference (Zou et al. 2023, arXiv 2310.01405)."""

from pydantic import Field

from trimtab.decoders.params import VectorName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("control_vector", paper="Zou et al. 2023, arXiv 2310.01405", cost="1 answer", needs=("vector",))
class ControlVector(Steer):
    """`h_l += coeff * c_l` in every layer l of the vector, at every token."""

    vector: VectorName = Field(description="name of the control vector")
    coeff: Weight = Field(1.0, description="strength; negative: away from it")
    measure_kl: bool = Field(False, description="run the plain model beside, so that reports compare with it")

    def steer(self, draft: Draft) -> None:
        draft.vector(self.vector, self.coeff, field="vector")
        if self.measure_kl:
            draft.reference(field="measure_kl")
