"""Mixtures, masks and plausibility inside the pass that draws, on the torch path."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rows import keys, normal, row_params, traced
from torch import Tensor

from trimtab.kernels import compiled
from trimtab.kernels.edits import Edits
from trimtab.kernels.mixing import Aux, Placement
from trimtab.kernels.statistics import SteerOut
from trimtab.kernels.steer_sample import reference_steer, steer_sample, steered_scores, unpacked_mask

INF, NAN = math.inf, math.nan
SCRIPT = Path(__file__).parents[1] / "support" / "compiled_draws.py"
ROWS = [(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.1)]


def guides(rows: int, vocab_size: int) -> list[Aux]:
    """Two guides: one for every row, with a weight of 0 among them; one that reads the last row twice."""
    first, second = normal(rows, vocab_size, seed=1), normal(2, vocab_size, seed=2)
    weights = [0.0, 0.5, -1.0, 2.0, 1.5][:rows]
    every = Placement.of(list(range(rows)), weights, rows, "cpu")
    return [Aux(first, every), Aux(second, Placement.of([rows - 1] * 2, [0.25, -0.75], rows, "cpu"))]


def masked(rows: int, vocab_size: int, every: int) -> tuple[Tensor, Tensor]:
    """A mask without every n-th token, as bits and as bool."""
    allowed = torch.arange(vocab_size) % every != 1
    bits = torch.zeros(-(-vocab_size // 32), dtype=torch.int64)
    for token in allowed.nonzero()[:, 0].tolist():
        bits[token // 32] |= 1 << (token % 32)
    words = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).int()
    return words.repeat(rows, 1), allowed.repeat(rows, 1)


def banned(rows: int, vocab_size: int) -> Edits:
    ids = torch.tensor([[2, vocab_size // 2]]).repeat(rows, 1)
    return Edits(ids, torch.tensor([[1.5, 1.0]]).repeat(rows, 1), torch.tensor([[0.5, -INF]]).repeat(rows, 1))


def check(out: SteerOut, steered: Tensor, base: Tensor) -> None:
    token = out.token[:, None]
    torch.testing.assert_close(out.logprob.double(), steered.gather(1, token)[:, 0], rtol=3e-5, atol=3e-5)
    torch.testing.assert_close(out.base_logprob.double(), base.gather(1, token)[:, 0], rtol=3e-5, atol=3e-5)
    kl = torch.where(steered == -INF, 0.0, steered.exp() * (steered - base)).sum(dim=1)
    torch.testing.assert_close(out.kl.double(), kl, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("vocab_size", [40, 1000])
def test_a_mixture_is_drawn_from_as_specified(vocab_size: int) -> None:
    n = len(ROWS)
    base, weight = normal(n, vocab_size), torch.tensor([1.0, 0.5, 1.0, -0.5, 2.0])
    words, allowed = masked(n, vocab_size, every=7)
    assert torch.equal(unpacked_mask(words, vocab_size), allowed)
    parts = {"base_weight": weight, "aux": guides(n, vocab_size), "edits": banned(n, vocab_size), "bitmask": words}
    params = row_params(*ROWS)
    out = steer_sample(base, params, keys(n), measured=torch.ones(n, dtype=torch.bool), **parts)
    steered, plain = reference_steer(base, params, **parts)
    check(out, steered, plain)
    assert allowed.gather(1, out.token[:, None]).all()
    written = steered_scores(base, **parts)
    again = steer_sample(written, params, keys(n), reference=base, measured=torch.ones(n, dtype=torch.bool))
    assert torch.equal(again.token, out.token)
    torch.testing.assert_close(again.kl, out.kl)
    for name in parts:
        others = {key: value for key, value in parts.items() if key != name}
        assert not torch.equal(steered_scores(base, **others), written), name


def test_plausibility_is_judged_by_the_base_under_its_edits() -> None:
    """The token of the mixture's choice is implausible; a ban on the base's best one lets it in."""
    base = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    guide = [Aux(torch.tensor([[0.0, 0.0, 9.0, 0.0]]), Placement.of([0], [1.0], 1, "cpu"))]
    alpha, greedy = torch.tensor([0.1]), row_params((0.0, 0, 1.0, 0.0))
    edits = Edits(torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([[-INF]]))
    assert steer_sample(base, greedy, keys(1), aux=guide).token.item() == 2
    assert steer_sample(base, greedy, keys(1), aux=guide, alpha=alpha).token.item() == 0
    assert steer_sample(base, greedy, keys(1), aux=guide, alpha=alpha, edits=edits).token.item() == 2
    assert steer_sample(base, greedy, keys(1), aux=guide, alpha=torch.zeros(1)).token.item() == 2
    parts = {"aux": guide, "alpha": alpha, "edits": edits}
    out = steer_sample(base, greedy, keys(1), measured=torch.ones(1, dtype=torch.bool), **parts)
    check(out, *reference_steer(base, greedy, **parts))


def test_plausibility_does_not_hide_a_broken_base() -> None:
    base = torch.tensor([[3.0, NAN, 0.0]])
    out = steer_sample(base, row_params((1.0, 0, 1.0, 0.0)), keys(1), alpha=torch.tensor([0.5]))
    assert out.nan.tolist() == [True]
    guide = [Aux(torch.tensor([[0.0, 9.0, 0.0]]), Placement.of([0], [1.0], 1, "cpu"))]
    params, weight = row_params((0.0, 0, 1.0, 0.0)), torch.zeros(1)  # the base judges and takes no part
    out = steer_sample(base, params, keys(1), base_weight=weight, aux=guide, alpha=torch.tensor([0.5]))
    assert (out.token.item(), out.nan.item()) == (0, False)


def test_plausibility_has_one_judge() -> None:
    base = normal(1, 9)
    with pytest.raises(ValueError, match="either alpha or reference"):
        steer_sample(base, row_params((1.0, 0, 1.0, 0.0)), keys(1), alpha=torch.ones(1), reference=base)


def test_the_logits_given_stay_as_they_are() -> None:
    n, base = len(ROWS), normal(len(ROWS), 300)
    before = base.clone()
    words, _ = masked(n, 300, every=5)
    steer_sample(base, row_params(*ROWS), keys(n), edits=banned(n, 300), bitmask=words, alpha=torch.full((n,), 0.1))
    steered_scores(base).zero_()
    assert torch.equal(base, before)


def test_compiled_loops_give_the_same_draws_and_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_compiled", traced)
    n, vocab_size = len(ROWS), 1000
    base = normal(n, vocab_size)
    base[:, ::9] = -INF
    for measured in (None, torch.ones(n, dtype=torch.bool), torch.tensor([True, False, True, False, True])):
        plain, found = (
            steer_sample(
                base, row_params(*ROWS), keys(n), aux=guides(n, vocab_size), measured=measured, backend=backend
            )
            for backend in ("torch", "compiled")
        )
        assert torch.equal(found.token, plain.token)
        for name in ("logprob", "entropy", "kl", "base_entropy", "top1"):
            mine, theirs = getattr(found, name), getattr(plain, name)
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
def test_really_compiled_loops_give_the_same_too() -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    run = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert run.stdout == "equal\n", run.stderr
