"""Adapters whose blocks rows scale: against merged weights, in mixed batches, in buffers that stay, from folders."""

import json
from pathlib import Path

import pytest
import torch
from again import Again
from device import DEVICE
from factors import Factors, logits, merged, prompts, random_factors, relative_error
from folders import adapter_folder
from safetensors.torch import load_file, save_file
from tiny import VOCAB, tiny_folder, tiny_model

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.adapters import LowRank, load_lora
from trimtab.engine.packing import pack
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.runner import Chunk, ModelRunner
from trimtab.engine.variants import RowTerms, Signature

BLOCKS = {"general": 1, "brevity": 2, "candour": 1}
ONE = Variant("one")


def scaled(*scales: float) -> Variant:
    return Variant("one", scales=scales)


def weighed(factors: Factors, scales: tuple[float, ...]) -> Factors:
    """The same adapter with the scales in its factors."""
    spread = [scale for scale, size in zip(scales, BLOCKS.values(), strict=True) for _ in range(size)]
    return {path: (down * torch.tensor(spread)[:, None], up) for path, (down, up) in factors.items()}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rows_equal_merged_weights_alone_and_in_mixed_batches(architecture: str, packed: bool) -> None:
    """Packed, three products of llama are one, whose stacks hold the rank dimensions of each."""
    model = tiny_model(architecture)
    one, two = random_factors(model, 4, 0), random_factors(model, 3, 1)
    ids = prompts(6)
    weights = [(1.0, 0.25, 0.75), (0.5, 0.0, 2.0)]
    want = [logits(merged(model, weighed(one, each)), ids) for each in weights]
    if packed:
        pack(model)
    plain = logits(model, ids)
    terms = RowTerms(model)
    terms.add_adapter("two", LowRank(two))
    terms.add_adapter("one", LowRank(one, blocks=BLOCKS))
    terms.begin([ONE, Variant("two")] * 3)
    unscaled = logits(model, ids)
    terms.begin([scaled(*weights[0]), PLAIN, scaled(*weights[1]), Variant("two"), ONE, scaled(1.0, 1.0, 1.0)])
    got = logits(model, ids)
    for row, expected in ((0, want[0]), (2, want[1])):
        assert relative_error(got[row], expected[row]) < 1e-5
    assert relative_error(want[0], want[1]) > 0.01
    assert torch.equal(got[1], plain[1])
    torch.testing.assert_close(got[3:5], unscaled[[3, 4]], rtol=1e-5, atol=1e-5)
    terms.begin([ONE] * 6)
    torch.testing.assert_close(got[5], logits(model, ids)[5], rtol=1e-5, atol=1e-5)
    terms.begin([scaled(*weights[1])])
    torch.testing.assert_close(logits(model, ids[2:3])[0], got[2], rtol=1e-5, atol=1e-5)


def test_scale_one_is_the_adapter_and_scale_zero_the_base() -> None:
    model, ids = tiny_model("llama"), prompts(3)
    plain = logits(model, ids)
    terms = RowTerms(model)
    terms.add_adapter("one", LowRank(random_factors(model, 4, 0), blocks=BLOCKS))
    terms.begin([ONE] * 3)
    whole = logits(model, ids)
    terms.begin([scaled(1.0, 1.0, 1.0)] * 3)
    assert torch.equal(logits(model, ids), whole)
    terms.begin([scaled(0.0, 0.0, 0.0)] * 3)
    assert torch.equal(logits(model, ids), plain)
    terms.remove("one")
    terms.begin([PLAIN] * 3)
    assert torch.equal(logits(model, ids), plain)


def buffered() -> tuple[RowTerms, RowTerms]:
    """The same terms on Triton and on torch, of models of their own."""
    made = []
    for backend in ("triton", "torch"):
        model = tiny_model("llama").to(DEVICE)
        terms = RowTerms(model, backend)  # type: ignore[arg-type]
        terms.reserve(4)
        terms.add_adapter("two", LowRank(random_factors(tiny_model("llama"), 3, 1, "v_proj")))
        terms.add_adapter("one", LowRank(random_factors(tiny_model("llama"), 4, 5, "v_proj"), blocks=BLOCKS))
        made.append(terms)
    return made[0], made[1]


