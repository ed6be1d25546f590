"""What sets the rows of one forward apart: low-rank adapters and control vectors, over one set of weights.

A row of an adapter computes W x + B A x (LoRA, arXiv 2106.09685), or W x + B diag(s) A x with scales s for the blocks
that the adapter's rank dimensions fall into (Panacea, arXiv 2402.02030). A row with control vectors adds them to the
output of decoder layers (representation engineering, arXiv 2310.01405, in the convention of repeng and llama.cpp).
Nothing of the model is switched: each step says which row is what, and a step of plain rows computes nothing more.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.fused_attention import FusedAttention
from trimtab.engine.lm_head import TappedHead
from trimtab.engine.packing import SIBLINGS, PackedLinear, PackedMatmul, Plain
from trimtab.engine.plan import PLAIN, Variant
from trimtab.kernels.backend import Backend, use_triton
from trimtab.kernels.row_adapters import AdapterRows, AdapterStacks, add_row_adapters
from trimtab.kernels.row_vectors import add_row_vectors

if TYPE_CHECKING:
    from trimtab.engine.guides.adapters import LowRank

Vectors = tuple[tuple[str, float], ...]

MIN_SLOTS = 4
"""combinations of vectors that the first buffers hold; more in one batch make buffers anew, twice as long"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the weight of one linear layer lies: on its own, or among the merged ones of a packed product."""

    host: PackedMatmul | Plain
    index: int = 0

    @property
    def sizes(self) -> list[int]:
        """Output widths of all layers of the host, in order."""
        if isinstance(self.host, PackedMatmul):
            return self.host.sizes
        return [self.host.out_features if isinstance(self.host, nn.Linear) else self.host.nf]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of this layer."""
        if isinstance(self.host, PackedMatmul):
            return self.sizes[self.index], self.host.inner
        return self.sizes[0], self.host.in_features if isinstance(self.host, nn.Linear) else self.host.nx


def find_linears(model: nn.Module) -> dict[str, Place]:
    """The linear layers of a model by the path they had before anything was replaced."""
    places: dict[str, Place] = {}
    for path, module in model.named_modules():
        plain = module.head if isinstance(module, TappedHead) else module
        if isinstance(plain, PackedLinear):
            places[path] = Place(plain.matmul, plain.index)
        elif isinstance(plain, nn.Linear | Conv1D):
            places[path] = Place(plain)
        elif isinstance(plain, FusedAttention):
            places |= {f"{path}.{name}": Place(plain.qkv, index) for index, name in enumerate(SIBLINGS[0])}
    return places


class LowRankTerm:
    """The adapters of one product, and what the rows of the current forward add to it."""

    def __init__(self, stacks: AdapterStacks, backend: Backend) -> None:
        self.stacks = stacks
        self.rows: AdapterRows | None = None  # None: no row has an adapter here
        self._backend = backend

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` (..., out), the product with `x` (..., in), with the terms added; see `add_row_adapters`."""
        return y if self.rows is None else add_row_adapters(y, x, self.stacks, self.rows, self._backend)


class Signature(NamedTuple):
    """Which launches the rows of a forward add to a plain one, and over which buffers; zeros for plain rows.

    A CUDA graph that was captured under a signature fits every later forward of as many rows and the same signature,
    whatever its rows are. A number that has been replaced by a higher one never comes back.
    """

    adapters: int = 0
    vectors: int = 0
    scales: int = 0


class _Blocks(NamedTuple):
    """How the rank dimensions of an adapter are divided."""

    sizes: tuple[int, ...]
    copies: int
    """layers in the product that merges most; each has rank dimensions of its own, behind those of the one before"""

    @property
    def width(self) -> int:
        """Rank dimensions of the widest product."""
        return sum(self.sizes) * self.copies

    def spread(self, scales: Sequence[float]) -> list[float]:
        """A factor for every rank dimension of the widest product."""
        return [scale for scale, size in zip(scales, self.sizes, strict=True) for _ in range(size)] * self.copies


