"""Iterative value function optimisation: controlled decoding by a refitted value (Liu et al. 2025, arXiv 2503.02368).

The rule is that of `cd`; what differs is the value, which is fitted again on answers of the guided model.
"""

from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.cd import Cd


@strategy(
    "ivo",
    paper="Liu et al. 2025, arXiv 2503.02368",
    cost="1 answer, with one head call or k scores a token",
    needs=("value",),
)
class Ivo(Cd):
    """`z_base + lam * V(h, v)` as in `cd`, by a value that was fitted on answers it guided itself."""
