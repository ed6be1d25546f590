import math
from itertools import product

import pytest
import torch
from rows import keys, normal, p_value, row_params, some
from torch import Tensor

from trimtab.kernels.edits import Edits
from trimtab.kernels.philox import Keys
from trimtab.kernels.steer_sample import reference_steer, steer_sample, top_logprobs
from trimtab.kernels.survivors import RowParams

INF, NAN = math.inf, math.nan


def some_edits(rows: int, vocab_size: int) -> Edits:
    """A ban, a penalty and a boost per row; the first row has none."""
    ids = torch.tensor([[0, vocab_size // 2, vocab_size - 1]]).repeat(rows, 1)
    ids[0] = vocab_size
    mul, add = (
        torch.tensor([[1.0, 1.5, 0.7]]).repeat(rows, 1),
        torch.tensor([[-INF, -0.5, 4.0]]).repeat(rows, 1),
    )
    return Edits(ids, mul, add)


FILTERS = list(product((0, 1, 3, 80, 2000), (1.0, 0.9, 0.3), (0.0, 0.05)))
GRID = [(t, *f) for t in (0.0, 1e-3, 1.0, 2.0) for f in FILTERS]


def check(logits: Tensor, params: RowParams, edits: Edits | None = None) -> None:
    """Drawn tokens are possible and carry the reference's log-probabilities; greedy rows take the best."""
    out = steer_sample(logits, params, keys(len(logits)), edits=edits, logprobs=True)
    assert torch.equal(out.token, steer_sample(logits, params, keys(len(logits)), edits=edits).token)
    steered, base = reference_steer(logits, params, edits=edits)
    torch.testing.assert_close(out.logprob.double(), steered.gather(1, out.token[:, None])[:, 0], rtol=3e-5, atol=3e-5)
    torch.testing.assert_close(
        out.base_logprob.double(), base.gather(1, out.token[:, None])[:, 0], rtol=3e-5, atol=3e-5
    )
    assert out.logprob.isfinite().all()
    best = steered.gather(1, out.token[:, None])[:, 0] - steered.amax(dim=1)
    assert (best[params.greedy] > -1e-5).all()


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("vocab_size", [7, 32, 1000, 5003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_the_reference(dtype: torch.dtype, vocab_size: int, edited: bool) -> None:
    logits = normal(len(GRID), vocab_size).to(dtype)
    before = logits.clone()
    check(logits, row_params(*GRID), some_edits(len(GRID), vocab_size) if edited else None)
    assert torch.equal(logits, before)


def test_vocabulary_of_one() -> None:
    check(torch.tensor([[2.5]]).repeat(len(GRID), 1), row_params(*GRID))


@pytest.mark.parametrize("params", [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.1)])
def test_a_batch_of_one_kind_agrees_with_the_reference(params: tuple[float, int, float, float]) -> None:
    check(normal(6, 1000), row_params(*[params] * 6))


def test_large_logits_keep_their_fraction() -> None:
    logits = 1e4 + normal(len(GRID), 1000, scale=0.01)
    check(logits, row_params(*GRID))
    check(torch.where(normal(len(GRID), 32) > 0, 1e4, -1e4), row_params(*GRID))


def test_excluded_tokens_are_never_drawn() -> None:
    logits = normal(len(GRID), 700)
    logits[:, ::2], logits[:, 1::4] = NAN, -INF
    check(logits, row_params(*GRID))


def test_infinite_logits_win() -> None:
    logits = normal(4, 50)
    logits[:, 17] = INF
    params = row_params((0.0, 0, 1.0, 0.0), (0.5, 0, 1.0, 0.0), (1.0, 5, 0.9, 0.0), (2.0, 0, 0.9, 0.1))
    assert steer_sample(logits, params, keys(4)).token.tolist() == [17] * 4


def test_a_row_with_nothing_allowed_returns_minus_one() -> None:
    logits = normal(5, 300)
    rows = [
        (1.0, 0, 1.0, 0.0),
        (0.0, 0, 1.0, 0.0),
        (1.0, 5, 0.9, 0.0),
        (1.0, 0, 0.9, 0.0),
        (1.0, 0, 1.0, 0.0),
    ]
    free = steer_sample(logits, row_params(*rows), keys(5), logprobs=True)
    logits[0], logits[1], logits[2], logits[3] = -INF, NAN, -INF, NAN
    out = steer_sample(logits, row_params(*rows), keys(5), logprobs=True)
    assert out.token.tolist() == [-1] * 4 + [free.token[4].item()]
    assert out.logprob[:4].isnan().all()
    assert out.base_logprob[:4].isnan().all()
    assert out.logprob[4] == free.logprob[4]
    assert steer_sample(logits[1:2], row_params(rows[1]), keys(1)).token.tolist() == [-1]


def test_an_edit_can_ban_all_that_the_base_allows() -> None:
    edits = Edits(torch.arange(3)[None], torch.ones(1, 3), torch.full((1, 3), -INF))
    out = steer_sample(torch.zeros(1, 3), row_params((1.0, 0, 1.0, 0.0)), keys(1), edits=edits, logprobs=True)
    assert out.token.tolist() == [-1]


@pytest.mark.parametrize("top_k", [1, 3, 70, 1500])
def test_ties_at_the_threshold_keep_the_lowest_ids(top_k: int) -> None:
    n = 1000
    logits = torch.zeros(n, 2000)
    logits[:, 1900] = 1e-3
    token = steer_sample(logits, row_params(*[(1.0, top_k, 1.0, 0.0)] * n), keys(n)).token
    assert set(token.tolist()) <= {*range(top_k - 1), 1900}
    assert token.unique().numel() > 0.9 * min(top_k, n / 3)


def test_minus_zero_ties_with_zero() -> None:
    logits = torch.tensor([[-1.0, -0.0, 0.0, -1.0]])
    for row in ((1.0, 1, 1.0, 0.0), (0.0, 0, 1.0, 0.0)):
        assert steer_sample(logits, row_params(row), keys(1)).token.tolist() == [1]


def test_min_p_of_one_keeps_every_token_that_ties_with_the_best() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0, 3.0]).repeat(200, 1)
    for row in ((0.7, 0, 1.0, 1.0), (0.7, 4, 1.0, 1.0)):
        token = steer_sample(logits, row_params(*[row] * 200), keys(200)).token
        assert token.unique().tolist() == [1, 3, 4]


def test_ties_are_greedily_broken_by_the_lowest_id() -> None:
    logits = torch.zeros(2, 1000)
    logits[0, [700, 300, 999]] = 1.0
    logits[1, [600, 601]] = 1.0
    assert steer_sample(logits, row_params(*[(0.0, 0, 1.0, 0.0)] * 2), keys(2)).token.tolist() == [300, 600]


def test_top_p_is_the_smallest_set_that_holds_the_mass() -> None:
    n = 2000
    for vocab_size, kept in ((4, 2), (2000, 1000)):
        token = steer_sample(torch.zeros(n, vocab_size), row_params(*[(1.0, 0, 0.5, 0.0)] * n), keys(n)).token
        assert token.max() < kept
        assert token.max() > 0.9 * kept - 1
    steered, _ = reference_steer(torch.zeros(1, 4), row_params((1.0, 0, 0.5, 0.0)))
    assert steered.isfinite().tolist() == [[True, True, False, False]]


def test_top_p_counts_the_mass_that_top_k_and_min_p_leave() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    for row, kept in (
        ((1.0, 0, 0.65, 0.0), 2),
        ((1.0, 2, 0.55, 0.0), 1),
        ((1.0, 3, 0.7, 0.0), 2),
        ((1.0, 0, 0.8, 0.4), 3),
        ((1.0, 0, 1.0, 0.6), 2),
        ((0.5, 0, 1.0, 0.4), 2),
    ):
        token = steer_sample(logits.repeat(500, 1), row_params(*[row] * 500), keys(500)).token
        assert token.unique().tolist() == list(range(kept)), row


@pytest.mark.parametrize(
    ("vocab_size", "row"),
    [
        (32, (1.0, 0, 1.0, 0.0)),
        (700, (1.0, 0, 1.0, 0.0)),
        (700, (2.0, 0, 1.0, 0.02)),
        (700, (1.0, 40, 1.0, 0.0)),
        (700, (1.5, 0, 0.9, 0.0)),
        (1300, (2.0, 300, 0.95, 0.01)),
    ],
)
def test_draws_follow_the_reference(vocab_size: int, row: tuple[float, int, float, float]) -> None:
    n = 20_000
    logits = normal(1, vocab_size, scale=1.5)
    probs = reference_steer(logits, row_params(row))[0][0].exp()
    every, params = torch.arange(n).split(2000), row_params(*[row] * 2000)
    token = torch.cat(
        [steer_sample(logits.expand(2000, -1), params, some(keys(n, seed=5), part)).token for part in every]
    )
    observed = torch.bincount(token, minlength=vocab_size)
    assert observed[probs == 0].sum() == 0
    assert p_value(observed, probs) > 1e-3


class Fixed(Keys):
    """Keys that draw one number for four rows."""

    def __new__(cls, uniform: float) -> "Fixed":
        return super().__new__(cls, torch.full((4,), uniform, dtype=torch.float64), *keys(4)[1:])

    def uniforms(self) -> Tensor:
        return self.seeds


@pytest.mark.parametrize("uniform", [2.0**-54, 0.5, 1 - 2.0**-53])
def test_the_ends_of_the_uniform_stay_inside_the_allowed_tokens(uniform: float) -> None:
    logits = torch.full((4, 900), -INF)
    logits[:, [5, 300, 310, 850]] = torch.tensor([0.0, -90.0, 1.0, -100.0])
    rows = [(1.0, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0), (1.0, 0, 0.99, 0.0), (1e-3, 0, 1.0, 0.0)]
    out = steer_sample(logits, row_params(*rows), Fixed(uniform), logprobs=True)
    assert out.logprob.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [7, 1000, 5003])
def test_a_row_draws_the_same_alone_and_in_any_batch(vocab_size: int, dtype: torch.dtype) -> None:
    logits, u, params = (
        normal(len(GRID), vocab_size, scale=1.0).to(dtype),
        keys(len(GRID)),
        row_params(*GRID),
    )
    edits = some_edits(len(GRID), vocab_size)
    batch = steer_sample(logits, params, u, edits=edits)
    alone = [
        steer_sample(
            logits[i : i + 1],
            row_params(GRID[i]),
            some(u, slice(i, i + 1)),
            edits=Edits(edits.ids[i : i + 1], edits.mul[i : i + 1], edits.add[i : i + 1]),
        ).token.item()
        for i in range(len(GRID))
    ]
    assert batch.token.tolist() == alone
    order = torch.randperm(len(GRID), generator=torch.Generator().manual_seed(4))[:37]
    part = steer_sample(
        logits[order],
        row_params(*[GRID[i] for i in order.tolist()]),
        some(u, order),
        edits=Edits(edits.ids[order], edits.mul[order], edits.add[order]),
    )
    assert torch.equal(part.token, batch.token[order])


@pytest.mark.parametrize(
    "row",
    [(0.0, 0, 1.0, 0.0), (0.5, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (1.0, 0, 1.0, 0.5)],
)
def test_each_option_changes_draws(row: tuple[float, int, float, float]) -> None:
    logits = normal(1, 100, scale=1.0).expand(200, -1)
    plain = steer_sample(logits, row_params(*[(1.0, 0, 1.0, 0.0)] * 200), keys(200)).token
    assert not torch.equal(plain, steer_sample(logits, row_params(*[row] * 200), keys(200)).token)


def test_filters_do_not_touch_a_greedy_row() -> None:
    logits = normal(1, 100)
    plain = steer_sample(logits, row_params((0.0, 0, 1.0, 0.0)), keys(1), logprobs=True)
    filtered = steer_sample(logits, row_params((0.0, 2, 0.5, 0.9)), keys(1), logprobs=True)
    assert (filtered.token, filtered.logprob, filtered.base_logprob) == (plain.token, plain.logprob, plain.base_logprob)
    assert plain.logprob == plain.base_logprob


@pytest.mark.parametrize("k", [1, 5, 700])
def test_top_logprobs_are_the_best_of_log_softmax(k: int) -> None:
    logits = normal(3, 700)
    values, ids = top_logprobs(logits, k)
    expected = logits.double().log_softmax(dim=1).topk(k, dim=1)
    torch.testing.assert_close(values.double(), expected.values, rtol=3e-5, atol=3e-5)
    assert torch.equal(ids, expected.indices)


def test_top_logprobs_break_ties_by_lower_id_and_skip_nan() -> None:
    logits = torch.tensor([[1.0, NAN, 0.0, 1.0, -2.0, 1.0, -0.0]], dtype=torch.bfloat16)
    values, ids = top_logprobs(logits, 5)
    assert ids.tolist() == [[0, 3, 5, 2, 6]]
    total = 3 * math.e + 2 + math.exp(-2)
    assert values.tolist() == [pytest.approx([v - math.log(total) for v in (1, 1, 1, 0, 0)], abs=1e-5)]


def test_rows_with_nan_are_named() -> None:
    logits = normal(4, 600)
    params = row_params(*[(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.0, 0, 1.0, 0.0)])
    assert not steer_sample(logits, params, keys(4)).nan.any()
    logits[0, :], logits[3, 3] = -INF, INF
    assert not steer_sample(logits, params, keys(4)).nan.any()
    logits[1, 599], logits[2] = NAN, NAN
    for logprobs in (False, True):
        nan = steer_sample(logits, params, keys(4), logprobs=logprobs).nan
        assert nan.tolist() == [False, True, True, False]
    greedy = steer_sample(logits, row_params(*[(0.0, 0, 1.0, 0.0)] * 4), keys(4)).nan
    assert greedy.tolist() == [False, True, True, False]


def test_top_logprobs_list_the_lowest_of_many_equal_ids() -> None:
    assert top_logprobs(torch.zeros(1, 3000), 5)[1].tolist() == [[0, 1, 2, 3, 4]]