class _Slots:
    """Sums of control vectors on the device, where kernels find them by row; each combination in use has a slot."""

    def __init__(self, layers: Sequence[int], count: int, model: PreTrainedModel) -> None:
        size = model.config.get_text_config().hidden_size
        self.layers = layers
        self.sums = torch.zeros(len(layers), count, size, dtype=model.dtype, device=model.device)
        self.taken: dict[Vectors, int] = {}

    def write(self, sums: Mapping[Vectors, Tensor], used: Collection[Vectors]) -> None:
        """Put sums (layers, D) of new combinations into slots that none of those in use has."""
        free = list(set(range(self.sums.shape[1])).difference(self.taken.values()))
        idle = [vectors for vectors in self.taken if vectors not in used]  # those written first come first
        for vectors, total in sums.items():
            slot = free.pop() if free else self.taken.pop(idle.pop(0))
            self.sums[:, slot] = total
            self.taken[vectors] = slot


class RowTerms:
    """The adapters and control vectors of one model, and which row of the current forward has which.

    Where the rows' terms run on Triton, `begin` writes what the rows are into buffers that stay where they are, and the
    kernels read them there. So a forward can be captured once in a CUDA graph and replayed for other rows:

        terms.reserve(most)                       # once; a longer batch would make buffers anew
        terms.begin([*variants, *[PLAIN] * pad])  # as many rows as the graph has, before each capture and each replay
        graph = graphs.get((bucket, terms.signature))

    `begin` copies from pinned memory on the current stream and never waits; capture and replay on a stream that follows
    it. Without Triton, `signature` is None for all but plain rows: nothing is to be captured.
    """

    def __init__(self, model: PreTrainedModel, backend: Backend = "auto") -> None:
        self._model = model
        self._backend: Backend = backend
        self._rows: tuple[Variant, ...] = ()
        self._adapters: dict[str | None, int] = {None: -1}
        self._blocks: dict[str | None, _Blocks] = {}
        self._numbers = count()  # of adapters, those that are gone too
        self._terms: dict[int, tuple[PackedMatmul | Plain, LowRankTerm]] = {}  # by id of the host
        self._vectors: dict[str, Mapping[int, Tensor]] = {}
        self._hooked: set[int] = set()
        self._added: dict[int, tuple[Tensor, Tensor | None]] = {}  # layer: sums and index of `add_row_vectors`
        self._index = torch.empty(2, 0, dtype=torch.int32, device=model.device)  # (2, C) adapters, slots of vectors
        self._buffered = use_triton(self._index, backend)
        self._scales = torch.ones(0, 0, device=model.device)  # (C, W) float32, by row and rank dimension
        self._slots: _Slots | None = None
        self._newest = Signature(1, 1, 1)
        self._current = Signature()

    @property
    def signature(self) -> Signature | None:
        """What a captured graph of the current rows depends on; None if they cannot be captured."""
        return self._current if self._buffered or not any(self._current) else None

    def reserve(self, rows: int) -> None:
        """Make room for forwards of so many rows, counting those that the LM head reads again."""
        if self._buffered and rows > self._index.shape[1]:
            self._clear()
            self._index = self._index.new_full((2, rows), -1)
            self._newest = Signature(*(number + 1 for number in self._newest))

    def begin(self, variants: Sequence[Variant]) -> None:
        """Say what the rows of the next forward are, one variant each.

        Rows that the LM head alone reads may follow those of the batch. The answer to an equal list is kept.
        """
        rows = tuple(variants)
        if rows.count(PLAIN) == len(rows):
            rows = ()
        if rows == self._rows:
            return
        if not rows:
            self._clear()
            return
        adapters = [self._adapters[row.adapter] for row in rows]
        vectors = [row.vectors for row in rows]
        scales = self._spread(rows)
        if self._buffered:
            self._fill(adapters, vectors, scales)
        else:
            self._added = self._gather(vectors)
            self._choose(adapters, torch.tensor(adapters, dtype=torch.int32), scales)
        self._current = Signature(
            self._newest.adapters if max(adapters) >= 0 else 0,
            self._newest.vectors if self._added else 0,
            self._newest.scales if scales is not None else 0,
        )
        self._rows = rows

    def add_adapter(self, name: str, adapter: "LowRank") -> None:
        """Take a low-rank adapter of this model in; rows with the variant `name` run through it.

        Rows may scale its `blocks`, if it has any.
        """
        self._clear()
        number = self._adapters[name] = next(self._numbers)
        places = find_linears(self._model)
        hosts: dict[int, list[str]] = {}
        for path in adapter.factors:
            hosts.setdefault(id(places[path].host), []).append(path)
        for paths in hosts.values():
            downs, ups = [], []
            for path in paths:
                place, (down, up) = places[path], adapter.factors[path]
                before, after = sum(place.sizes[: place.index]), sum(place.sizes[place.index + 1 :])
                downs.append(down)
                ups.append(functional.pad(up.t(), (before, after)))
            self._stacks(places[paths[0]]).add(number, torch.cat(downs), torch.cat(ups))
        self._newest = self._newest._replace(adapters=self._newest.adapters + 1)
        if adapter.blocks:
            self._blocks[name] = _Blocks(tuple(adapter.blocks.values()), max(map(len, hosts.values())))

    def add_vector(self, name: str, directions: Mapping[int, Tensor]) -> None:
        """Take a control vector in: directions (D,) by decoder layer, counted from 0."""
        self._clear()
        layers = decoder_layers(self._model)
        self._vectors[name] = {layer: each.float().to(self._model.device) for layer, each in directions.items()}
        for layer in directions.keys() - self._hooked:
            layers[layer].register_forward_hook(self._layer_hook(layer))
            self._hooked.add(layer)
        self._slots = None

    def remove(self, name: str) -> None:
        """Forget the adapter or the control vector of this name, if there is one."""
        self._clear()
        number = self._adapters.pop(name, None)
        self._blocks.pop(name, None)
        if number is not None:
            for _, term in self._terms.values():
                term.stacks.remove(number)
            self._newest = self._newest._replace(adapters=self._newest.adapters + 1)
        if self._vectors.pop(name, None) is not None:
            self._slots = None

    def _stacks(self, place: Place) -> AdapterStacks:
        host = place.host
        if id(host) not in self._terms:
            outer, inner = sum(place.sizes), place.shape[1]
            if isinstance(host, PackedMatmul):
                term = LowRankTerm(AdapterStacks(inner, outer, host.dtype, "cpu"), self._backend)
            else:
                weight = host.weight
                term = LowRankTerm(AdapterStacks(inner, outer, weight.dtype, weight.device), self._backend)
                host.register_forward_hook(lambda module, args, output: term(args[0], output))
            self._terms[id(host)] = host, term
        return self._terms[id(host)][1].stacks

    def _clear(self) -> None:
        """Back to plain rows."""
        self._rows, self._added, self._current = (), {}, Signature()
        self._choose([], self._index[0])

    def _choose(self, numbers: Sequence[int], index: Tensor, scales: Tensor | None = None) -> None:
        """Tell every product which adapters the rows have; `index` and `scales` as in `AdapterRows`."""
        rows = AdapterRows(numbers, index, scales) if max(numbers, default=-1) >= 0 else None
        for host, term in self._terms.values():
            here = rows is not None and (self._buffered or rows.select(term.stacks) is not None)
            term.rows = rows if here else None
            if isinstance(host, PackedMatmul):
                host.term = term if here else None

    def _gather(self, rows: list[Vectors]) -> dict[int, tuple[Tensor, Tensor | None]]:
        """What each layer adds to the rows, (B, D); a row's sum does not depend on its neighbours."""
        distinct = list(dict.fromkeys(rows))
        layers = sorted({layer for vectors in distinct for name, _ in vectors for layer in self._vectors[name]})
        if not layers:
            return {}
        sums = torch.stack([self._sum(vectors, layers) for vectors in distinct], dim=1)  # (layers, distinct, D)
        index = torch.tensor([distinct.index(vectors) for vectors in rows], device=sums.device)
        added = sums.to(self._model.dtype).index_select(1, index)  # (layers, B, D)
        return {layer: (each, None) for layer, each in zip(layers, added, strict=True)}

    def _spread(self, rows: Sequence[Variant]) -> Tensor | None:
        """The scales of the rows' rank dimensions, (B, W) float32 on the host; None if no row is scaled."""
        if not any(row.scales for row in rows):
            return None
        width = max(blocks.width for blocks in self._blocks.values())
        spread = torch.ones(len(rows), width, pin_memory=self._index.is_cuda)
        for at, row in enumerate(rows):
            if row.scales:
                blocks = self._blocks[row.adapter]
                spread[at, : blocks.width] = torch.tensor(blocks.spread(row.scales))
        return spread

    def _fill(self, adapters: list[int], rows: list[Vectors], scales: Tensor | None) -> None:
        """Write what the rows are into the buffers; what lies behind the rows has nothing."""
        if len(rows) > self._index.shape[1]:
            self.reserve(1 << (len(rows) - 1).bit_length())
        slots = self._place(dict.fromkeys(vectors for vectors in rows if vectors))
        host = torch.full(self._index.shape, -1, dtype=torch.int32, pin_memory=self._index.is_cuda)
        host[:, : len(rows)] = torch.tensor([adapters, [slots.get(vectors, -1) for vectors in rows]], dtype=torch.int32)
        self._index.copy_(host, non_blocking=True)
        if scales is not None:
            needed = self._index.shape[1], scales.shape[1]
            if self._scales.shape != needed:
                self._scales = self._scales.new_ones(needed)
                self._newest = self._newest._replace(scales=self._newest.scales + 1)
            self._scales[: len(scales)].copy_(scales, non_blocking=True)
        self._choose(adapters, self._index[0], None if scales is None else self._scales)
        self._added = {}
        if slots and self._slots is not None:
            layers = zip(self._slots.layers, self._slots.sums, strict=True)
            self._added = {layer: (sums, self._index[1]) for layer, sums in layers}

    def _place(self, used: Collection[Vectors]) -> Mapping[Vectors, int]:
        """The slots of these combinations of vectors."""
        if not used:
            return {}
        if self._slots is None or len(used) > self._slots.sums.shape[1]:
            most = max(MIN_SLOTS, 1 << (len(used) - 1).bit_length())
            self._slots = _Slots(sorted(self._hooked), most, self._model)
            self._newest = self._newest._replace(vectors=self._newest.vectors + 1)
        slots = self._slots
        slots.write({each: self._sum(each, slots.layers) for each in used if each not in slots.taken}, used)
        return slots.taken

    def _sum(self, vectors: Vectors, layers: Sequence[int]) -> Tensor:
        """What a combination of vectors adds to these layers, the only ones it changes: (layers, D) float32."""
        size = self._model.config.get_text_config().hidden_size
        total = torch.zeros(len(layers), size, device=self._model.device)
        for name, coefficient in vectors:
            for layer, direction in self._vectors[name].items():
                total[layers.index(layer)].add_(direction, alpha=coefficient)
        return total

    def _layer_hook(self, layer: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            added = self._added.get(layer)
            if added is None:
                return output
            if isinstance(output, tuple):
                return add_row_vectors(output[0], *added, self._backend), *output[1:]
            return add_row_vectors(output, *added, self._backend)

        return add


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a model: the outermost list of as many modules as its config has layers."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelLoadError(f"{type(model).__name__} has no list of {count} layers: control vectors need another model")
