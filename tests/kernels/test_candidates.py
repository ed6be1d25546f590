import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.kernels.candidates import best_candidates, candidate_mask, reference_candidates

INF, NAN = math.inf, math.nan
GRID = list(product((0, 1, 10, 90, 2000), (1.0, 0.9, 0.3), (0.0, 0.1, 1.0)))


def columns(*rows: tuple[int, float, float]) -> tuple[Tensor, Tensor, Tensor]:
    top_k, top_p, alpha = zip(*rows, strict=True)
    return torch.tensor(top_k), torch.tensor(top_p, dtype=torch.float32), torch.tensor(alpha, dtype=torch.float32)


def normal(rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def restated(z: Tensor, rows: list[tuple[int, float, float]]) -> np.ndarray:
    """Token after token, best first, until a condition fails."""
    out = np.zeros(z.shape, dtype=bool)
    for row, (k, p, alpha) in enumerate(rows):
        logits = z[row].double().numpy()
        weights = np.exp(logits - logits.max())
        probs = weights / weights.sum()
        mass = 0.0
        for rank, token in enumerate(sorted(range(len(probs)), key=lambda i: (-logits[i], i))):
            limits = (k and rank >= k, p < 1 and mass >= np.float32(p), weights[token] < np.float32(alpha))
            off = k == 0 and p == 1 and alpha == 0
            out[row, token] = off or (not any(limits) and logits[token] > -INF)
            mass += probs[token]
    return out


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 7, 1000, 5003])
def test_candidates_meet_every_condition(vocab_size: int, dtype: torch.dtype, holes: bool) -> None:
    z = normal(len(GRID), vocab_size).to(dtype)
    if holes and vocab_size > 1:
        z[:, 1::2] = -INF
    mask = candidate_mask(z, *columns(*GRID))
    assert (mask.numpy() == restated(z, GRID)).all()
    assert torch.equal(mask, reference_candidates(z, *columns(*GRID)))


@pytest.mark.parametrize("top_k", [1, 3, 64, 70, 1500])
def test_exactly_k_survive_a_tie_and_they_are_the_lowest_ids(top_k: int) -> None:
    z = torch.zeros(1, 2000)
    z[0, 1900] = 1.0
    mask = candidate_mask(z, *columns((top_k, 1.0, 0.0)))
    assert mask[0].nonzero()[:, 0].tolist() == [*range(top_k - 1), 1900]


def test_the_plausible_set_is_that_of_contrastive_decoding() -> None:
    z = torch.tensor([0.5, 0.3, 0.051, 0.049, 0.1]).log()[None]
    assert candidate_mask(z, *columns((0, 1.0, 0.1))).tolist() == [[True, True, True, False, True]]
    assert candidate_mask(z + 100, *columns((0, 1.0, 1.0))).tolist() == [[True, False, False, False, False]]


def test_the_nucleus_is_that_of_the_whole_distribution_also_under_top_k() -> None:
    z = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None]
    assert candidate_mask(z, *columns((3, 0.65, 0.0))).sum() == 2
    assert candidate_mask(z, *columns((3, 0.75, 0.0))).sum() == 3  # 0.67 of what top-k leaves would be two
    assert candidate_mask(z, *columns((2, 0.95, 0.0))).sum() == 2


def test_a_mask_never_hides_what_is_not_a_number() -> None:
    z = normal(3, 40)
    z[0, 30], z[1] = NAN, NAN
    clean = candidate_mask(z.nan_to_num(nan=-INF), *columns(*[(2, 1.0, 0.0)] * 3))
    mask = candidate_mask(z, *columns(*[(2, 1.0, 0.0)] * 3))
    assert mask[0].sum() == 3
    assert mask[1].all()
    assert torch.equal(mask & ~z.isnan(), clean)
    assert torch.equal(mask, reference_candidates(z, *columns(*[(2, 1.0, 0.0)] * 3)))


def test_a_row_that_allows_nothing_has_no_candidates_and_a_row_without_conditions_keeps_all() -> None:
    mask = candidate_mask(torch.full((2, 9), -INF), *columns((3, 0.5, 0.1), (0, 1.0, 0.0)))
    assert mask.sum(dim=1).tolist() == [0, 9]


def test_no_rows_have_no_candidates() -> None:
    none = torch.zeros(0)
    assert candidate_mask(torch.zeros(0, 5), none.long(), none, none).shape == (0, 5)


@pytest.mark.parametrize("k", [1, 20, 64, 3000])
@pytest.mark.parametrize("vocab_size", [1, 7, 1000, 5003])
def test_best_candidates_are_sorted_by_value_then_id(vocab_size: int, k: int) -> None:
    z = (normal(4, vocab_size) * 2).round()  # many ties
    z[1, ::3] = -INF
    ids, valid = best_candidates(z, k)
    order = np.lexsort((np.broadcast_to(np.arange(vocab_size), z.shape), -z.numpy()))[:, :k]
    assert ids.shape == order.shape
    finite = np.isfinite(np.take_along_axis(z.numpy(), order, axis=1))
    assert (valid.numpy() == finite).all()
    assert (ids.numpy()[finite] == order[finite]).all()


def test_many_equal_entries_give_the_lowest_ids() -> None:
    ids, valid = best_candidates(torch.zeros(2, 3000), 20)
    assert ids.tolist() == [list(range(20))] * 2
    assert valid.all()


def test_best_candidates_of_broken_rows_are_not_valid() -> None:
    z = torch.tensor([[NAN, 1.0, -INF, 2.0], [NAN] * 4, [-INF] * 4])
    ids, valid = best_candidates(z, 3)
    assert ids[0, :2].tolist() == [3, 1]
    assert valid.tolist() == [[True, True, False], [False] * 3, [False] * 3]
