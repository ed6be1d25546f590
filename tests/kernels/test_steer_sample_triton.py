import math
from dataclasses import dataclass, field

import pytest
import torch
from device import DEVICE
from rows import keys, normal, row_params
from torch import Tensor

from trimtab.kernels.edits import Edits
from trimtab.kernels.mixing import Aux, Placement
from trimtab.kernels.philox import Keys
from trimtab.kernels.statistics import reference_statistics
from trimtab.kernels.steer_sample import SteerOut, reference_steer, steer_sample, steered_scores
from trimtab.kernels.survivors import RowParams

pytest.importorskip("triton")

# Triton's interpreter computes with numpy, which warns of infinities that a GPU passes on in silence.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]

INF, NAN = math.inf, math.nan
Row = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p


@dataclass
class Case:
    """A call of `steer_sample`, on the CPU."""

    base: Tensor
    rows: list[Row]
    base_weight: Tensor | None = None
    aux: list[Aux] = field(default_factory=list)
    edits: Edits | None = None
    bitmask: Tensor | None = None
    alpha: Tensor | None = None
    reference: Tensor | None = None

    @property
    def params(self) -> RowParams:
        return row_params(*self.rows)

    @property
    def keys(self) -> Keys:
        return keys(len(self.base), seed=7)

    def on(self, device: torch.device) -> dict[str, object]:
        placed = [
            Aux(
                each.logits.to(device),
                Placement.of(each.rows.tolist(), each.weights.tolist(), len(self.base), device),
            )
            for each in self.aux
        ]
        tensors = {name: getattr(self, name) for name in ("base_weight", "bitmask", "alpha", "reference", "edits")}
        moved = {name: value if value is None else value.to(device) for name, value in tensors.items()}
        return {"aux": placed, **moved}

    def run(self, *, full: bool = True) -> SteerOut:
        measured = torch.ones(len(self.base), dtype=torch.bool, device=DEVICE) if full else None
        device_keys = Keys(*(each.to(DEVICE) for each in self.keys))
        out = steer_sample(
            self.base.to(DEVICE),
            self.params,
            device_keys,
            logprobs=True,
            measured=measured,
            backend="triton",
            **self.on(DEVICE),
        )
        return SteerOut(**{name: value if value is None else value.cpu() for name, value in vars(out).items()})

    def check(self, tolerance: float = 3e-5) -> SteerOut:
        """Tokens lie where the reference's distribution passes the uniform; numbers agree with the reference."""
        out = self.run()
        options = self.on(torch.device("cpu"))
        reference = options.pop("reference")
        steered, base = reference_steer(self.base, self.params, **options)
        if reference is not None:
            base = self.reference.double().log_softmax(dim=1)
        dead = steered.isnan().any(dim=1)
        assert torch.equal(out.token < 0, dead)
        cpu = steer_sample(self.base, self.params, self.keys, backend="torch", **self.on(torch.device("cpu")))
        greedy = self.params.greedy
        assert torch.equal(out.token[greedy], cpu.token[greedy])
        live = (~dead & ~greedy).nonzero()[:, 0]
        p, token = steered[live].exp(), out.token[live, None]
        assert (p.gather(1, token) > 0).all()
        passed, uniform = p.cumsum(dim=1).gather(1, token), self.keys.uniforms()[live, None]
        assert (uniform < passed + 1e-5).all()
        assert (uniform > passed - p.gather(1, token) - 1e-5).all()
        for name, expected in reference_statistics(steered, base, out.token).items():
            if name in ("logprob", "base_logprob"):
                expected = expected.masked_fill(dead, NAN)
            got = getattr(out, name).double()
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
        return out


PLAIN = (1.0, 0, 1.0, 0.0)
MIXED: list[Row] = [
    PLAIN,
    (0.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.05),
    (1.0, 5, 1.0, 0.0),
    (2.0, 0, 0.6, 0.0),
    (1.0, 40, 0.8, 0.01),
]


def some_aux(n_guides: int, rows: int, vocab_size: int, dtype: torch.dtype = torch.float32) -> list[Aux]:
    """Guides of three parts each: two for one row, one of weight 0."""
    return [
        Aux(
            normal(3, vocab_size, scale=1.0, seed=10 + i).to(dtype),
            Placement.of([0, 0, rows - 1], [0.5, -0.75, 0.0 if i else 1.5], rows, "cpu"),
        )
        for i in range(n_guides)
    ]


