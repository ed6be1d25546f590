"""What the tokens of a batch are drawn from."""

from dataclasses import dataclass, field

from torch import Tensor

from trimtab.engine.errors import GuideError


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one tick, and what is reported of them."""

    steered: Tensor  # (B, V) float32, edits applied
    reference: Tensor  # (B, V) what reports call the base's logits
    values: dict[int, dict[str, dict[int, float]]] = field(default_factory=dict)
    """raw values of traced rows: row, guide, token"""
    failed: dict[int, GuideError] = field(default_factory=dict)
    """rows whose guide gave no number"""
