"""Rows of adapters and control vectors in one batch, against models with the change made for good."""

import copy
from collections.abc import Mapping

import pytest
import torch
from device import DEVICE
from factors import logits, merged, prompts, random_factors, relative_error
from tiny import CONFIGS, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.engine import variants
from trimtab.engine.guides.adapters import LowRank
from trimtab.engine.packing import pack
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.runner import Chunk, ModelRunner
from trimtab.engine.variants import MIN_SLOTS, RowTerms, Signature, find_linears
from trimtab.kernels.row_adapters import reference_row_adapters
from trimtab.kernels.row_vectors import reference_row_vectors

HIDDEN, LAYERS = 48, 3
LAYER_PATHS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
ONE, TWO = Variant(adapter="one"), Variant(adapter="two")


def linear_paths(architecture: str) -> str:
    """Part of the paths of some layers, of which at least one is merged with others when packed."""
    return {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}.get(architecture, "v_proj")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gemma", "gpt2", "gpt_neox"])
def test_adapter_rows_equal_merged_weights_and_base_rows_do_not_change(architecture: str, packed: bool) -> None:
    model = tiny_model(architecture)
    one, two = random_factors(model, 4, 0), random_factors(model, 3, 1, only=linear_paths(architecture))
    assert len(one) > len(two) == LAYERS
    ids = prompts(5)
    with_one, with_two = logits(merged(model, one), ids), logits(merged(model, two), ids)
    if packed:
        pack(model)
    plain = logits(model, ids)
    terms = RowTerms(model)
    terms.add_adapter("one", LowRank(one))
    assert torch.equal(logits(model, ids), plain)
    terms.begin([ONE] * 5)
    assert relative_error(logits(model, ids), with_one) < 1e-5
    terms.add_adapter("two", LowRank(two))
    terms.begin([PLAIN, ONE, TWO, PLAIN, ONE])
    got = logits(model, ids)
    assert relative_error(got[[1, 4]], with_one[[1, 4]]) < 1e-5
    assert relative_error(got[2], with_two[2]) < 1e-5
    assert torch.equal(got[[0, 3]], plain[[0, 3]])
    assert relative_error(with_two[2], plain[2]) > 0.01 < relative_error(with_two[2], with_one[2])
    terms.begin([TWO])
    assert relative_error(logits(model, ids[3:4]), with_two[3:4]) < 1e-5
    terms.begin([PLAIN] * 5)
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_bfloat16_adapter_rows_are_as_near_to_float32_as_merged_ones(rows: int, packed: bool) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    factors = random_factors(model, 4, 0)
    ids = prompts(rows, 1)
    exact = logits(merged(copy.deepcopy(model).float(), factors), ids)
    rounded = merged(model, {path: (down.bfloat16(), up.bfloat16()) for path, (down, up) in factors.items()})
    if packed:
        pack(model)
    plain = logits(model, ids)
    terms = RowTerms(model)
    terms.add_adapter("one", LowRank(factors))
    terms.begin([ONE, PLAIN, ONE][:rows])
    got = logits(model, ids)
    assert got.dtype == torch.bfloat16
    assert relative_error(got[::2], exact[::2]) < 1.5 * relative_error(logits(rounded, ids)[::2], exact[::2]) + 0.005
    assert torch.equal(got[1::2], plain[1::2])


@pytest.mark.parametrize("packed", [True, False])
def test_the_runner_mixes_rows_over_pages(packed: bool) -> None:
    model = tiny_model("llama")
    factors = random_factors(model, 4, 0)
    direction = torch.linspace(-1, 1, HIDDEN)
    ids = prompts(3, 6)
    want = [logits(model, ids)[0], logits(merged(model, factors), ids)[1], hooked(model, ids, {1: direction})[2]]
    runner = ModelRunner(model, PagePool(40, 4), packed=packed)
    runner.terms.add_adapter("one", LowRank(factors))
    runner.terms.add_vector("calm", {1: direction})
    variants = [PLAIN, ONE, Variant(vectors=(("calm", 1.0),))]
    tables = [PageTable(runner.pool) for _ in variants]
    for table in tables:
        table.reserve(6)
    rows = list(zip(tables, ids.tolist(), variants, strict=True))
    runner.prefill([Chunk(table, tokens[:3], variant) for table, tokens, variant in rows])
    for table in tables:
        table.length = 3
    got = runner.decode([Chunk(table, tokens[3:], variant) for table, tokens, variant in rows]).logits
    torch.testing.assert_close(got.view(3, 3, -1), torch.stack(want)[:, 3:], rtol=1e-4, atol=1e-4)