def some_edits(rows: int, vocab_size: int) -> Edits:
    """A penalty, a ban and a boost per row; the first row has none."""
    ids = torch.tensor([[0, vocab_size // 2, vocab_size - 1]]).repeat(rows, 1)
    ids[0] = vocab_size
    mul = torch.tensor([[1.5, 1.0, 0.7]]).repeat(rows, 1)
    return Edits(ids, mul, torch.tensor([[-0.5, -INF, 4.0]]).repeat(rows, 1))


def some_mask(rows: int, vocab_size: int) -> Tensor:
    """Every row but the first may not use ids that are 3 modulo 5."""
    allowed = (torch.arange(-(-vocab_size // 32) * 32) % 5 != 3).view(-1, 32)
    words = (allowed.long() << torch.arange(32)).sum(dim=1)
    words = torch.where(words >= 2**31, words - 2**32, words).int().repeat(rows, 1)
    words[0] = -1
    return words


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "n_guides"),
    [
        (1, torch.float32, 1),
        (7, torch.bfloat16, 1),
        (32, torch.float16, 0),
        (1000, torch.bfloat16, 2),
        (1025, torch.float32, 1),
        (5003, torch.bfloat16, 1),
    ],
)
def test_agrees_with_the_reference(vocab_size: int, dtype: torch.dtype, n_guides: int) -> None:
    rows = len(MIXED)
    case = Case(normal(rows, vocab_size).to(dtype), MIXED, aux=some_aux(n_guides, rows, vocab_size, dtype))
    if vocab_size > 7:
        case.edits, case.bitmask = some_edits(rows, vocab_size), some_mask(rows, vocab_size)
        case.base_weight = torch.tensor([1.0, 0.0, -0.5, 2.0, 1.0, 1.0])
    case.check()


def test_a_base_of_weight_0_takes_no_part() -> None:
    base = normal(3, 100, scale=1.0)
    base[0, 5] = NAN
    guide = Aux(normal(3, 100, scale=1.0, seed=1), Placement.of(range(3), [1.0, 1.0, -1.0], 3, "cpu"))
    Case(base, [PLAIN, MIXED[3], MIXED[1]], torch.zeros(3), [guide]).check()


def test_more_guides_than_a_kernel_takes() -> None:
    case = Case(normal(3, 300), [PLAIN, MIXED[1], MIXED[3]], aux=some_aux(3, 3, 300), edits=some_edits(3, 300))
    case.check()
    case.reference = normal(3, 300, seed=5)
    case.check()


def test_three_slots_are_as_many_as_a_kernel_takes() -> None:
    guides = [
        Aux(normal(3, 300, scale=1.0, seed=i), Placement.of(range(3), [0.5, -0.25 * i, float(i)], 3, "cpu"))
        for i in range(3)
    ]
    Case(normal(3, 300), [PLAIN, MIXED[1], MIXED[5]], torch.tensor([1.0, -0.5, 0.0]), guides).check()


def test_a_vocabulary_of_many_tiles() -> None:
    rows: list[Row] = [PLAIN, (0.0, 0, 1.0, 0.0), (1.0, 60, 0.9, 0.01), (1.0, 0, 0.8, 0.0)]
    case = Case(normal(4, 20_000), rows, aux=some_aux(1, 4, 20_000), edits=some_edits(4, 20_000))
    case.bitmask = some_mask(4, 20_000)
    case.check()


@pytest.mark.parametrize("row", [PLAIN, (1.0, 0, 1.0, 0.02), (1.0, 50, 0.9, 0.0)])
def test_tiles_that_hold_what_is_not_finite(row: Row) -> None:
    """Of tiles that are all finite, one that holds -inf, all -inf, NaN and +inf, and one below every other."""
    base = normal(4, 12_000, scale=1.0)
    base[0, 3000:3050] = -INF
    base[1, 4096:8192] = -INF
    base[2, 10_000:] = -3e38
    base[3, ::7] = -INF
    guide = normal(4, 12_000, scale=1.0, seed=3)
    guide[1, ::3], guide[2, 5] = -INF, -INF
    weights = [0.5, -0.5, -1.0, 0.0]
    case = Case(base, [row] * 4, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    case.aux = [
        Aux(guide, Placement.of(range(4), weights, 4, "cpu")),
        Aux(base[3:].clamp(min=-9.0), Placement.of([3], [1.0], 4, "cpu")),
    ]
    case.check()
    base[0, 7000], base[0, 11_000] = NAN, INF
    out = case.run()
    assert out.nan.tolist() == [True, False, False, False]
    assert out.token[0] == 11_000


def test_the_reference_is_what_statistics_compare_with() -> None:
    case = Case(normal(2, 100), [PLAIN, MIXED[3]], reference=normal(2, 100, seed=5), aux=some_aux(1, 2, 100))
    case.base_weight = torch.tensor([1.0, -0.5])
    case.check()
    case.reference[0, 3] = -INF
    out = case.check()
    assert out.kl[0] == INF


@pytest.mark.parametrize("rows", [[PLAIN, MIXED[1], MIXED[2]], [MIXED[3], MIXED[4], (1.0, 3, 1.0, 0.3)]])
def test_implausible_tokens_are_dropped(rows: list[Row]) -> None:
    case = Case(normal(3, 200), rows, aux=some_aux(1, 3, 200), alpha=torch.tensor([0.05, 0.3, 0.0]))
    case.edits, case.bitmask = some_edits(3, 200), some_mask(3, 200)
    case.check()


@pytest.mark.parametrize("row", [(1.0, 500, 1.0, 0.0), (1.5, 0, 0.97, 0.0), (2.0, 3000, 0.9, 1e-3)])
def test_sets_wider_than_what_is_gathered(row: Row) -> None:
    Case(normal(1, 10_000, scale=1.0), [row]).check()


def test_ties_at_the_end_of_a_wide_set_keep_the_lowest_ids() -> None:
    base = torch.zeros(1, 9000)
    base[0, 8999] = 1e-3
    Case(base, [(1.0, 700, 0.5, 0.0)]).check()


@pytest.mark.parametrize("row", [(1.0, 3, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (1.0, 100, 0.5, 0.0), (0.0, 0, 1.0, 0.0)])
def test_ties_keep_the_lowest_ids(row: Row) -> None:
    base = torch.zeros(1, 300)
    base[0, 250] = 1.0
    base[0, 7] = -0.0
    Case(base, [row]).check()


def test_the_filters_see_each_other() -> None:
    base = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().repeat(4, 1)
    Case(base, [(1.0, 0, 0.65, 0.0), (1.0, 2, 0.55, 0.0), (1.0, 0, 0.8, 0.4), (0.5, 3, 1.0, 0.4)]).check()


def test_large_logits_keep_their_fraction() -> None:
    base = torch.full((4, 130), 1e4)
    base[:, 7] += torch.tensor([2.0**-10])
    base[3] = torch.arange(130.0) % 3
    rows = [(1e-3, 0, 1.0, 0.0), (1e-3, 4, 1.0, 0.0), (10.0, 0, 1.0, 0.5), PLAIN]
    case = Case(base, rows, aux=[Aux(torch.arange(130.0)[None] % 7, Placement.of([3], [1e4], 4, "cpu"))])
    case.check()


def test_infinite_and_broken_logits() -> None:
    base = normal(6, 70)
    base[0, :] = -INF
    base[1, [2, 3]] = INF
    base[2, :] = NAN
    base[3, 5], base[4, 9] = NAN, -INF
    guide = normal(6, 70, seed=2)
    guide[4, 3], guide[5, 8] = -INF, NAN
    rows: list[Row] = [PLAIN, PLAIN, PLAIN, (0.0, 0, 1.0, 0.0), (1.0, 60, 1.0, 0.0), (1.0, 0, 0.9, 0.0)]
    case = Case(base, rows, aux=[Aux(guide, Placement.of(range(6), [0.0, 0.0, 0.0, 1.0, -1.0, 1.0], 6, "cpu"))])
    out = case.run()
    assert out.token[[0, 2]].tolist() == [-1, -1]
    assert out.nan.tolist() == [False, False, True, True, False, True]
    assert out.entropy[[0, 2]].isnan().all()
    assert out.token[1] in (2, 3)
    assert out.entropy[1].item() == pytest.approx(math.log(2))
    case.base, case.rows = base[1:], rows[1:]
    case.aux = [
        Aux(guide[1:].nan_to_num(nan=-INF, neginf=-INF), Placement.of(range(5), [0, 0, 1.0, -1.0, 1.0], 5, "cpu"))
    ]
    case.check()


def test_strided_rows_and_unequal_neighbours() -> None:
    guarded = torch.full((7, 140), NAN)
    guarded[1::2, 5:105] = normal(3, 100)
    Case(guarded[1::2, 5:105], [PLAIN, MIXED[3], MIXED[1]]).check()


def test_a_row_draws_the_same_alone_and_in_any_batch() -> None:
    rows = [*MIXED, (1.0, 0, 1.0, 0.0)]
    case = Case(normal(len(rows), 500).bfloat16(), rows, edits=some_edits(len(rows), 500))
    whole = case.run()
    for i in (0, 3, 6):
        out = steer_sample(
            case.base[i : i + 1].to(DEVICE),
            row_params(rows[i]),
            Keys(*(each[i : i + 1].to(DEVICE) for each in case.keys)),
            edits=case.edits.of(slice(i, i + 1)).to(DEVICE),
            logprobs=True,
            backend="triton",
        )
        assert out.token[0] == whole.token[i]
        assert out.logprob[0] == whole.logprob[i]


def test_features_that_no_row_uses_change_nothing() -> None:
    plain = Case(normal(2, 600), [PLAIN, (0.5, 0, 1.0, 0.0)])
    alone = plain.run()
    unused = Case(
        plain.base,
        plain.rows,
        base_weight=torch.ones(2),
        aux=[Aux(torch.full((2, 600), NAN), Placement.of([0, 1], [0.0, 0.0], 2, "cpu"))],
        edits=Edits(torch.full((2, 4), 600), torch.full((2, 4), 3.0), torch.full((2, 4), 3.0)),
        bitmask=torch.full((2, 19), -1, dtype=torch.int32),
        alpha=torch.zeros(2),
    ).run()
    for name, value in vars(alone).items():
        assert torch.equal(value, getattr(unused, name)), name


def test_changed_tells_whether_the_best_token_moved() -> None:
    base = torch.zeros(3, 100)
    base[:, 40] = 1.0
    edits = Edits(torch.tensor([[100], [40], [20]]), torch.ones(3, 1), torch.tensor([[0.0], [-2.0], [1.0]]))
    out = Case(base, [PLAIN, PLAIN, (1.0, 2, 1.0, 0.0)], edits=edits).check()
    assert out.changed.tolist() == [False, True, True]


def test_without_statistics_the_draw_is_the_same() -> None:
    case = Case(normal(len(MIXED), 400), MIXED)
    full, bare = case.run(), case.run(full=False)
    assert bare.kl.isnan().all()
    assert not bare.changed.any()
    assert torch.equal(full.token, bare.token)
    assert torch.equal(full.base_logprob, bare.base_logprob)


@pytest.mark.parametrize("n_guides", [0, 1, 3])
def test_scores_are_those_of_torch(n_guides: int) -> None:
    base, weight = normal(3, 1025), torch.tensor([1.0, 0.0, -2.0])
    base[1], base[2, 4] = NAN, -INF
    case = Case(base, [PLAIN] * 3, weight, some_aux(n_guides, 3, 1025, torch.bfloat16), some_edits(3, 1025))
    case.bitmask = some_mask(3, 1025)
    options = case.on(DEVICE), case.on(torch.device("cpu"))
    for each in options:
        del each["reference"], each["alpha"]
    got = steered_scores(base.to(DEVICE), backend="triton", **options[0]).cpu()
    torch.testing.assert_close(got, steered_scores(base, backend="torch", **options[1]), rtol=1e-5, atol=1e-5)


def test_an_empty_batch() -> None:
    params = RowParams(torch.empty(0), torch.empty(0).long(), torch.empty(0), torch.empty(0))
    assert steer_sample(torch.empty(0, 9, device=DEVICE), params, keys(0), backend="triton").token.tolist() == []
