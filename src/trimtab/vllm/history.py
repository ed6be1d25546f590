"""The tokens of requests as guides read them: from vLLM's lists under V1, from its buffer on the device under V2."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.staging import place
from trimtab.vllm.interfaces import RequestStates
from trimtab.vllm.rows import Row


class Span(NamedTuple):
    """Tokens of a request, from `start` to before `stop`."""

    row: Row
    start: int
    stop: int


class History(Protocol):
    """Where tokens come from; nobody waits for the device."""

    def ids(self, spans: Sequence[Span]) -> Tensor:
        """(N,) int64 ids on the device, span after span."""
        ...


class HostHistory:
    """Tokens that the host knows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def ids(self, spans: Sequence[Span]) -> Tensor:
        parts = []
        for row, start, stop in spans:
            assert row.tokens is not None
            parts.append(np.array(row.tokens[start:stop], dtype=np.int64))
        return place([np.concatenate(parts)], self._device)[0]


class DeviceHistory:
    """Tokens that only the device knows: the host says where they lie."""

    def __init__(self, states: RequestStates) -> None:
        self._states = states

    def ids(self, spans: Sequence[Span]) -> Tensor:
        table = self._states.all_token_ids.gpu  # (slots, longest)
        where = np.concatenate([row.slot * table.shape[1] + np.arange(start, stop) for row, start, stop in spans])
        (index,) = place([where], table.device)
        return table.view(-1).index_select(0, index).long()