def test_a_linear_layer_keeps_its_path_and_shape_when_its_module_is_replaced() -> None:
    model = tiny_model("llama")
    shapes = {path: place.shape for path, place in find_linears(model).items()}
    ModelRunner(model, PagePool(16, 4))
    replaced = {path: place.shape for path, place in find_linears(model).items()}
    assert shapes.items() <= replaced.items()
    assert shapes["model.layers.0.self_attn.k_proj"] == (16, HIDDEN)


def test_rows_that_the_head_reads_again_follow_the_batch() -> None:
    model = tiny_model("llama")
    factors = random_factors(model, 4, 0, only="lm_head")
    head = merged(model, factors).lm_head
    pack(model)
    terms = RowTerms(model)
    terms.add_adapter("one", LowRank(factors))
    hidden = torch.randn(2, 1, HIDDEN, generator=torch.Generator().manual_seed(0))
    plain = model.lm_head(hidden)
    terms.begin([PLAIN, ONE, ONE])
    got = model.lm_head(torch.cat((hidden, hidden[1:])))
    assert torch.equal(got[0], plain[0])
    torch.testing.assert_close(got[1:], head(hidden[1:]).expand(2, -1, -1), rtol=1e-5, atol=1e-5)


def test_a_step_of_plain_rows_costs_nothing() -> None:
    model = tiny_model("llama")
    pack(model)
    terms = RowTerms(model)
    terms.add_adapter("one", LowRank(random_factors(tiny_model("llama"), 4, 0)))
    hosts = [place.host for place in find_linears(model).values()]
    terms.begin([PLAIN, ONE])
    assert all(host.term is not None for host in hosts)
    terms.begin([PLAIN, PLAIN])
    assert all(host.term is None for host in hosts)


@pytest.mark.parametrize("unknown", [ONE, Variant(vectors=(("calm", 1.0),))])
def test_an_unknown_name_is_an_error_every_time(unknown: Variant) -> None:
    terms = RowTerms(tiny_model("llama"))
    for _ in range(2):
        with pytest.raises(KeyError):
            terms.begin([PLAIN, unknown])


# control vectors


def hooked(model: PreTrainedModel, ids: Tensor, added: Mapping[int, Tensor]) -> Tensor:
    """Logits with a vector added to the output of some layers, for all rows."""
    layers = model.get_submodule(LAYER_PATHS.get(model.config.model_type, "model.layers"))
    handles = [
        layers[layer].register_forward_hook(lambda module, args, output, vector=vector: output + vector)
        for layer, vector in added.items()
    ]
    out = logits(model, ids)
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_vector_rows_equal_a_hooked_model(architecture: str) -> None:
    model = tiny_model(architecture)
    generator = torch.Generator().manual_seed(0)
    calm = {layer: torch.randn(HIDDEN, generator=generator) for layer in (0, 2)}
    terse = {layer: torch.randn(HIDDEN, generator=generator) for layer in (1, 2)}
    ids = prompts(5)
    plain = logits(model, ids)
    both = {0: -0.5 * calm[0], 1: 2.0 * terse[1], 2: -0.5 * calm[2] + 2.0 * terse[2]}
    want = [hooked(model, ids, calm)[1], hooked(model, ids, both)[2]]
    terms = RowTerms(model)
    terms.add_vector("calm", calm)
    terms.add_vector("terse", terse)
    assert torch.equal(logits(model, ids), plain)
    rows = [(), (("calm", 1.0),), (("calm", -0.5), ("terse", 2.0)), (("terse", 0.0),), ()]
    terms.begin([Variant(vectors=vectors) for vectors in rows])
    got = logits(model, ids)
    torch.testing.assert_close(got[1:3], torch.stack(want), rtol=1e-5, atol=1e-4)
    assert torch.equal(got[[0, 3, 4]], plain[[0, 3, 4]])
    terms.begin([Variant(vectors=rows[2])])
    assert relative_error(logits(model, ids[2:3])[0], want[1]) < 1e-5  # alone, nothing else in the batch
    terms.begin([PLAIN] * 5)
    assert torch.equal(logits(model, ids), plain)


