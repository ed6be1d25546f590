"""The pass over the logits: what is forbidden stays so, candidate sets, abstention, and rows that break."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import VOCAB
from vllm_runner import Update, params

from trimtab.vllm.guide import RunningGuide
from trimtab.vllm.processor import TrimtabProcessor

Make = Callable[..., TrimtabProcessor]
INF = float("inf")
EOS = 256


def applied(processor: TrimtabProcessor, extra: dict[str, Any], logits: torch.Tensor, output: Any = ()) -> torch.Tensor:
    """One row, one step."""
    processor.update_state(Update(added=[(0, params(extra), [70, 71], list(output))]))
    return processor.apply(logits.clone()[None])[0]


def decoding(**given: Any) -> dict[str, Any]:
    return {"trimtab": json.dumps(given)}


def unsure(best: float) -> torch.Tensor:
    """Logits of a distribution whose likeliest token, 7, has the probability `best`."""
    logits = torch.full((VOCAB,), (1.0 - best) / (VOCAB - 1)).log()
    logits[7] = torch.tensor(best).log()
    return logits


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "genarm", "arm": "arm"},
        {"strategy": "mod", "weights": {"arm": 1.0}},
        {"strategy": "mod", "weights": {"base": 0.0, "arm": 1.0}, "alpha": 1.0},
        {"strategy": "genarm", "arm": "arm", "alpha": -1.0},
    ],
)
def test_what_vllm_forbids_stays_forbidden(make: Make, given: dict[str, Any]) -> None:
    logits = torch.randn(VOCAB)
    logits[::2] = -INF
    found = applied(make(torch.device("cpu")), decoding(**given), logits)
    assert torch.equal(found == -INF, logits == -INF)
    assert not torch.equal(found[1::2], logits[1::2])


def test_candidates_are_the_bases(bare: Make) -> None:
    logits = torch.randn(VOCAB)
    processor = bare(torch.device("cpu"))
    found = applied(processor, decoding(strategy="candidates", top_k=3), logits)
    assert set((found > -INF).nonzero()[:, 0].tolist()) == set(logits.topk(3).indices.tolist())
    found = applied(processor, decoding(strategy="candidates", alpha=0.3), logits)
    p = logits.softmax(0)
    assert torch.equal(found > -INF, p >= 0.3 * p.max())
    found = applied(processor, decoding(strategy="candidates", top_p=0.5), logits)
    kept = p[found > -INF]
    assert kept.sum() >= 0.5 > kept.sum() - kept.min()
    assert torch.equal(found[found > -INF], logits[found > -INF])
    found = applied(processor, decoding(strategy="candidates", top_k=3, keep_others=True), logits)
    assert torch.equal(found, logits)


def test_the_base_may_count_otherwise(bare: Make) -> None:
    logits = torch.randn(VOCAB)
    found = applied(bare(torch.device("cpu")), decoding(strategy="mixture", weights={"base": 0.5}), logits)
    assert torch.equal(found, logits * 0.5)


def test_presence_and_frequency_count_the_answer_alone(bare: Make) -> None:
    logits = torch.randn(VOCAB)
    extra = {"trimtab_presence_penalty": 0.5, "trimtab_frequency_penalty": 0.25, "trimtab_repetition_penalty": 2.0}
    expected = logits.clone()
    for token, count in ((70, 0), (71, 0), (80, 3), (81, 1)):  # 70 and 71 are the prompt
        old = logits[token]
        expected[token] = (old / 2 if old > 0 else old * 2) - (0.5 + 0.25 * count if count else 0.0)
    found = applied(bare(torch.device("cpu")), extra, logits, [80, 81, 80, 80])
    torch.testing.assert_close(found, expected)


def test_penalties_decide_what_is_a_candidate(bare: Make) -> None:
    logits = torch.zeros(VOCAB)
    logits[70], logits[9] = 3.0, 2.0
    extra = {**decoding(strategy="candidates", top_k=1), "trimtab_repetition_penalty": 4.0}
    assert applied(bare(torch.device("cpu")), extra, logits).argmax() == 9


@pytest.mark.parametrize(
    ("best", "below", "within", "written", "ends"),
    [
        (0.4, 0.5, 1, 0, True),
        (0.6, 0.5, 1, 0, False),
        (0.4, 0.5, 1, 1, False),
        (0.4, 0.5, 2, 1, True),
        (0.4, 0.5, 0, 9, True),
    ],
)
def test_abstention_ends_an_answer_whose_base_is_unsure(
    bare: Make, best: float, below: float, within: int, written: int, ends: bool
) -> None:
    extra = {"trimtab_abstain_below": below, "trimtab_abstain_within": within}
    logits = unsure(best)
    found = applied(bare(torch.device("cpu")), extra, logits, [80] * written)
    if ends:
        assert (found > -INF).nonzero().tolist() == [[EOS]]
    else:
        assert torch.equal(found, logits)


def test_abstention_yields_where_vllm_forbids_the_end(bare: Make) -> None:
    logits = unsure(0.1)
    logits[EOS] = -INF
    assert torch.equal(applied(bare(torch.device("cpu")), {"trimtab_abstain_below": 0.9}, logits), logits)


@pytest.mark.parametrize("broken", [float("nan"), -INF])
def test_a_row_that_a_guide_breaks_keeps_the_bases_logits(
    make: Make, monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    logits = torch.randn(VOCAB)
    monkeypatch.setattr(RunningGuide, "_forward", lambda self, group, history: torch.full((len(group), VOCAB), broken))
    assert torch.equal(applied(make(torch.device("cpu")), decoding(strategy="genarm", arm="arm"), logits), logits)
