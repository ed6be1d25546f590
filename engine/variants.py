"""What sets the rows of one forward apart: low-rank adapters and control vectors, over one set of weights.

A row of an adapter computes W x + B A x (LoRA, arXiv 2106.09685). A row with control vectors adds them to the output
of decoder layers (representation engineering, arXiv 2310.01405, in the convention of repeng and llama.cpp). Nothing
of the model is switched: each step says which row is what, and a step of plain rows computes nothing more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from trimtab.engine.guides.adapters import LowRank

Vectors = tuple[tuple[str, float], ...]


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


class _Active(NamedTuple):
    """What one product adds in this step."""

    down: Tensor  # (R, in)
    up: Tensor  # (R, out)
    others: Tensor | None  # (rows of the block, 1, R) bool, entries of adapters that are not the row's
    block: slice
    """the rows from the first to the last that has an adapter here"""
    rows: int


class LowRankTerm:
    """The adapters of one product, one after another in two stacks; adds what the rows of this step select."""

    def __init__(self, inner: int, outer: int, dtype: torch.dtype, device: torch.device) -> None:
        self.down = torch.empty(0, inner, dtype=dtype, device=device)  # (R, in)
        self.up = torch.empty(0, outer, dtype=dtype, device=device)  # (R, out)
        self.owners: tuple[int, ...] = ()  # (R,) the adapter's number
        self.spans: dict[int, tuple[int, int]] = {}
        self.active: _Active | None = None

    def add(self, number: int, down: Tensor, up: Tensor) -> None:
        """Put an adapter behind the others; `down` (r, in), `up` (r, out) over all outputs of the product."""
        self.spans[number] = (len(self.owners), len(self.owners) + len(down))
        self.owners += (number,) * len(down)
        self.down = torch.cat((self.down, down.to(self.down)))
        self.up = torch.cat((self.up, up.to(self.up)))

    def choose(self, rows: Tensor, known: dict[tuple[int, ...], tuple[slice, Tensor | None]]) -> None:
        """Prepare for rows of these adapters, (B,) numbers; products of one layout share block and mask in `known`."""
        spans = [self.spans[number] for number in set(rows.tolist()) if number in self.spans]
        if not spans:
            self.active = None
            return
        start, stop = min(spans)[0], max(spans)[1]
        owners = self.owners[start:stop]
        if owners not in known:
            mine = torch.isin(rows, torch.tensor(owners)).nonzero()[:, 0]
            block = slice(int(mine[0]), int(mine[-1]) + 1)
            others = rows[block, None, None] != torch.tensor(owners)  # (rows of the block, 1, R)
            known[owners] = block, others.to(self.down.device) if others.any() else None
        block, mask = known[owners]
        self.active = _Active(self.down[start:stop], self.up[start:stop], mask, block, len(rows))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` (..., out), the product with `x` (..., in), with the terms added, in the dtype of the stacks.

        Rows without an adapter get an exact zero, or are not touched at all. `y` may be written to.
        """
        if self.active is None:
            return y
        down, up, others, block, rows = self.active
        wide = y.to(up.dtype)
        # Some modules flatten rows and tokens into one axis; the LM head may read rows again, behind the batch's own.
        spread = x.shape[0] // rows if x.dim() == 2 and x.shape[0] % rows == 0 else 1
        block = slice(block.start * spread, block.stop * spread)
        low = functional.linear(x[block].to(down.dtype), down)  # (..., R)
        if others is not None:
            count = min(len(low) // spread, len(others))
            low[: count * spread].view(count, -1, len(down)).masked_fill_(others[:count], 0)
        target = wide[block]
        target.view(-1, up.shape[1]).addmm_(low.view(-1, len(down)), up)
        return wide


class RowTerms:
    """The adapters and control vectors of one model, and which row of the current forward has which."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._rows: tuple[Variant, ...] = ()
        self._adapters: dict[str | None, int] = {None: -1}
        self._terms: dict[int, tuple[PackedMatmul | Plain, LowRankTerm]] = {}  # by id of the host
        self._vectors: dict[str, Mapping[int, Tensor]] = {}
        self._hooked: set[int] = set()
        self._added: dict[int, Tensor] = {}  # layer: (B, 1, D)

    def begin(self, variants: Sequence[Variant]) -> None:
        """Say what the rows of the next forward are, one variant each.

        Rows that the LM head alone reads may follow those of the batch. The answer to an equal list is kept.
        """
        rows = tuple(variants)
        if rows.count(PLAIN) == len(rows):
            rows = ()
        if rows == self._rows:
            return
        numbers = torch.tensor([self._adapters[row.adapter] for row in rows], dtype=torch.long)
        self._added = self._sum_vectors([row.vectors for row in rows])
        known: dict[tuple[int, ...], tuple[slice, Tensor | None]] = {}
        for host, term in self._terms.values():
            term.choose(numbers, known)
            if isinstance(host, PackedMatmul):
                host.term = term if term.active else None
        self._rows = rows

    def add_adapter(self, name: str, adapter: "LowRank") -> None:
        """Take a low-rank adapter of this model in; rows with the variant `name` run through it."""
        number = self._adapters[name] = len(self._adapters)
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
            self._term(places[paths[0]]).add(number, torch.cat(downs), torch.cat(ups))

    def add_vector(self, name: str, directions: Mapping[int, Tensor]) -> None:
        """Take a control vector in: directions (D,) by decoder layer, counted from 0."""
        layers = decoder_layers(self._model)
        self._vectors[name] = {layer: each.float().to(self._model.device) for layer, each in directions.items()}
        for layer in directions.keys() - self._hooked:
            layers[layer].register_forward_hook(self._layer_hook(layer))
            self._hooked.add(layer)

    def _term(self, place: Place) -> LowRankTerm:
        host = place.host
        if id(host) not in self._terms:
            outer, inner = sum(place.sizes), place.shape[1]
            if isinstance(host, PackedMatmul):
                term = LowRankTerm(inner, outer, host.dtype, torch.device("cpu"))
            else:
                term = LowRankTerm(inner, outer, host.weight.dtype, host.weight.device)
                host.register_forward_hook(lambda module, args, output: term(args[0], output))
            self._terms[id(host)] = host, term
        return self._terms[id(host)][1]

    def _sum_vectors(self, rows: list[Vectors]) -> dict[int, Tensor]:
        """What each layer adds to the rows, (B, 1, D); a row's sum does not depend on its neighbours."""
        distinct = list(dict.fromkeys(rows))
        layers = sorted({layer for vectors in distinct for name, _ in vectors for layer in self._vectors[name]})
        if not layers:
            return {}
        size = self._model.config.get_text_config().hidden_size
        sums = torch.zeros(len(layers), len(distinct), size, device=self._model.device)
        for column, vectors in enumerate(distinct):
            for name, coefficient in vectors:
                for layer, direction in self._vectors[name].items():
                    sums[layers.index(layer), column].add_(direction, alpha=coefficient)
        index = torch.tensor([distinct.index(vectors) for vectors in rows], device=sums.device)
        added = sums.to(self._model.dtype).index_select(1, index).unsqueeze(2)  # (layers, B, 1, D)
        return dict(zip(layers, added, strict=True))

    def _layer_hook(self, layer: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            added = self._added.get(layer)
            if added is None:
                return output
            if isinstance(output, tuple):
                return output[0] + added[: len(output[0])], *output[1:]
            return output + added[: len(output)]

        return add


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a model: the outermost list of as many modules as its config has layers."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelLoadError(f"{type(model).__name__} has no list of {count} layers: control vectors need another model")
