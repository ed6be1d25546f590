"""Packed and fused leaf modules against the plain ones that they replace."""

import copy

import pytest
import torch
from tiny import VOCAB, tiny_model
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from trimtab.engine.fusing import FusedRMSNorm, fused_norm
from trimtab.engine.packing import SIBLINGS, PackedLinear, PackedMatmul, pack, packed_dtype

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma"]
SHAPES = [(1, 1), (2, 1), (7, 1), (1, 13), (3, 5)]
pytestmark = pytest.mark.skipif(packed_dtype(torch.zeros(1, 1)) is None, reason="this CPU has no packed kernels")


def logits(model: nn.Module, shape: tuple[int, int]) -> Tensor:
    ids = torch.arange(shape[0] * shape[1]).view(shape) * 7 % VOCAB
    with torch.inference_mode():
        out: Tensor = model(ids, use_cache=False).logits
    return out


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.float() - want.float()).norm() / want.float().norm()).item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_float32_logits_equal_the_plain_ones(architecture: str) -> None:
    model = tiny_model(architecture)
    want = [logits(model, shape) for shape in SHAPES]
    pack(model)
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    for shape, plain in zip(SHAPES, want, strict=True):
        assert relative_error(logits(model, shape), plain) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_bfloat16_is_as_near_to_float32_as_the_plain_model(architecture: str) -> None:
    # The two round at different places, so neither can be held to the other's bits.
    model = tiny_model(architecture, dtype=torch.bfloat16)
    exact = copy.deepcopy(model).float()
    errors = [relative_error(logits(model, shape), logits(exact, shape)) for shape in SHAPES]
    pack(model)
    for shape, plain in zip(SHAPES, errors, strict=True):
        got = logits(model, shape)
        assert got.dtype == torch.bfloat16
        assert relative_error(got, logits(exact, shape)) < 1.5 * plain + 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_restore_is_exact_and_packing_may_follow_again(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture, dtype=dtype)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    want = logits(model, (3, 5))
    packing = pack(model)
    packed = logits(model, (3, 5))
    with torch.inference_mode():  # restored weights must be able to take gradients even so
        packing.restore()
    packing.restore()
    assert [type(module) for module in model.modules()] == modules
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, (3, 5)), want)
    model.requires_grad_(True)
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    model.requires_grad_(False)
    pack(model)
    assert torch.equal(logits(model, (3, 5)), packed)


def test_a_tied_head_leaves_the_embedding_and_is_tied_again() -> None:
    model = tiny_model("llama")
    table = model.model.embed_tokens.weight
    model.lm_head.weight = table
    before, want = table.clone(), logits(model, (2, 3))
    packing = pack(model)
    assert isinstance(model.lm_head, PackedLinear)
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert relative_error(logits(model, (2, 3)), want) < 1e-5
    packing.restore()
    assert model.lm_head.weight is model.model.embed_tokens.weight is table


def test_float32_packing_drops_the_plain_weights() -> None:
    model = tiny_model("llama")
    plains = [module for module in model.modules() if isinstance(module, nn.Linear)]
    pack(model)
    assert len(plains) == 22
    assert all(plain.weight.numel() == 0 for plain in plains)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (5, 7), (65, 33), (96, 17)])
