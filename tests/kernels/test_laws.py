"""What holds for draws on either backend: the law of heavy tails, and what must not move a draw."""

import pytest
import torch
from device import DEVICE
from rows import keys, normal, p_value, row_params, some
from torch import Tensor

from trimtab.kernels.backend import Backend
from trimtab.kernels.edits import Edits
from trimtab.kernels.mixing import Aux, Placement
from trimtab.kernels.steer_sample import steer_sample

OPEN = (1.0, 0, 1.0, 0.0)
ROWS = [OPEN, (0.7, 0, 1.0, 0.05), (1.3, 9, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (0.0, 0, 1.0, 0.0)]


def heavy_tailed(vocab_size: int) -> Tensor:
    """Logits of a Zipf law of exponent 1.1, shuffled: half of its mass lies in tokens of less than a thousandth."""
    order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(3))
    return (-1.1 * torch.arange(1, vocab_size + 1).float().log())[order]


def test_a_heavy_tail_is_drawn_as_often_as_it_should() -> None:
    n, logits = 40_000, heavy_tailed(5000)
    probs = logits.double().softmax(dim=0)
    params, every = row_params(*[OPEN] * 2000), torch.arange(n).split(2000)
    drawn = [steer_sample(logits.expand(2000, -1), params, some(keys(n, seed=8), part)).token for part in every]
    observed = torch.bincount(torch.cat(drawn), minlength=len(logits))
    assert p_value(observed, probs) > 1e-3
    rare = probs < 1e-3
    share, expected = observed[rare].sum() / n, probs[rare].sum()
    assert expected > 0.3
    assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_triton_draws_the_same_tokens_from_a_heavy_tail() -> None:
    """Equal tokens, key by key, have the same law; 300 of them cost seconds in the interpreter."""
    n, logits = 300, heavy_tailed(700)
    batch, params = logits.expand(n, -1).contiguous().to(DEVICE), row_params(*[OPEN] * n)
    found = steer_sample(batch, params, keys(n, seed=8, device=DEVICE), backend="triton").token.cpu()
    expected = steer_sample(logits.expand(n, -1), params, keys(n, seed=8), backend="torch").token
    assert (found != expected).sum() <= 1  # a uniform may lie on the boundary of two tokens
    assert expected.unique().numel() > 80


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_constant_added_to_a_model_moves_no_draw(backend: Backend) -> None:
    n, vocab_size = len(ROWS), 500
    base, guide = normal(n, vocab_size).to(DEVICE), normal(n, vocab_size, seed=1).to(DEVICE)
    placement = Placement.of(list(range(n)), [0.5] * n, n, DEVICE)
    added = Edits(*(each.to(DEVICE) for each in (torch.full((n, 1), 7), torch.ones(n, 1), torch.full((n, 1), 2.0))))
    measured = torch.ones(n, dtype=torch.bool, device=DEVICE)

    def draw(shift: float, guide_shift: float) -> tuple[list[int], Tensor]:
        out = steer_sample(
            base + shift,
            row_params(*ROWS),
            keys(n, device=DEVICE),
            aux=[Aux(guide + guide_shift, placement)],
            edits=added,
            measured=measured,
            backend=backend,
        )
        return out.token.tolist(), torch.stack((out.logprob, out.base_logprob, out.kl, out.entropy)).cpu()

    tokens, numbers = draw(0.0, 0.0)
    for shifts in ((4.0, 0.0), (0.0, -8.0)):
        same, close = draw(*shifts)
        assert same == tokens
        torch.testing.assert_close(close, numbers, rtol=1e-4, atol=1e-4)
