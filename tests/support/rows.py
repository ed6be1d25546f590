"""Rows of logits with sampling parameters, for the tests of the kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trimtab.kernels.philox import Keys
from trimtab.kernels.survivors import RowParams


def row_params(*rows: tuple[float, int, float, float]) -> RowParams:
    """One row per (temperature, top_k, top_p, min_p)."""
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    return RowParams(
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(top_k),
        torch.tensor(top_p, dtype=torch.float32),
        torch.tensor(min_p, dtype=torch.float32),
    )


def keys(n: int, seed: int = 0, device: torch.device | str = "cpu") -> Keys:
    """The keys of `n` rows that differ in their positions."""
    return Keys(*(column.to(device) for column in (torch.full((n,), seed), torch.zeros(n).long(), torch.arange(n))))


def normal(rows: int, vocab_size: int, *, scale: float = 3.0, seed: int = 0) -> Tensor:
    """(rows, vocab_size) float32."""
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def some(keys: Keys, rows: Tensor | slice) -> Keys:
    """The keys of these rows."""
    return Keys(*(column[rows] for column in keys))


def p_value(observed: Tensor, probs: Tensor) -> float:
    """Chi-square test; cells that expect fewer than five draws are pooled."""
    expected = probs * observed.sum()
    pooled = expected < 5
    observed = torch.cat((observed[~pooled], observed[pooled].sum()[None])).double()
    expected = torch.cat((expected[~pooled], expected[pooled].sum()[None]))
    keep = expected > 0
    chi2 = ((observed[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    return float(torch.special.gammaincc((keep.sum() - 1).double() / 2, chi2 / 2))


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as torch's compiler traces it, run without a C++ compiler."""
    found: Callable[..., Any] = torch.compile(function, dynamic=True, backend="eager")
    return found
