"""Paged forwards of real transformers modules against the plain ones."""

from array import array

import numpy as np
import pytest
import torch
from tiny import CONFIGS, VOCAB, tiny_model
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.fused_attention import FusedAttention
from trimtab.engine.lm_head import Edit, TappedHead
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.runner import Chunk, ModelRunner


class Row:
    """One sequence run by hand."""

    def __init__(self, runner: ModelRunner, table: PageTable | None = None, tokens: "array[int] | None" = None) -> None:
        self.runner = runner
        self.table = table or PageTable(runner.pool)
        self.tokens = tokens or array("q")

    def prefill(self, tokens: list[int]) -> None:
        self.table.reserve(len(self.tokens) + len(tokens))
        self.runner.prefill([Chunk(self.table, tokens)])
        self.tokens.extend(tokens)
        self.table.stored(self.tokens, len(self.tokens))

    def fork(self) -> "Row":
        return Row(self.runner, self.table.fork(), self.tokens[:])

    def trim(self, length: int) -> None:
        self.table.trim(length)
        del self.tokens[length:]


def decode(rows: list[Row], tokens: list[int]) -> Tensor:
    for row, token in zip(rows, tokens, strict=True):
        row.table.reserve(len(row.tokens) + 1)
        row.tokens.append(token)
    logits = rows[0].runner.decode([Chunk(row.table, [token]) for row, token in zip(rows, tokens, strict=True)]).logits
    for row in rows:
        row.table.stored(row.tokens, len(row.tokens))
    return logits