def test_scales_lie_in_a_buffer_that_stays() -> None:
    terms, on_torch = buffered()
    ids = prompts(4).to(DEVICE)

    def check(*rows: Variant) -> Signature:
        for each in (terms, on_torch):
            each.begin(rows)
        got, want = (logits(each._model, ids[: len(rows)]) for each in (terms, on_torch))
        assert relative_error(got, want) < 1e-5
        assert terms.signature is not None
        return terms.signature

    plain = check(ONE, PLAIN)
    assert plain.scales == 0 < plain.adapters
    first = check(scaled(1.0, 0.5, 0.5), PLAIN, ONE, Variant("two"))
    assert first.adapters == plain.adapters
    assert first.scales > 0
    buffer = terms._scales.data_ptr()
    for rows in ([ONE, scaled(0.0, 1.0, 0.0)], [scaled(2.0, 0.1, 0.3)] * 4, [Variant("two"), scaled(1.0, 0.0, 1.0)]):
        assert check(*rows) == first
    assert check(ONE, Variant("two")) == plain
    assert terms._scales.data_ptr() == buffer
    assert check(*[scaled(1.0, 0.0, 1.0)] * 4) == first
    wider = LowRank(random_factors(tiny_model("llama"), 7, 6, "v_proj"), blocks={"general": 1, "a": 3, "b": 3})
    for each in (terms, on_torch):
        each.add_adapter("wide", wider)
    assert check(scaled(1.0, 0.5, 0.5), Variant("wide", scales=(1.0, 0.2, 0.8))).scales > first.scales


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_paged_rows_equal_the_merged_model(backend: str) -> None:
    model = tiny_model("llama")
    factors, ids = random_factors(model, 4, 0), prompts(2, 6)
    weights = [(1.0, 0.25, 0.75), (1.0, 0.75, 0.25)]
    want = torch.stack([logits(merged(model, weighed(factors, w)), ids)[row] for row, w in enumerate(weights)])
    runner = ModelRunner(model.to(DEVICE), PagePool(40, 4), backend=backend)  # type: ignore[arg-type]
    runner.terms.add_adapter("one", LowRank(factors, blocks=BLOCKS))
    tables = [PageTable(runner.pool, scaled(*w).salt) for w in weights]
    for table in tables:
        table.reserve(6)
    rows = list(zip(tables, ids.tolist(), [scaled(*w) for w in weights], strict=True))
    runner.prefill([Chunk(table, tokens[:3], variant) for table, tokens, variant in rows])
    for table in tables:
        table.length = 3
    got = runner.decode([Chunk(table, tokens[3:], variant) for table, tokens, variant in rows]).logits
    torch.testing.assert_close(got.view(2, 3, -1).cpu(), want[:, 3:], rtol=1e-4, atol=1e-4)
    assert got.shape[1] == VOCAB


def test_a_captured_forward_is_replayed_for_other_scales() -> None:
    model, capture = tiny_model("llama"), Again()
    factors, ids = random_factors(model, 4, 0, "v_proj"), prompts(2, 4)
    weights = [(1.0, 0.25, 0.75), (1.0, 1.0, 0.0), (0.5, 0.0, 2.0), (1.0, 1.0, 1.0)]
    want = [logits(merged(model, weighed(factors, each)), ids)[0, -1] for each in weights]
    plain = logits(model, ids)[1, -1]
    runner = ModelRunner(model.to(DEVICE), PagePool(40, 4), graph_rows=2, capture=capture, backend="triton")
    runner.terms.add_adapter("one", LowRank(factors, blocks=BLOCKS))
    for each, expected in zip(weights, want, strict=True):
        tables = [PageTable(runner.pool), PageTable(runner.pool)]
        rows = list(zip(tables, ids.tolist(), (scaled(*each), PLAIN), strict=True))
        for table in tables:
            table.reserve(4)
        runner.prefill([Chunk(table, tokens[:3], variant) for table, tokens, variant in rows])
        for table in tables:
            table.length = 3
        got = runner.decode([Chunk(table, tokens[3:], variant) for table, tokens, variant in rows]).logits.cpu()
        torch.testing.assert_close(got, torch.stack((expected, plain)), rtol=1e-4, atol=1e-4)
        for table in tables:
            table.free()
    assert (capture.warmed, capture.captured, capture.replayed) == (1, 1, 3)


def test_pages_of_other_scales_are_other_pages() -> None:
    variants = [PLAIN, ONE, scaled(1.0, 0.5, 0.5), scaled(1.0, 0.5, 0.25), scaled(0.5, 0.5, 0.5)]
    assert len({each.salt for each in variants}) == len(variants)
    assert scaled(1.0, 0.5, 0.5).salt == scaled(1.0, 0.5, 0.5).salt


# folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapters")
    return adapter_folder(place / "tune", tiny_folder(place / "base"), seed=3)


def divided(folder: Path, told: object) -> Path:
    (folder / "preference_blocks.json").write_text(told if isinstance(told, str) else json.dumps(told))
    return folder


def test_a_folder_says_what_its_dimensions_are_for(folder: Path) -> None:
    model = tiny_model("llama")
    (rank,) = {len(down) for down, _ in load_lora(folder, model).factors.values()}
    whole = load_lora(folder, model)
    assert (whole.blocks, whole.attributes, whole.even) == ({}, (), ())
    adapter = load_lora(divided(folder, {"general": rank - 2, "blocks": {"warmth": 1, "brevity": 1}}), model)
    assert adapter.blocks == {"general": rank - 2, "warmth": 1, "brevity": 1}
    assert adapter.attributes == ("warmth", "brevity")
    assert adapter.even == (1.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("{", "no readable preference_blocks.json: write it as"),
        ({"general": 1}, "no readable preference_blocks.json"),
        ({"general": 1, "blocks": {}}, "no readable preference_blocks.json"),
        ({"general": 1, "blocks": {"a": 0}}, "no readable preference_blocks.json"),
        ({"general": 1, "blocks": {"a": 1}, "more": 1}, "no readable preference_blocks.json"),
        ({"general": 1, "blocks": {"general": 1}}, "a block called general"),
        ({"general": 1, "blocks": {"a": 40}}, r"has rank \d+ where its preference_blocks.json divides 41"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder: Path, told: object, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_lora(divided(folder, told), tiny_model("llama"))


def test_layers_of_other_ranks_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    for name in tensors:
        if "layers.0.self_attn.v_proj" in name:
            tensors[name] = tensors[name][:1] if "lora_A" in name else tensors[name][:, :1].contiguous()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config["rank_pattern"] = {"layers.0.self_attn.v_proj": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"has rank 1, \d+ where"):
        load_lora(divided(tmp_path, {"general": 0, "blocks": {"a": 1}}), tiny_model("llama"))
