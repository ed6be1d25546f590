"""Hot linear layers of a transformers model, repacked for the matrix kernels of the CPU.

Most of a decode step is matrix products with few rows. oneDNN reads a weight that it has reordered once much
faster than a plain one, and one merged product is faster than two or three narrow ones. `pack` swaps leaf
modules only, so the model's own source runs unchanged, and `Packing.restore` undoes it to the bit.

| weights  | CPU                          | rows > 1                       | one row              |
|----------|------------------------------|--------------------------------|----------------------|
| float32  | x86 with AVX2                | packed float32                 | packed float32       |
| bfloat16 | oneDNN has bfloat16 kernels  | packed bfloat16                | packed bfloat16      |
| bfloat16 | it has none                  | packed float32, output rounded | plain bfloat16       |
| others   | and every other device       | plain                          | plain                |

In the third line the plain weight stays, because one row is bound by memory and bfloat16 is half the bytes;
the widened products are exact, so the answer is that of a bfloat16 product with float32 accumulation.
A row's result does not depend on the other rows beyond float rounding.
"""

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trimtab.engine.fusing import fused_norm

Plain = nn.Linear | Conv1D

# Children of these names usually read the same input; where they do not, the results are still right (see
# `PackedMatmul.part`), only slower.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

# The layout that oneDNN picks for 8 rows or more serves every row count; its choice for 1 row is slow at 8.
ROWS_HINT = 32


def packed_dtype(weight: Tensor) -> torch.dtype | None:
    """Dtype that the packed copy of `weight` has on this machine; None where the plain product is used."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return None
    if weight.dtype == torch.bfloat16:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.float32 if weight.dtype == torch.float32 else None


class PackedMatmul:
    """One packed weight for one linear layer, or for several that read the same input one after another.

    `weights` are `(out, in)` each with one `in`; `biases` has as many entries or none.
    """

    def __init__(
        self, weights: list[Tensor], biases: list[Tensor], dtype: torch.dtype, *, plain_row: bool = False
    ) -> None:
        merged = torch.cat(weights) if len(weights) > 1 else weights[0]
        bias = torch.cat(biases) if biases else None
        self.sizes = [weight.shape[0] for weight in weights]
        self.inner = merged.shape[1]
        self.dtype = dtype
        # Adds to the product `y` of `x`, in `dtype`, what rows of adapters have beyond it; None in plain steps.
        self.term: Callable[[Tensor, Tensor], Tensor] | None = None
        self.row_weight = merged if plain_row else None  # what one-row products use instead of the packed copy
        self.row_bias = bias
        self.bias = None if bias is None else bias.to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(merged.to(dtype), ROWS_HINT)
        # Input, its version, and the parts that siblings have yet to fetch. One tuple, so that a thread that
        # reads it while another replaces it sees either state whole.
        self._pending: tuple[Tensor, int, dict[int, Tensor]] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Products with all weights side by side: `(..., in)` to `(..., sum of out)`, in the dtype of `x`."""
        if self.row_weight is not None and x.numel() == x.shape[-1]:
            row = x.reshape(-1)  # a matrix-vector product skips the checks of a matrix product with one row
            if self.row_bias is None:
                y = torch.mv(self.row_weight, row).view(*x.shape[:-1], -1)
            else:
                y = torch.addmv(self.row_bias, self.row_weight, row).view(*x.shape[:-1], -1)
        else:
            y = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        if self.term is not None:
            y = self.term(x, y)
        return y.to(x.dtype)

    def part(self, x: Tensor, index: int) -> Tensor:
        """Product with weight `index`: the first sibling computes all, the next ones fetch theirs.

        A part is fetched once and only for the same tensor object, which is held until then so that its
        identity cannot be reused; every other call computes anew. A write into `x` between siblings is noticed,
        except in inference mode, where tensors count no versions.
        """
        if len(self.sizes) == 1:
            return self(x)
        version = -1 if x.is_inference() else x._version
        pending = self._pending
        if pending is not None and pending[0] is x and pending[1] == version:
            ready = pending[2].pop(index, None)
            if not pending[2]:
                self._pending = None
            if ready is not None:
                return ready
        parts = dict(enumerate(self(x).split(self.sizes, dim=-1)))
        mine: Tensor = parts.pop(index)
        self._pending = (x, version, parts)
        return mine

    def unpacked(self) -> list[Tensor]:
        """The plain weights again, `(out, in)` each, exact."""
        dense: Tensor = self.weight.to_dense()
        return [rows.clone() for rows in dense.split(self.sizes)]


class PackedLinear(nn.Module):
    """Stands in for one `nn.Linear` or `Conv1D`."""

    def __init__(self, matmul: PackedMatmul, index: int) -> None:
        super().__init__()
        self.matmul = matmul
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        return self.matmul.part(x, self.index)

    def extra_repr(self) -> str:
        return f"out_features={self.matmul.sizes[self.index]}, packed={self.matmul.dtype}"