def test_layers_may_return_tuples() -> None:
    model, ids = tiny_model("llama"), prompts(2)
    direction = torch.linspace(-1, 1, HIDDEN)
    want = hooked(model, ids, {1: 3.0 * direction})
    model.model.layers[1].register_forward_hook(lambda module, args, output: (output, "kept"))
    terms = RowTerms(model)
    terms.add_vector("calm", {1: direction})
    rests = []
    model.model.layers[1].register_forward_hook(lambda module, args, output: rests.append(output[1:]) or output[0])
    terms.begin([Variant(vectors=(("calm", 3.0),))] * 2)
    assert relative_error(logits(model, ids), want) < 1e-6
    assert rests == [("kept",)]


def test_an_adapter_and_a_vector_meet_in_one_row() -> None:
    model, ids = tiny_model("llama"), prompts(2)
    factors, direction = random_factors(model, 4, 0), torch.linspace(-1, 1, HIDDEN)
    want = hooked(merged(model, factors), ids, {1: direction})
    pack(model)
    terms = RowTerms(model)
    terms.add_adapter("one", LowRank(factors))
    terms.add_vector("calm", {1: direction})
    terms.begin([PLAIN, Variant("one", (("calm", 1.0),))])
    assert relative_error(logits(model, ids)[1], want[1]) < 1e-5


# buffers that captured launches read

CALM, TERSE = Variant(vectors=(("calm", 1.0),)), Variant(vectors=(("calm", -0.5), ("terse", 2.0)))
BOTH = Variant("two", (("terse", 1.0),))


def buffered(architecture: str = "llama") -> tuple[PreTrainedModel, RowTerms]:
    """A model with two adapters and two vectors, whose rows' terms run on Triton."""
    model = tiny_model(architecture).to(DEVICE)
    terms = RowTerms(model, "triton")
    terms.reserve(6)
    load(terms, model, linear_paths(architecture))
    return model, terms


def load(terms: RowTerms, model: PreTrainedModel, only: str) -> None:
    terms.add_adapter("one", LowRank(random_factors(model, 4, 0, only)))
    terms.add_adapter("two", LowRank(random_factors(model, 3, 1, only)))
    for name, layers in (("calm", (0, 2)), ("terse", (1, 2))):
        terms.add_vector(name, {layer: torch.linspace(-1, 1, HIDDEN) * (layer + 1) for layer in layers})


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_both_backends_give_the_same_rows(architecture: str) -> None:
    model, terms = buffered(architecture)
    other = tiny_model(architecture)
    on_torch = RowTerms(other, "torch")
    load(on_torch, other, linear_paths(architecture))
    ids = prompts(6)
    for rows in ([ONE, PLAIN, CALM, TERSE, BOTH, TWO], [PLAIN, ONE], [CALM, PLAIN, PLAIN], [PLAIN], [BOTH]):
        terms.begin(rows)
        on_torch.begin(rows)
        got = logits(model, ids[: len(rows)].to(DEVICE)).cpu()
        assert relative_error(got, logits(other, ids[: len(rows)])) < 1e-5


