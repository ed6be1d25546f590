"""What vLLM's two model runners do to a logits processor, without vLLM: the batch, its bookkeeping and the tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.vllm.processor import TrimtabProcessor

LONGEST = 96


class Direction(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass
class Update:
    """V1's BatchUpdate."""

    removed: list[int] = field(default_factory=list)
    added: list[tuple[int, Any, list[int] | None, list[int]]] = field(default_factory=list)
    moved: list[tuple[int, int, Direction]] = field(default_factory=list)


def params(extra: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    """vLLM's SamplingParams, as far as the plugin reads them."""
    plain = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    return SimpleNamespace(**{**plain, "ignore_eos": False, "min_tokens": 0, "extra_args": extra, **changes})


def config(tokenizer: str, **changes: Any) -> Any:
    """vLLM's configuration, likewise; `changes` are of its parts, by their names with two underscores between."""
    told: dict[str, dict[str, Any]] = {
        "model_config": {
            "tokenizer": tokenizer,
            "trust_remote_code": False,
            "max_model_len": LONGEST,
            "enable_prompt_embeds": False,
            "hf_text_config": SimpleNamespace(eos_token_id=256),
            "try_get_generation_config": dict,
        },
        "scheduler_config": {"async_scheduling": False},
    }
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            told[part][key] = value
    return SimpleNamespace(
        **{part: SimpleNamespace(**values) for part, values in told.items()},
        speculative_config=changes.get("speculative_config"),
    )


class Two:
    """The V2 runner's side: slots with tokens on the device."""

    def __init__(self, make: Any, slots: int = 8) -> None:
        whole = torch.zeros((slots, LONGEST), dtype=torch.int32)
        self.states = SimpleNamespace(
            device=torch.device("cpu"),
            all_token_ids=SimpleNamespace(gpu=whole),
            prompt_len=SimpleNamespace(np=np.zeros(slots, dtype=np.int32)),
            prefill_len=SimpleNamespace(np=np.zeros(slots, dtype=np.int32)),
        )
        self.length = [0] * slots
        self.processor: TrimtabProcessor = make(self.states)

    def add(self, slot: int, wanted: Any, prompt: Sequence[int], output: Sequence[int] = ()) -> bool:
        """Let a request take a slot; with an answer so far if it comes back."""
        tokens = [*prompt, *output]
        self.states.all_token_ids.gpu[slot] = -7  # what a former request has left there
        self.states.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.states.prompt_len.np[slot] = len(prompt)
        self.states.prefill_len.np[slot] = self.length[slot] = len(tokens)
        return self.processor.add_request(slot, wanted)

    def append(self, slot: int, token: int) -> None:
        self.states.all_token_ids.gpu[slot, self.length[slot]] = token
        self.length[slot] += 1

    def step(self, slots: Sequence[int], logits: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """One step over these slots; `lengths` where not all of a prompt is read."""
        told = np.array(lengths or [self.length[slot] for slot in slots], dtype=np.int32)
        padded = np.concatenate([told, np.zeros(2, dtype=np.int32)])
        context = SimpleNamespace(idx_mapping_np=np.array(slots, dtype=np.int64), seq_lens_upper_bound_np=padded)
        self.processor.apply_staged_writes()
        return self.processor.apply(logits, context)
