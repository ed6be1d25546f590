"""Low-rank adapters by row: each row of a batch adds the term of its own adapter to one and the same product.

A row of adapter a computes W x + B_a A_a x (LoRA, arXiv 2106.09685), or W x + B_a diag(s) A_a x with scales of its own
(the singular values of Panacea, arXiv 2402.02030). The factors of all adapters of one product lie one
after another in two stacks, so that a batch of mixed rows needs no loop over adapters (as in Punica, arXiv 2310.18547,
and S-LoRA, arXiv 2311.03285).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.kernels.backend import Backend, use_triton


class AdapterStacks:
    """The adapters of one product from `inner` to `outer` features, in two stacks; each has a number of its own."""

    def __init__(self, inner: int, outer: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.down = torch.empty(0, inner, dtype=dtype, device=device)  # (R, in)
        self.up = torch.empty(0, outer, dtype=dtype, device=device)  # (R, out)
        self.starts = torch.zeros(1, dtype=torch.int32, device=device)  # (A + 1,), adapter a is at starts[a]
        self.owners: tuple[int, ...] = ()  # (R,) the number of each row's adapter
        self.spans: dict[int, tuple[int, int]] = {}
        self.width = 0  # the largest rank

    def add(self, number: int, down: Tensor, up: Tensor) -> None:
        """Put an adapter behind the others; `down` (r, in), `up` (r, out).

        Numbers rise and may leave gaps, for adapters that do not change this product.
        """
        if number < len(self.starts) - 1 or len(down) != len(up):
            raise ValueError(f"adapter {number} with factors of {len(down)} and {len(up)} rows does not fit the stacks")
        first, last = len(self.owners), len(self.owners) + len(down)
        self.spans[number] = first, last
        self.owners += (number,) * len(down)
        self.down = torch.cat((self.down, down.to(self.down)))
        self.up = torch.cat((self.up, up.to(self.up)))
        gap = [first] * (number + 1 - len(self.starts))
        self.starts = torch.cat((self.starts, self.starts.new_tensor([*gap, last])))
        self.width = max(self.width, len(down))

    def remove(self, number: int) -> None:
        """Take an adapter out, if it is here; its number stays behind as a gap."""
        if number not in self.spans:
            return
        first, last = self.spans.pop(number)
        rank = last - first
        self.owners = self.owners[:first] + self.owners[last:]
        self.down = torch.cat((self.down[:first], self.down[last:]))
        self.up = torch.cat((self.up[:first], self.up[last:]))
        self.starts = torch.where(self.starts > first, self.starts - rank, self.starts)
        self.spans = {
            other: (start - rank, stop - rank) if start >= last else (start, stop)
            for other, (start, stop) in self.spans.items()
        }
        self.width = max((stop - start for start, stop in self.spans.values()), default=0)


class Selected(NamedTuple):
    """What the torch path adds to one product."""

    down: Tensor  # (R, in), adapters of this batch and those between them
    up: Tensor  # (R, out)
    others: Tensor | None  # (rows of the block, 1, R) bool, entries of adapters that are not the row's
    block: slice
    """the rows from the first to the last that has an adapter here"""
    scales: Tensor | None
    """(rows of the block, 1, R) float32; None: all 1"""


class AdapterRows:
    """Which adapter each row of a batch has, -1 for none; made once per batch composition, for all products."""

    def __init__(self, numbers: Sequence[int], index: Tensor, scales: Tensor | None = None) -> None:
        """`index` (C,) int32, C >= B: the same numbers on the device, which the Triton kernels read.

        `scales` (C, W) float32, on the same device: by what the first W rank dimensions of each row's adapter are
        multiplied; all others count once. None: no row is scaled.

        A captured CUDA graph reads `index` and `scales` anew: whoever replays it for other rows writes theirs there,
        and -1 behind their numbers.
        """
        self.count = len(numbers)
        self.index = index
        self.scales = scales
        self._numbers = torch.tensor(numbers, dtype=torch.long)
        self._selected: dict[AdapterStacks, Selected | None] = {}
        self._layouts: dict[tuple[int, ...], tuple[slice, Tensor | None, Tensor | None]] = {}

    def select(self, stacks: AdapterStacks) -> Selected | None:
        """What these rows add to the product of `stacks`; products of one layout share block and mask."""
        if stacks not in self._selected:
            self._selected[stacks] = self._select(stacks)
        return self._selected[stacks]

    def _select(self, stacks: AdapterStacks) -> Selected | None:
        rows = self._numbers
        spans = [stacks.spans[number] for number in set(rows.tolist()) if number in stacks.spans]
        if not spans:
            return None
        start, stop = min(spans)[0], max(spans)[1]
        owners = stacks.owners[start:stop]
        if owners not in self._layouts:
            mine = torch.isin(rows, torch.tensor(owners)).nonzero()[:, 0]
            block = slice(int(mine[0]), int(mine[-1]) + 1)
            others = rows[block, None, None] != torch.tensor(owners)  # (rows of the block, 1, R)
            device = stacks.down.device
            mask, spread = others.to(device) if others.any() else None, self._spread(block, owners)
            self._layouts[owners] = block, mask, None if spread is None else spread.to(device)
        block, mask, scales = self._layouts[owners]
        return Selected(stacks.down[start:stop], stacks.up[start:stop], mask, block, scales)

    def _spread(self, block: slice, owners: Sequence[int]) -> Tensor | None:
        """The scales of a block's rows, (rows, 1, R), for rank dimensions that lie as `owners` has them."""
        if self.scales is None:
            return None
        starts = {owner: at for at, owner in reversed(list(enumerate(owners)))}
        entries = torch.tensor([at - starts[owner] for at, owner in enumerate(owners)])  # (R,)
        scaled = (entries < self.scales.shape[1]).nonzero()[:, 0]
        spread = self.scales.new_ones(block.stop - block.start, 1, len(owners))
        spread[:, 0, scaled] = self.scales[block][:, entries[scaled]]
        return spread