def test_odd_sizes(inner: int, outer: int, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parent = nn.ModuleDict({"one": nn.Linear(inner, outer, bias=bias, dtype=dtype)}).requires_grad_(False)
    parent["transposed"] = Conv1D(outer, inner).to(dtype).requires_grad_(False)
    inputs = [torch.randn(shape, dtype=dtype) for shape in [(inner,), (1, 1, inner), (2, 3, inner), (0, 1, inner)]]
    # The exact answers, rounded once.
    exact = parent["one"].bias.double() if bias else None
    want = [functional.linear(x.double(), parent["one"].weight.double(), exact).to(dtype) for x in inputs]
    want_transposed = [(x.double() @ parent["transposed"].weight.double()).to(dtype) for x in inputs]
    pack(parent)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for x, plain, plain_transposed in zip(inputs, want, want_transposed, strict=True):
        torch.testing.assert_close(parent["one"](x), plain, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(parent["transposed"](x), plain_transposed, rtol=tolerance, atol=tolerance)


def test_a_row_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    matmul = PackedMatmul([torch.randn(40, 72)], [], torch.float32)
    x = torch.randn(64, 72)
    for rows in (1, 2, 9, 33, 64):
        torch.testing.assert_close(matmul(x[:rows]), x[:rows] @ matmul.unpacked()[0].T, rtol=1e-5, atol=1e-5)


class Attention(nn.Module):
    """Three siblings with distinct weights; each test calls them as it likes."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        for name, width in zip(SIBLINGS[0], (12, 4, 6), strict=True):
            setattr(self, name, nn.Linear(8, width, bias=bias))


@pytest.fixture
def plain() -> Attention:
    torch.manual_seed(0)
    return Attention().requires_grad_(False)


@pytest.fixture
def merged(plain: Attention) -> Attention:
    attention = copy.deepcopy(plain)
    assert len(pack(attention).replaced) == 1
    return attention


A, B = torch.linspace(-1, 1, 16).view(2, 8), torch.linspace(3, -2, 16).view(2, 8)


@pytest.mark.parametrize(
    "calls",
    [
        [("q_proj", A), ("k_proj", A), ("v_proj", A)],
        [("v_proj", A), ("q_proj", A), ("k_proj", A)],
        [("q_proj", A), ("q_proj", A), ("k_proj", A), ("k_proj", A)],
        [("q_proj", A), ("k_proj", B), ("v_proj", A)],
        # two layers' worth of calls interleaved, as two threads would
        [("q_proj", A), ("q_proj", B), ("k_proj", A), ("k_proj", B), ("v_proj", B), ("v_proj", A)],
        [("q_proj", A), ("k_proj", A), ("q_proj", B), ("v_proj", A), ("k_proj", B), ("v_proj", B)],
    ],
)
def test_siblings_are_right_in_any_order(plain: Attention, merged: Attention, calls: list[tuple[str, Tensor]]) -> None:
    for name, x in calls:
        torch.testing.assert_close(getattr(merged, name)(x), getattr(plain, name)(x), rtol=1e-5, atol=1e-6)


def test_siblings_compute_once_and_let_go_of_the_input(merged: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, products = merged.q_proj.matmul, []
    once = PackedMatmul.__call__
    monkeypatch.setattr(PackedMatmul, "__call__", lambda self, x: products.append(x) or once(self, x))
    for name in SIBLINGS[0]:
        getattr(merged, name)(A)
    assert len(products) == 1
    assert matmul._pending is None


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_a_term_is_added_to_the_merged_product_in_its_own_dtype(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(bias=bias).bfloat16().requires_grad_(False)
    x = A[:rows].bfloat16()
    want = [getattr(attention, name)(x).float() for name in SIBLINGS[0]]
    pack(attention)
    matmul = attention.q_proj.matmul
    term = torch.linspace(-1, 1, 22)
    seen = []
    matmul.term = lambda x, y: seen.append((x, y.shape)) or y.to(matmul.dtype) + term
    for name, plain, part in zip(SIBLINGS[0], want, term.split(matmul.sizes), strict=True):
        got = getattr(attention, name)(x)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), plain + part, rtol=0.02, atol=0.02)
    assert [(each is x, shape) for each, shape in seen] == [(True, (rows, 22))]


def test_a_write_between_siblings_is_seen(plain: Attention, merged: Attention) -> None:
    x = A.clone()
    merged.q_proj(x)
    x += 1
    torch.testing.assert_close(merged.k_proj(x), plain.k_proj(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("odd", [nn.Linear(9, 4), nn.Linear(8, 4, bias=False), nn.Linear(8, 4, dtype=torch.bfloat16)])
def test_unequal_siblings_are_packed_apart(plain: Attention, odd: nn.Linear) -> None:
    plain.k_proj = odd.requires_grad_(False)
    assert len(pack(plain).replaced) == 3


def test_what_may_not_be_packed_stays(plain: Attention) -> None:
    hooked, shared, half = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float16)
    hooked.register_forward_hook(lambda module, args, out: out)

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    children = [hooked, Scaled(4, 4), half, nn.ModuleList([shared]), shared]
    model = nn.ModuleList(children)
    assert pack(model).replaced == []
    assert list(model) == children


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_probe_takes_llama_and_leaves_gemma(dtype: torch.dtype) -> None:
    llama = LlamaRMSNorm(24).to(dtype).requires_grad_(False)
    gemma = GemmaRMSNorm(24).to(dtype).requires_grad_(False)
    for norm in (llama, gemma):
        norm.weight.copy_(torch.linspace(0.5, 2.0, 24))
    fused = fused_norm(llama)
    assert isinstance(fused, FusedRMSNorm)
    assert fused.weight is llama.weight
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(fused(x), llama(x), rtol=torch.finfo(dtype).eps * 4, atol=1e-7)
    assert fused_norm(gemma) is None


def test_the_norm_probe_sees_where_eps_stands() -> None:
    class OutsideRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return self.weight * hidden_states / (hidden_states.pow(2).mean(-1, keepdim=True).sqrt() + 1e-6)

    class GatedRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
            return super().forward(hidden_states)

    assert fused_norm(OutsideRMSNorm(8)) is None
    assert fused_norm(GatedRMSNorm(8)) is None