@dataclass(frozen=True)
class PackedGroup:
    """The children of `parent` that one matmul replaced; their weights are empty unless something still reads them."""

    matmul: PackedMatmul
    parent: nn.Module
    plains: dict[str, Plain]

    def restore(self) -> None:
        for (name, plain), weight in zip(self.plains.items(), self.matmul.unpacked(), strict=True):
            if plain.weight.numel() == 0:
                weight = weight.t().contiguous() if isinstance(plain, Conv1D) else weight
                plain.weight.data = weight.to(plain.weight.dtype)
            setattr(self.parent, name, plain)


@dataclass(frozen=True)
class FusedChild:
    """A module (a norm, an attention) that was replaced by its fused form."""

    parent: nn.Module
    name: str
    plain: nn.Module

    def restore(self) -> None:
        setattr(self.parent, self.name, self.plain)


class Packing:
    """What `pack` replaced in one model."""

    def __init__(self) -> None:
        self.replaced: list[PackedGroup | FusedChild] = []

    @torch.inference_mode(False)
    def restore(self) -> None:
        """Puts every plain module back, weights equal to the bit; a second call does nothing.

        Methods that need gradients or write weights call this first; `pack` may follow again.
        """
        while self.replaced:
            self.replaced.pop().restore()


@torch.inference_mode(False)
def pack(model: nn.Module) -> Packing:
    """Replaces linear layers and RMS norms of `model` in place by faster ones, where this machine has them.

    Works layer by layer and drops each plain weight at once, so memory peaks one layer above the end state.
    A module stays as it is on other devices and dtypes, with forward hooks, of another class than `nn.Linear`
    and transformers' `Conv1D`, or registered in two places; a weight shared with an embedding stays there.
    For inference only: packed weights are constants and are missing from `parameters()`.
    """
    packing = Packing()
    modules = list(model.modules())
    places = Counter(id(child) for module in modules for child in module._modules.values())
    owners = Counter(id(weight) for module in modules for weight in module._parameters.values())
    for parent in modules:
        children = {n: c for n, c in parent.named_children() if places[id(c)] == 1 and not _hooked(c)}
        for plains in _groups({n: c for n, c in children.items() if _packable(c)}):
            packing.replaced.append(_pack_group(parent, plains, owners))
        for name, child in children.items():
            norm = fused_norm(child)
            if norm is not None:
                setattr(parent, name, norm)
                packing.replaced.append(FusedChild(parent, name, child))
    _release_freed_memory()
    return packing


def _release_freed_memory() -> None:
    """Hand freed memory back to the system: glibc would keep much of the dropped weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _packable(module: nn.Module) -> TypeGuard[Plain]:
    # Subclasses may compute something else.
    return type(module) in (nn.Linear, Conv1D) and packed_dtype(cast(Plain, module).weight) is not None


def _groups(linears: dict[str, Plain]) -> list[dict[str, Plain]]:
    """Splits one module's linear children into those to pack together: siblings of one input width, dtype and bias."""
    kinds = {n: (type(c), _by_row(c).shape[1], c.weight.dtype, _bias(c) is None) for n, c in linears.items()}
    groups: list[tuple[str, ...]] = [names for names in SIBLINGS if len({kinds.get(name, name) for name in names}) == 1]
    merged = {name for names in groups for name in names}
    groups += [(name,) for name in linears if name not in merged]
    return [{name: linears[name] for name in names} for names in groups]


def _pack_group(parent: nn.Module, plains: dict[str, Plain], owners: Counter[int]) -> PackedGroup:
    first = next(iter(plains.values()))
    dtype = packed_dtype(first.weight)
    assert dtype is not None
    biases = [bias.detach() for bias in map(_bias, plains.values()) if bias is not None]
    # A transposed bfloat16 row product is slow.
    plain_row = dtype != first.weight.dtype and isinstance(first, nn.Linear)
    matmul = PackedMatmul([_by_row(plain) for plain in plains.values()], biases, dtype, plain_row=plain_row)
    for index, (name, plain) in enumerate(plains.items()):
        setattr(parent, name, PackedLinear(matmul, index).train(plain.training))
        if owners[id(plain.weight)] == 1:
            plain.weight.data = plain.weight.new_empty(0)
    return PackedGroup(matmul, parent, plains)


def _by_row(plain: Plain) -> Tensor:
    """The weight as `(out, in)`."""
    weight = plain.weight.detach()
    return weight.t() if isinstance(plain, Conv1D) else weight


def _bias(plain: Plain) -> Tensor | None:
    return cast("Tensor | None", plain.bias)  # torch's annotation leaves the None out
