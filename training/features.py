"""What a value head reads: the frozen base's last normed hidden states along answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from trimtab.engine.loading import LoadedModel
from trimtab.training.errors import TrainingError
from trimtab.training.rows import Row

BATCH_TOKENS: Final = 4096
"""of one forward, padding included"""
MAX_BYTES: Final = 8 << 30
"""of hidden states that are held in memory"""


@dataclass(frozen=True, eq=False, slots=True)
class States:
    """The states of answers one behind the other: of an answer of T tokens, before the first to after the last."""

    hidden: Tensor
    """(N, D) in the base's dtype"""
    expected: Tensor | None
    """(N, D) float32: the mean direction of the next token under the base, if it was asked for"""
    offsets: tuple[int, ...]
    """where each answer begins, and N"""

    def of(self, answer: int) -> slice:
        """Where the T + 1 states of an answer are."""
        return slice(self.offsets[answer], self.offsets[answer + 1])


@dataclass(frozen=True, eq=False, slots=True)
class Expectation:
    """What the mean over the next token is taken of, and at which temperature answers are drawn."""

    directions: Tensor
    """(V, D) float32, one for each token of the vocabulary"""
    temperature: float = 1.0


def read_states(loaded: LoadedModel, rows: Sequence[Row], expectation: Expectation | None = None) -> States:
    """Run the base over conversations with their answers; padding never enters a result.

    All states stay in memory, on the base's device: answers * (tokens + 1) * D numbers in the base's dtype, with
    `expectation` three times as much in bfloat16. TrainingError beyond 8 GiB.
    """
    model = loaded.model
    offsets = (0, *accumulate(len(row.ids) - row.start + 1 for row in rows))
    width = model.get_output_embeddings().weight.shape[1]
    size = offsets[-1] * width * (model.dtype.itemsize + (0 if expectation is None else 4))
    if size > MAX_BYTES:
        raise TrainingError(
            f"{len(rows)} answers need {size / 2**30:.1f} GiB of hidden states, and {MAX_BYTES >> 30} is the most: use "
            "fewer prompts, or lower --answers or --max-tokens"
        )
    hidden = torch.empty(offsets[-1], width, dtype=model.dtype, device=model.device)
    expected = None if expectation is None else torch.empty(offsets[-1], width, device=model.device)
    states = States(hidden, expected, offsets)
    with torch.no_grad(), tqdm(total=len(rows), unit="answer", desc="states") as bar:
        for batch in batches(rows):
            ids = pad_sequence([torch.tensor(rows[index].ids) for index in batch], batch_first=True).to(model.device)
            told, logits = _forward(loaded, ids, wanted=expectation is not None)
            for place, index in enumerate(batch):
                span = slice(rows[index].start - 1, len(rows[index].ids))
                hidden[states.of(index)] = told[place, span]
                if expected is not None and expectation is not None and logits is not None:
                    probs = (logits[place, span].float() / expectation.temperature).softmax(dim=-1)  # (T + 1, V)
                    expected[states.of(index)] = probs @ expectation.directions
            bar.update(len(batch))
    return states


def batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Indices of rows of like length, as many as a forward takes."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].ids)):
        if batch and (len(batch) + 1) * len(rows[index].ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _forward(loaded: LoadedModel, ids: Tensor, *, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """What the LM head reads (B, T, D), and logits (B, T, V) if they are wanted; causal attention needs no mask."""
    if not wanted:
        states: Tensor = loaded.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return states, None
    read: list[Tensor] = []
    hook = loaded.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        logits: Tensor = loaded.model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    return read[0], logits