def tokens_per_row(x: Tensor, rows: AdapterRows) -> int:
    """How many entries of the first axis of `x` belong to one row: some modules flatten rows and tokens into it.

    The LM head may read rows again behind those of the batch, so there may be more rows than any other module reads.
    """
    return x.shape[0] // rows.count if x.dim() == 2 and x.shape[0] % rows.count == 0 else 1


def reference_row_adapters(y: Tensor, x: Tensor, stacks: AdapterStacks, rows: AdapterRows) -> Tensor:
    """The specification, in float64: every row through the merged weights of its adapter."""
    spread = tokens_per_row(x, rows)
    out = y.double()
    numbers = rows.index.tolist()
    scales = [] if rows.scales is None else rows.scales.double().tolist()
    for i in range(x.shape[0]):
        number = numbers[i // spread] if i // spread < len(numbers) else -1
        if number in stacks.spans:
            first, last = stacks.spans[number]
            down = stacks.down[first:last].double()
            for entry, scale in enumerate(scales[i // spread][: last - first] if scales else ()):
                down[entry] *= scale
            out[i] += x[i].double() @ (stacks.up[first:last].double().t() @ down).t()
    return out


def add_row_adapters(
    y: Tensor, x: Tensor, stacks: AdapterStacks, rows: AdapterRows, backend: Backend = "auto"
) -> Tensor:
    """`y` (..., out), the product with `x` (..., in), with the rows' terms added, in the dtype of the stacks.

    The first axis counts rows, or rows and their tokens. Rows without an adapter get an exact zero, or are not touched
    at all. `y` may be written to.
    """
    if use_triton(x, backend):
        from trimtab.kernels.row_adapters_triton import add_row_adapters_triton

        return add_row_adapters_triton(y, x, stacks, rows)
    selected = rows.select(stacks)
    wide = y.to(stacks.up.dtype)
    if selected is None:
        return wide
    down, up, others, block, scales = selected
    spread = tokens_per_row(x, rows)
    block = slice(block.start * spread, block.stop * spread)
    low = functional.linear(x[block].to(down.dtype), down)  # (..., R)
    if others is not None:
        count = min(len(low) // spread, len(others))
        low[: count * spread].view(count, -1, len(down)).masked_fill_(others[:count], 0)
    if scales is not None:
        count = min(len(low) // spread, len(scales))
        low[: count * spread].view(count, -1, len(down)).mul_(scales[:count])
    wide[block].view(-1, up.shape[1]).addmm_(low.view(-1, len(down)), up)
    return wide