def test_recorded_launches_are_right_for_other_rows_of_the_same_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    model, terms = buffered()
    recorded = []
    for name in ("add_row_adapters", "add_row_vectors"):
        operator = getattr(variants, name)
        monkeypatch.setattr(
            variants, name, lambda *args, call=operator: recorded.append((call, args[1:], args[0])) or call(*args)
        )
    first = [ONE, CALM, PLAIN, TWO]
    terms.begin(first)
    signature = terms.signature
    logits(model, prompts(4).to(DEVICE))
    assert len(recorded) == LAYERS + LAYERS  # one projection and one vector for each layer
    for rows in ([TERSE, PLAIN, BOTH, ONE], [BOTH, CALM], [BOTH, CALM, TERSE, ONE], first):
        terms.begin(rows)
        assert terms.signature == signature
        padded = [*rows, *[PLAIN] * (4 - len(rows))]
        numbers = torch.tensor([{None: -1, "one": 0, "two": 1}[row.adapter] for row in padded], dtype=torch.int32)
        moved = torch.zeros(4, dtype=torch.bool)
        for call, args, written in recorded:
            target = torch.zeros(written.shape, device=DEVICE)
            got = call(target.clone(), *args).cpu()
            if call.__name__ == "add_row_adapters":
                assert torch.equal(args[2].index[:4].cpu(), numbers)
                torch.testing.assert_close(
                    got.double(), reference_row_adapters(target, *args[:3]).cpu(), rtol=1e-5, atol=1e-5
                )
            else:
                torch.testing.assert_close(got.double(), reference_row_vectors(target, *args[:2]).cpu())
                moved |= got.flatten(1).any(dim=1)
        assert moved.tolist() == [row in (CALM, TERSE, BOTH) for row in padded]


def test_the_signature_changes_with_what_is_launched() -> None:
    model, terms = buffered()

    def signature(*rows: Variant) -> Signature:
        terms.begin(rows)
        assert terms.signature is not None
        return terms.signature

    assert signature(PLAIN, PLAIN) == Signature()
    adapters, vectors = signature(ONE, PLAIN), signature(PLAIN, CALM)
    assert adapters.adapters > 0 == adapters.vectors
    assert vectors.vectors > 0 == vectors.adapters
    assert signature(PLAIN, TWO, ONE) == adapters
    assert signature(TERSE) == vectors
    assert signature(BOTH) == signature(ONE, CALM) == Signature(adapters.adapters, vectors.vectors)
    terms.add_adapter("three", LowRank(random_factors(model, 2, 2, only="o_proj")))
    assert terms.signature == Signature()
    more = signature(ONE)
    assert more.adapters > adapters.adapters
    assert signature(CALM) == vectors
    terms.add_vector("warm", {0: torch.ones(HIDDEN)})
    assert signature(CALM).vectors > vectors.vectors
    assert signature(ONE) == more
    longer = signature(*[ONE] * 7)  # more than was reserved
    assert longer.adapters > more.adapters
    assert signature(*[PLAIN] * 9) == Signature()


def test_combinations_of_vectors_come_and_go() -> None:
    model, terms = buffered()
    ids, ramp = prompts(1).to(DEVICE), torch.linspace(-1, 1, HIDDEN)

    def scaled(scale: float) -> Variant:
        return Variant(vectors=(("calm", scale),))

    def check(scale: float, *others: float) -> None:
        terms.begin([scaled(scale), *map(scaled, others)])
        got = logits(model, ids.expand(1 + len(others), -1))[:1].cpu()
        want = hooked(tiny_model("llama"), ids.cpu(), {layer: scale * (layer + 1) * ramp for layer in (0, 2)})
        assert relative_error(got, want) < 1e-5

    check(1.0, 2.0)
    first = terms.signature
    for scale in range(2, 2 * MIN_SLOTS):
        check(scale, scale + 1)
    for scale in range(1, 2 * MIN_SLOTS):  # whose slots went to others
        check(scale)
    assert terms.signature == first
    with pytest.raises(KeyError):
        terms.begin([scaled(100.0), Variant(vectors=(("unknown", 1.0),))])
    check(1.0)
    terms.begin([scaled(scale) for scale in range(MIN_SLOTS + 1)])
    assert terms.signature != first


def test_without_triton_only_plain_rows_can_be_captured() -> None:
    model = tiny_model("llama")
    terms = RowTerms(model, "torch")
    load(terms, model, "v_proj")
    none = Signature()
    for rows, signature in (([PLAIN], none), ([ONE], None), ([PLAIN, CALM], None), ([PLAIN, PLAIN], none)):
        terms.begin(rows)
        assert terms.signature == signature
