import math

import pytest
import torch
from torch import Tensor

from trimtab.kernels.edits import Edits, apply_edits, history_edits

VOCAB = 11


def restated(
    logits: Tensor, history: list[list[tuple[int, bool]]], penalties: Tensor, biases: list[dict[int, float]]
) -> Tensor:
    """Penalties and biases token by token, from their definitions."""
    out = logits.clone()
    for row, tokens in enumerate(history):
        repetition, presence, frequency = penalties[:, row].tolist()
        for token in range(logits.shape[1]):
            count = sum(1 for seen, generated in tokens if seen == token and generated)
            z = out[row, token].item()
            if any(seen == token for seen, _ in tokens):
                z = z / repetition if z > 0 else z * repetition
            z -= presence * (count > 0) + frequency * count
            out[row, token] = z + biases[row].get(token, 0.0)
    return out


def batch(history: list[list[tuple[int, bool]]], biases: list[dict[int, float]]) -> tuple[Tensor, ...]:
    length, width = max(map(len, history)), max(map(len, biases))
    tokens, generated = (
        torch.full((len(history), length), -1),
        torch.zeros(len(history), length, dtype=torch.bool),
    )
    bias_ids, bias = torch.full((len(history), width), -1), torch.zeros(len(history), width)
    for row, (past, wanted) in enumerate(zip(history, biases, strict=True)):
        for i, (token, was_generated) in enumerate(past):
            tokens[row, i], generated[row, i] = token, was_generated
        for i, (token, value) in enumerate(wanted.items()):
            bias_ids[row, i], bias[row, i] = token, value
    return tokens, generated, bias_ids, bias


def edits_of(history: list[list[tuple[int, bool]]], penalties: Tensor, biases: list[dict[int, float]]) -> Edits:
    tokens, generated, bias_ids, bias = batch(history, biases)
    repetition, presence, frequency = penalties
    return history_edits(tokens, generated, repetition, presence, frequency, bias_ids, bias, VOCAB)


HISTORY = [
    [(3, False), (3, False), (10, True), (0, True), (10, True), (3, True)],
    [],
    [(10, False)],
    [(5, True)] * 6,
    [(1, False), (2, True)],
]
BIASES: list[dict[int, float]] = [{10: 2.0, 7: -1.5}, {}, {4: -math.inf}, {5: -math.inf, 0: 100.0}, {10: 0.5}]
PENALTIES = torch.tensor([[1.3, 1.5, 0.8, 1.0, 2.0], [0.5, 1.0, 0.0, -2.0, 0.1], [0.25, 1.0, 0.5, 0.1, 0.0]])


def test_edits_are_what_the_definitions_say() -> None:
    logits = torch.randn(len(HISTORY), VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    expected = restated(logits, HISTORY, PENALTIES, BIASES)
    apply_edits(logits, edits_of(HISTORY, PENALTIES, BIASES))
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_ids_are_sorted_unique_and_padded_with_the_vocabulary_size() -> None:
    ids = edits_of(HISTORY, PENALTIES, BIASES).ids
    assert ids.tolist()[0] == [0, 3, 7, 10]
    assert ids.tolist()[1] == [VOCAB] * 4


@pytest.mark.parametrize("row", range(len(HISTORY)))
def test_a_row_is_edited_the_same_in_any_batch(row: int) -> None:
    logits = torch.randn(len(HISTORY), VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    alone = logits[row : row + 1].clone()
    apply_edits(logits, edits_of(HISTORY, PENALTIES, BIASES))
    apply_edits(alone, edits_of(HISTORY[row : row + 1], PENALTIES[:, row : row + 1], BIASES[row : row + 1]))
    assert torch.equal(alone[0], logits[row])


@pytest.mark.parametrize("penalty", range(3))
def test_each_penalty_alone_lowers_a_generated_token_and_no_other(penalty: int) -> None:
    penalties = torch.tensor([[1.0], [0.0], [0.0]])
    penalties[penalty] += 0.5
    for value in (1.0, -1.0):
        logits = torch.full((1, VOCAB), value)
        apply_edits(logits, edits_of([[(6, True)]], penalties, [{}]))
        assert logits[0, 6] < value
        assert (logits[0] == value).sum() == VOCAB - 1


def test_prompt_tokens_count_for_repetition_only() -> None:
    logits = torch.ones(1, VOCAB)
    apply_edits(logits, edits_of([[(6, False)]], torch.tensor([[1.0], [0.5], [0.5]]), [{}]))
    assert torch.equal(logits, torch.ones(1, VOCAB))


def test_no_history_and_no_bias_changes_nothing() -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(3))
    before = logits.clone()
    apply_edits(logits, edits_of([[], []], PENALTIES[:, :2], [{}, {}]))
    assert torch.equal(logits, before)
