"""The last step of a language model, opened: the hidden state before the LM head is read, and edited, per row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of some rows' last hidden state before the LM head."""

    rows: Tensor  # (R,) int64, on the host until the forward
    apply: Callable[[Tensor], Tensor]  # (R, D) to (R, D)


class TappedHead(nn.Module):
    """Stands in for an LM head; keeps what it read last, and applies the edits of the current step."""

    hidden: Tensor

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.edits: Sequence[Edit] = ()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Logits of (N, q, D); the edited rows are followed by as many unedited ones, in the order of the edits."""
        self.hidden = hidden_states
        if self.edits:
            edited, plain = hidden_states.clone(), []
            for edit in self.edits:
                plain.append(hidden_states[edit.rows])
                edited[edit.rows, 0] = edit.apply(hidden_states[edit.rows, 0].float()).to(edited.dtype)
            hidden_states = torch.cat((edited, *plain))
        logits: Tensor = self.head(hidden_states)
        return logits


def tap_head(model: PreTrainedModel) -> TappedHead | None:
    """Put a `TappedHead` in the place of the model's LM head; None for a model that has none."""
    head = model.get_output_embeddings()
    if head is None:
        return None
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None and child is head:
                tapped = TappedHead(head)
                parent._modules[name] = tapped
                return tapped
    return None
