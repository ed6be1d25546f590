"""Laws of answers, enumerated in float64, and whether draws follow them."""

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import TypeVar

import numpy as np
from toy import Logits

K = TypeVar("K", bound=Hashable)


def answer_law(table: Logits, prompt: Sequence[int], vocab: int, length: int) -> dict[tuple[int, ...], float]:
    """Probability of every answer of `length` of the first `vocab` tokens, by the softmax of the table's logits."""
    law = {}
    for answer in product(range(vocab), repeat=length):
        probability = 1.0
        for step, token in enumerate(answer):
            z = table([*prompt, *answer[:step]])
            probability *= math.exp(z[token]) / np.exp(z).sum()
        law[answer] = probability
    return law


def total_variation(counts: Mapping[K, int], law: Mapping[K, float]) -> float:
    """Half the sum of the absolute differences between frequencies and probabilities."""
    draws = sum(counts.values())
    return 0.5 * math.fsum(abs(counts.get(each, 0) / draws - law.get(each, 0.0)) for each in {*counts, *law})


def assert_law(counts: Mapping[K, int], law: Mapping[K, float]) -> None:
    """Fail unless the draws pass a chi-square test at 0.999; outcomes expected less than five times count as one."""
    draws = sum(counts.values())
    assert all(law.get(each, 0.0) > 0.0 for each, count in counts.items() if count), "drawn, and impossible"
    common = [each for each, p in law.items() if p * draws >= 5]
    pairs = [(counts.get(each, 0), law[each] * draws) for each in common]
    rest = math.fsum(p for p in law.values() if p * draws < 5) * draws
    if rest >= 5:
        pairs.append((draws - sum(count for count, _ in pairs), rest))
    statistic = math.fsum((count - expected) ** 2 / expected for count, expected in pairs)
    freedom = max(1, len(pairs) - 1)
    # The quantile at 0.999 by Wilson and Hilferty's cube; exact to 1 % from 5 degrees of freedom on.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    far = total_variation(counts, law)
    assert statistic < limit, f"chi-square {statistic:.1f} > {limit:.1f}, total variation distance {far:.4f}"
