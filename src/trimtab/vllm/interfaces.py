"""What vLLM hands to a logits processor, and the classes that it wants one to inherit.

vLLM has two interfaces: that of the V1 model runner, which tells of rows that come, go and move, and that of the V2
model runner, whose requests keep a slot and whose tokens stay on the device. Everything is described by its shape, so
that the plugin imports and is tested without vLLM.
"""

import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Params(Protocol):
    """What the plugin reads of vLLM's SamplingParams."""

    extra_args: Mapping[str, Any] | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    ignore_eos: bool
    min_tokens: int


Added = tuple[int, Params, Sequence[int] | None, Sequence[int]]
"""row, parameters, prompt (None: the request came as embeddings), and the list that its answer grows in"""


class Direction(Protocol):
    """vLLM's MoveDirectionality."""

    @property
    def name(self) -> str:
        """UNIDIRECTIONAL or SWAP."""


class BatchUpdate(Protocol):
    """V1: what has changed in the batch, in this order."""

    @property
    def removed(self) -> Sequence[int]: ...
    @property
    def added(self) -> Sequence[Added]: ...
    @property
    def moved(self) -> Sequence[tuple[int, int, Direction]]: ...


class OnDevice(Protocol):
    """V2: a buffer of which the device holds the truth."""

    @property
    def gpu(self) -> Tensor: ...


class OnHost(Protocol):
    """V2: a buffer of which the host holds the truth."""

    @property
    def np(self) -> npt.NDArray[np.int32]: ...


class RequestStates(Protocol):
    """V2: what is known of the requests, slot by slot."""

    @property
    def device(self) -> torch.device: ...
    @property
    def all_token_ids(self) -> OnDevice:
        """(slots, longest) tokens of prompt and answer."""

    @property
    def prompt_len(self) -> OnHost: ...
    @property
    def prefill_len(self) -> OnHost:
        """Tokens that are read before the next one is drawn: the prompt, after a preemption also the answer so far."""


class Context(Protocol):
    """V2: the batch of one step."""

    @property
    def idx_mapping_np(self) -> npt.NDArray[np.integer[Any]]:
        """(requests,) the slot of each."""

    @property
    def seq_lens_upper_bound_np(self) -> npt.NDArray[np.integer[Any]]:
        """(requests or more,) tokens before the one that is drawn; exact without speculative decoding."""


if TYPE_CHECKING:

    class Base:
        """What both of vLLM's classes are to the plugin."""

else:

    def _bases() -> tuple[type, ...]:
        """The classes of the vLLM that is installed."""
        found = []
        try:
            from vllm.v1.sample.logits_processor import LogitsProcessor as First

            found.append(First)
            from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as Second

            found.append(Second)
        except ImportError:  # no vLLM, or one without the second interface
            pass
        return tuple(found)

    Base = types.new_class("Base", _bases())
