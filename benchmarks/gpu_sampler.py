"""Sections of the GPU benchmark about single passes: the floor of launches, bandwidth, the sampler, its draws."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from eager import eager_chain
from gpu_place import Place, launched, replayed
from torch import Tensor

from trimtab.kernels.mixing import Aux, Placement
from trimtab.kernels.philox import Keys
from trimtab.kernels.survivors import RowParams

Row = dict[str, object]
BATCHES, VOCABULARIES, DTYPES, GUIDES = (1, 8, 64, 256), (151_936, 49_152), ("bfloat16", "float32"), (0, 1, 2)
COMPILED = {(1, 1), (8, 1), (64, 1), (64, 0)}
"""(batch, guides) in bfloat16 that torch.compile is timed at too: each takes it many seconds"""
MOST_SETS = 1024  # of inputs that take turns, so that none is found in the cache
DRAWS, DRAWN_VOCABULARY = 5_000_000, 128_000


def floor(place: Place) -> Iterator[Row]:
    """What launches cost that do nothing."""
    import triton

    @triton.jit
    def nothing(out_ptr):  # type: ignore[no-untyped-def]
        pass

    out = torch.zeros(1, device=place.device)

    def launch(programs: int) -> None:
        nothing[(programs,)](out)

    for programs in (1, 8) if place.dry else (1, 132, 9728):
        run = partial(launch, programs)
        yield {
            "programs": programs,
            "in a graph us": replayed(place, [run] * 20) * 1e6,
            "from Python us": launched(place, run) * 1e6,
        }


def bandwidth(place: Place) -> Iterator[Row]:
    """Bytes per second of a copy, reads and writes counted, and of a sum, which only reads."""
    size = 2**12 if place.dry else 2**30
    source = torch.ones(size // 4, device=place.device)
    target = torch.empty_like(source)
    yield {"what": "copy", "GB/s": 2 * size / replayed(place, [lambda: target.copy_(source)], total=0.1) / 1e9}
    yield {"what": "sum", "GB/s": size / replayed(place, [lambda: source.sum()], total=0.1) / 1e9}


def sampler(place: Place) -> Iterator[Row]:
    """The sampler pass with all statistics, cold and warm, beside the eager chain and torch.compile."""
    batches, vocabularies = ((2,), (300,)) if place.dry else (BATCHES, VOCABULARIES)
    for vocab, dtype, count, batch in product(vocabularies, DTYPES, GUIDES, batches):
        if place.left < 5:
            return
        yield _pass(place, batch, vocab, getattr(torch, dtype), count)


def _pass(place: Place, batch: int, vocab: int, dtype: torch.dtype, count: int) -> Row:
    nbytes = (1 + count) * batch * vocab * dtype.itemsize
    sets = 2 if place.dry else min(MOST_SETS, max(2, -(-3 * place.cache // nbytes)))
    logits = place.random(sets, 1 + count, batch, vocab, dtype=dtype)
    row: Row = {
        "batch": batch,
        "vocab": vocab,
        "dtype": str(dtype).removeprefix("torch."),
        "guides": count,
        "bytes": nbytes,
        "sets": sets,
    }
    triton = _triton_pass(place, batch, count)
    ranked = _triton_pass(place, batch, count, top_k=50, top_p=0.9)
    row["cold us"] = replayed(place, [partial(triton, each) for each in logits]) * 1e6
    row["warm us"] = replayed(place, [partial(triton, logits[0])] * (2 if place.dry else 16)) * 1e6
    row["cold us, top-k and top-p"] = replayed(place, [partial(ranked, each) for each in logits]) * 1e6
    weights, temperature = torch.ones(batch, 1 + count, device=place.device), torch.ones(batch, device=place.device)

    def chain(each: Tensor) -> object:
        return eager_chain(each[0], tuple(each[1:]), weights, temperature)

    few = [partial(chain, each) for each in logits[: 2 if place.dry else 16]]
    row["eager us"] = launched(place, few[0]) * 1e6
    row["eager in a graph us"] = replayed(place, few) * 1e6
    if place.dry or (dtype == torch.bfloat16 and vocab == max(VOCABULARIES) and (batch, count) in COMPILED):
        # In a dry run dynamo traces, and nothing is compiled.
        compiled = torch.compile(eager_chain, dynamic=False, backend="eager" if place.dry else "inductor")
        first, others = logits[0, 0], tuple(logits[0, 1:])
        row["compiled us"] = launched(place, partial(compiled, first, others, weights, temperature)) * 1e6
    return row


def _triton_pass(
    place: Place, batch: int, count: int, *, top_k: int = 0, top_p: float = 1.0
) -> Callable[[Tensor], object]:
    """A pass over logits (1 + guides, B, V), packed as the kernel leaves it: nothing comes back to the CPU."""
    from trimtab.kernels.steer_sample_triton import steer_sample_triton

    one = torch.ones(batch)
    params = RowParams(one, torch.full((batch,), top_k), one * top_p, torch.zeros(batch))
    keys = _keys(place, batch)
    placement = Placement.of(range(batch), [0.5] * batch, batch, place.device)

    def run(logits: Tensor) -> object:
        aux = [Aux(each, placement) for each in logits[1:]]
        return steer_sample_triton(
            logits[0],
            params,
            keys,
            base_weight=None,
            aux=aux,
            edits=None,
            bitmask=None,
            alpha=None,
            reference=None,
            full=True,
        )

    return run


def draws(place: Place) -> Iterator[Row]:
    """Whether tokens come as often as their probabilities say: chi-square over draws from one row of logits."""
    vocab, rows, wanted = (20, 16, 64) if place.dry else (DRAWN_VOCABULARY, 4096, DRAWS)
    torch.manual_seed(0)
    for name, logits in (
        ("normal", place.random(vocab, scale=1.0)),
        ("heavy tail", -1.1 * torch.arange(1, vocab + 1, device=place.device).log()[torch.randperm(vocab)]),
    ):
        run = _triton_pass_keyed(place, logits.expand(rows, vocab))
        counts = torch.zeros(vocab, dtype=torch.float64, device=place.device)
        ones = torch.ones(rows, dtype=torch.float64, device=place.device)
        launches = -(-wanted // rows)
        for launch in range(launches):
            counts.index_add_(0, run(launch * rows).long(), ones)
        expected = logits.double().softmax(0) * (launches * rows)
        common = expected >= 5  # the others count as one
        seen, due = ([*each[common].tolist(), float(each[~common].sum())] for each in (counts, expected))
        if due[-1] < 5:
            seen, due = [*seen[:-2], seen[-2] + seen[-1]], [*due[:-2], due[-2] + due[-1]]
        chi2 = sum((s - d) ** 2 / d for s, d in zip(seen, due, strict=True))
        df = len(due) - 1
        bound = df + 10 * (2 * df) ** 0.5
        yield {"target": name, "vocab": vocab, "draws": launches * rows, "chi2": chi2, "df": df, "bound": bound}


def _triton_pass_keyed(place: Place, logits: Tensor) -> Callable[[int], Tensor]:
    """A draw for every row of `logits` (R, V), from the position given; returns the tokens (R,)."""
    from trimtab.kernels.steer_sample_triton import steer_sample_triton

    rows = len(logits)
    one = torch.ones(rows)
    params = RowParams(one, torch.zeros(rows, dtype=torch.int64), one, torch.zeros(rows))
    seeds, streams, positions = _keys(place, rows)

    def run(start: int) -> Tensor:
        packed = steer_sample_triton(
            logits,
            params,
            Keys(seeds, streams, positions + start),
            base_weight=None,
            aux=(),
            edits=None,
            bitmask=None,
            alpha=None,
            reference=None,
            full=False,
        )
        return packed[:, 0]

    return run


def _keys(place: Place, rows: int) -> Keys:
    zeros = torch.zeros(rows, dtype=torch.int64, device=place.device)
    return Keys(zeros + 7, zeros, torch.arange(rows, device=place.device))