def ids(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()  # type: ignore[no-any-return]


@pytest.fixture(params=sorted(CONFIGS))
def plain(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@torch.inference_mode()
def fresh(model: PreTrainedModel, tokens: "array[int]") -> Tensor:
    """Last logits of a forward over all tokens, without any cache."""
    return model(input_ids=torch.tensor([tokens.tolist()])).logits[0, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("page_size", [1, 5, 16])
def test_logits_after_fork_trim_and_copy_equal_a_fresh_forward(plain: PreTrainedModel, page_size: int) -> None:
    runner = ModelRunner(tiny_model(plain.config.model_type), PagePool(400, page_size))
    first = Row(runner)
    first.prefill(ids(0, 13))
    first.prefill(ids(1, 8))
    second, third = first.fork(), first.fork()
    other = Row(runner)
    other.prefill(ids(2, 3))
    rows = [first, second, third, other]
    for step in range(7):
        logits = decode(rows, ids(10 + step, 4))
        for row, got in zip(rows, logits, strict=True):
            torch.testing.assert_close(got, fresh(plain, row.tokens), rtol=1e-4, atol=1e-4)
    first.trim(17)
    fourth = first.fork()
    second.table.free()
    found = Row(runner)
    found.table.match(third.tokens)
    assert found.table.length == len(third.tokens) // page_size * page_size
    found.tokens = third.tokens[: found.table.length]
    rows = [found, third, fourth, first, other]
    for step in range(3):
        logits = decode(rows, ids(20 + step, 5))
        for row, got in zip(rows, logits, strict=True):
            torch.testing.assert_close(got, fresh(plain, row.tokens), rtol=1e-4, atol=1e-4)


def test_greedy_tokens_equal_generate_alone_and_in_a_ragged_batch(plain: PreTrainedModel) -> None:
    runner = ModelRunner(tiny_model(plain.config.model_type), PagePool(400, 8))
    prompts = [ids(i, 2 + 7 * i) for i in range(6)]
    plain.generation_config.eos_token_id = None  # the answers go on to their full length
    config = GenerationConfig(max_new_tokens=24, do_sample=False, pad_token_id=0)
    expected = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        out = plain.generate(given, generation_config=config, attention_mask=torch.ones_like(given))
        expected.append(out[0, len(prompt) :].tolist())
    assert len({tuple(answer) for answer in expected}) == len(prompts), "the model must tell its prompts apart"
    assert len({token for answer in expected for token in answer}) > 20, "constant answers would prove little"
    for batch in (*[[i] for i in range(6)], list(range(6))):
        rows = [Row(runner) for _ in batch]
        for row, i in zip(rows, batch, strict=True):
            row.prefill(prompts[i][:-1])
        tokens = [prompts[i][-1] for i in batch]
        answers: list[list[int]] = [[] for _ in batch]
        for _ in range(24):
            tokens = decode(rows, tokens).argmax(-1).tolist()
            for answer, token in zip(answers, tokens, strict=True):
                answer.append(token)
        assert answers == [expected[i] for i in batch]
        for row in rows:
            row.table.free()


def test_prefill_of_a_padded_batch_equals_one_by_one() -> None:
    plain = tiny_model("llama")
    runner = ModelRunner(tiny_model("llama"), PagePool(100, 4))
    rows = [Row(runner) for _ in range(3)]
    prompts = [ids(i, n) for i, n in enumerate((9, 1, 5))]
    for row, prompt in zip(rows, prompts, strict=True):
        row.table.reserve(len(prompt))
    runner.prefill([Chunk(row.table, prompt) for row, prompt in zip(rows, prompts, strict=True)])
    for row, prompt in zip(rows, prompts, strict=True):
        row.tokens.extend(prompt)
        row.table.stored(row.tokens, len(prompt))
    logits = decode(rows, [1, 2, 3])
    for row, got in zip(rows, logits, strict=True):
        torch.testing.assert_close(got, fresh(plain, row.tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "fuses"),
    [("llama", True), ("mistral", True), ("qwen2", True), ("granite", True), ("olmo2", False), ("gpt_neox", False)],
)
def test_attention_of_llamas_form_is_fused_and_no_other(architecture: str, fuses: bool) -> None:
    runner = ModelRunner(tiny_model(architecture), PagePool(50, 4))
    modules = list(runner.model.modules())
    assert any(isinstance(module, FusedAttention) for module in modules) == fuses


def test_attention_that_only_looks_like_llamas_keeps_its_own_module() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.forward = _mirrored(layer.self_attn.forward)
    plain = tiny_model("llama")
    for layer in plain.model.layers:
        layer.self_attn.forward = _mirrored(layer.self_attn.forward)
    runner = ModelRunner(model, PagePool(50, 4))
    assert not any(isinstance(module, FusedAttention) for module in model.modules())
    row = Row(runner)
    row.prefill(ids(0, 9))
    torch.testing.assert_close(decode([row], [5])[0], fresh(plain, row.tokens), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_scrubbed_pages_poison_nobody() -> None:
    plain = tiny_model("llama")
    runner = ModelRunner(tiny_model("llama"), PagePool(8, 4))
    bad = Row(runner)
    bad.prefill(ids(0, 16))
    for layer in runner.store.cache.layers:
        layer.kv.fill_(torch.nan)
    runner.scrub(bad.table.pages)
    bad.table.free()
    row = Row(runner)
    assert row.table.match(bad.tokens) == 0, "what was scrubbed is still found"
    row.prefill(ids(1, 6))
    torch.testing.assert_close(decode([row], [5])[0], fresh(plain, row.tokens), rtol=1e-4, atol=1e-4)


def test_restore_brings_the_plain_modules_back_and_the_pages_go_on(plain: PreTrainedModel) -> None:
    runner = ModelRunner(tiny_model(plain.config.model_type), PagePool(50, 4))
    row = Row(runner)
    row.prefill(ids(0, 9))
    packed = decode([row], [5])[0]
    runner.restore()
    restored = [type(module) for module in runner.model.modules() if not isinstance(module, TappedHead)]
    assert restored == [type(module) for module in plain.modules()]
    for (name, weight), original in zip(runner.model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, original), name
    again = Row(runner, row.table, row.tokens)
    again.trim(9)
    torch.testing.assert_close(decode([again], [5])[0], packed, rtol=1e-4, atol=1e-4)


def _mirrored(forward: object) -> object:
    """An attention with another formula: it adds what Llama's does not."""

    def run(*args: object, **kwargs: object) -> object:
        out, weights = forward(*args, **kwargs)  # type: ignore[operator]
        return -out, weights

    return run


def test_a_model_whose_attention_is_not_plain_is_refused() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.forward = _shifted(layer.self_attn.forward)
    with pytest.raises(ModelLoadError, match="same output"):
        ModelRunner(model, PagePool(20, 4))


def _shifted(forward: object) -> object:
    """An attention whose result depends on the implementation's name, as a feature we do not know would."""

    def run(*args: object, **kwargs: object) -> object:
        out, weights = forward(*args, **kwargs)  # type: ignore[operator]
        attention = forward.__self__.config._attn_implementation  # type: ignore[attr-defined]
        return (out if attention == "trimtab_paged" else out * 3), weights

    return run


def test_tokens_of_one_sequence_in_one_step_see_each_other(plain: PreTrainedModel) -> None:
    runner = ModelRunner(tiny_model(plain.config.model_type), PagePool(200, 4))
    rows = [Row(runner), Row(runner)]
    for row, length in zip(rows, (13, 5), strict=True):
        row.prefill(ids(length, length))
    chunks = [Chunk(row.table, ids(40 + count, count)) for row, count in zip(rows, (5, 2), strict=True)]
    for row, chunk in zip(rows, chunks, strict=True):
        row.table.reserve(len(row.tokens) + len(chunk.tokens))
    logits = iter(runner.decode(chunks).logits)
    for row, chunk in zip(rows, chunks, strict=True):
        for token in chunk.tokens:
            row.tokens.append(token)
            torch.testing.assert_close(next(logits), fresh(plain, row.tokens), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_candidates_at_one_position_equal_separate_forwards(plain: PreTrainedModel) -> None:
    """Several steps: each keeps a candidate that was not the first, or a token that was none."""
    runner = ModelRunner(tiny_model(plain.config.model_type), PagePool(200, 4))
    rows = [Row(runner), Row(runner), Row(runner)]
    for row, length in zip(rows, (13, 5, 7), strict=True):
        row.prefill(ids(length, length))
    rows[2].tokens.append(9)  # a token that no forward has read yet
    for step in range(6):
        candidates = [ids(100 + 3 * step + i, 5 - i) for i in range(3)]
        chunks = [Chunk(row.table, row.tokens[row.table.length :]) for row in rows]
        for row, each in zip(rows, candidates, strict=True):
            row.table.reserve(len(row.tokens) + len(each))
        hidden = runner.score(chunks, candidates)
        for row, each, states in zip(rows, candidates, hidden, strict=True):
            for token, state in zip(each, states, strict=False):
                tokens = torch.tensor([[*row.tokens, token]])
                expected = plain.base_model(input_ids=tokens).last_hidden_state[0, -1]
                torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-4)
        moves = []
        for i, (row, each) in enumerate(zip(rows, candidates, strict=True)):
            end = len(row.tokens)
            row.table.stored(row.tokens, end)
            kept = step % len(each)
            if i == step % 3:
                row.tokens.append(77)
                continue
            row.tokens.append(each[kept])
            moves.append((row.table, end + kept, end))
            row.table.stored(row.tokens, end + 1)
        runner.keep(moves)


@torch.inference_mode()
def test_hidden_edits_change_their_rows_alone(plain: PreTrainedModel) -> None:
    runner = ModelRunner(tiny_model(plain.config.model_type), PagePool(200, 4))
    rows = [Row(runner) for _ in range(3)]
    for row, length in zip(rows, (9, 8, 7), strict=True):
        row.prefill(ids(length, length))
        row.table.reserve(length + 1)
    chunks = [Chunk(row.table, [5]) for row in rows]
    before = runner.decode(chunks)
    out = runner.decode(chunks, [Edit(torch.tensor([2, 0]), lambda hidden: hidden * 2)])
    assert torch.equal(out.hidden, before.hidden)
    assert torch.equal(out.logits[1], before.logits[1])
    torch.testing.assert_close(out.unedited, before.logits[[2, 0]], rtol=1e-5, atol=1e-5)
    doubled = runner.model.get_output_embeddings()(2 * before.hidden[[0, 2]])
    if plain.config.model_type == "granite":
        doubled = doubled / plain.config.logits_scaling
    if plain.config.model_type == "gemma2":
        doubled = 30.0 * torch.tanh(doubled / 30.0)
    torch.testing.assert_close(out.logits[[0, 2]], doubled, rtol=1e-4, atol=1e-4)
