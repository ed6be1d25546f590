"""RE-Control: gradient steps on the last hidden state (Kong et al. 2024, arXiv 2406.05954).

Only the hidden state that the LM head reads moves; keys and values stay as they are.
"""

from pydantic import Field

from trimtab.decoders.params import HeadName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy(
    "re_control",
    paper="Kong et al. 2024, arXiv 2406.05954",
    cost="1 answer, n head gradients a token",
    needs=("value",),
)
class ReControl(Steer):
    """`h += lr * dV/dh`, n times, on the last hidden state, before the LM head."""

    value: HeadName = Field(description="name of the value head with one output")
    lr: Weight = Field(1.0, description="step size")
    n: int = Field(30, ge=1, le=1000, description="steps")

    def steer(self, draft: Draft) -> None:
        draft.edit_hidden(self.value, self.lr, self.n, field="value")
