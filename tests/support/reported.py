"""Rows as a run of 22 settings would leave them, made up."""

from math import log
from random import Random
from typing import Any

from trimtab.bench.records import BASE, Conditions, Distance, Gain, Interval, Percentiles, Row

CONDITIONS = Conditions(
    url="http://127.0.0.1:8000",
    model="demo",
    reward="positivity",
    gold="vader",
    prompts="trimtab",
    digest="4be1c2d07a915ce3",
    seed=0,
    repeats=1,
    max_tokens=48,
    temperature=1.0,
    version="0.1.0",
    commit="0123abc",
    dtype="bfloat16",
    device="cpu",
    machine={
        "cpu": "Made-up CPU @ 2.80GHz",
        "cores": 2,
        "threads": 2,
        "gpu": None,
        "python": "3.11.9",
        "torch": "2.11",
    },
)

# name, strategy, level, family, strength, reward, gold, p50 ms, KL, tokens spent
MEASURED: tuple[tuple[str, str, str, str, float | None, float, float, float, float, float], ...] = (
    (BASE, "sample", "base", "", None, 0.52, 0.31, 905, 0.0, 48),
    ("control_vector 0.5", "control_vector", "token", "control_vector", 0.5, 0.71, 0.36, 931, 1.9, 48),
    ("control_vector 1.0", "control_vector", "token", "control_vector", 1.0, 0.86, 0.33, 934, 7.4, 48),
    ("control_vector 2.0", "control_vector", "token", "control_vector", 2.0, 0.95, 0.11, 940, 31.0, 48),
    ("genarm 0.5", "genarm", "token", "genarm", 0.5, 0.98, 0.42, 1480, 2.3, 97),
    ("genarm 1.0", "genarm", "token", "genarm", 1.0, 1.37, 0.49, 1495, 8.1, 97),
    ("genarm 2.0", "genarm", "token", "genarm", 2.0, 1.71, 0.41, 1510, 24.0, 97),
    ("args 0.5", "args", "token", "args", 0.5, 0.88, 0.40, 2890, 1.6, 540),
    ("args 1.5", "args", "token", "args", 1.5, 1.32, 0.45, 2930, 6.9, 540),
    ("args 4.0", "args", "token", "args", 4.0, 1.64, 0.30, 2950, 21.0, 540),
    ("nudging", "nudging", "token", "", None, 0.66, 0.34, 1320, 3.1, 88),
    ("proxy_tuning", "proxy_tuning", "token", "", None, 0.93, 0.39, 1730, 5.5, 144),
    ("fudge", "fudge", "token", "", None, 1.21, 0.44, 1990, 6.0, 190),
    ("cd_blockwise", "cd_blockwise", "answer", "", None, 1.18, 0.46, 2410, 2.9, 230),
    ("cbs", "cbs", "answer", "", None, 1.24, 0.47, 2720, 3.3, 260),
    ("speculative_rejection", "speculative_rejection", "answer", "", None, 1.14, 0.45, 1890, 2.1, 170),
    ("treebon", "treebon", "answer", "", None, 1.29, 0.48, 3110, 2.8, 330),
    ("beam_search", "beam_search", "answer", "", None, 0.47, 0.28, 2240, 1.7, 195),
    ("urial", "urial", "prompt", "", None, 0.74, 0.43, 1130, 12.5, 320),
    ("system prompt", "sample", "prompt", "", None, 0.62, 0.38, 960, 9.0, 75),
    ("principles", "sample", "prompt", "", None, 0.58, 0.36, 1010, 8.2, 130),
)
CURVE = ((2, 0.79, 0.37, 1150), (4, 1.02, 0.42, 1610), (8, 1.21, 0.46, 2520), (16, 1.36, 0.49, 4480))


def row(setting: str, **changes: Any) -> Row:
    """A row without measurements but for those given."""
    plain: dict[str, Any] = {
        "strategy": "sample",
        "level": "base" if setting == BASE else "token",
        "family": "",
        "strength": None,
        "decoding": {},
        "concurrency": 8,
        "prompts": 40,
        "answers": 40,
        "conditions": CONDITIONS,
    }
    return Row(setting=setting, **{**plain, **changes})


def measured(
    setting: str, reward: float, p50: float, *, gold: float | None = None, half: float = 0.11, **changes: Any
) -> Row:
    """A row with a reward, its gain over a base of reward 0.52 and gold 0.31, and a latency."""
    found: dict[str, Any] = {
        "reward": _interval(reward, 0.13),
        "e2e_ms": Percentiles(p50=p50, p95=1.23 * p50, p99=1.31 * p50),
        "ttft_ms": Percentiles(p50=0.11 * p50, p95=0.15 * p50, p99=0.16 * p50),
        "per_token_ms": Percentiles(p50=p50 / 48, p95=p50 / 44, p99=p50 / 42),
    }
    plain = setting == BASE
    found["reward_gain"] = Gain(mean=0, low=0, high=0, improved=0) if plain else _gain(reward - 0.52, half)
    if gold is not None:
        found["gold"] = _interval(gold, 0.06)
        found["gold_prompts"] = 36
        found["gold_gain"] = Gain(mean=0, low=0, high=0, improved=0) if plain else _gain(gold - 0.31, 0.05)
    return row(setting, **{**found, **changes})


def many() -> list[Row]:
    """22 settings and a curve of best-of-n at 8 requests at once, some of them at 1 and 16 too, one that failed."""
    draw = Random(7)
    rows: list[Row] = []
    for name, strategy, level, family, strength, reward, gold, p50, kl, spent in MEASURED:
        search = level == "answer"
        shared: dict[str, Any] = {
            "strategy": strategy,
            "level": level,
            "family": family,
            "strength": strength,
            "decoding": {} if name == BASE else {"strategy": strategy, "reward": "positivity"},
            "spent": {"demo": spent * 0.8, "positivity": spent * 0.2} if spent > 60 else {"demo": spent},
            "forwards": {"demo": 48.0, "positivity": 12.0} if spent > 60 else {"demo": 48.0},
            "delivered": 46.0 + draw.random(),
            "truncated": 0.8 + 0.1 * draw.random(),
            "distinct": {1: 0.41 + 0.02 * draw.random(), 2: 0.83, 3: 0.95},
            "repetition": 0.01 + 0.01 * draw.random(),
            "branching": None if search else 9.0 + draw.random(),
            "peak_memory_mib": 1210.0 + 10 * draw.random(),
        }
        chance = 0.5 + 0.27 * (reward - 0.52)
        for concurrency, speed in ((8, 1.0), (1, 0.31), (16, 1.9)):
            if concurrency > 1 and name in ("nudging", "urial") and concurrency != 8:
                continue
            first = concurrency == 8
            rows.append(
                measured(
                    name,
                    reward,
                    p50 * speed,
                    gold=gold,
                    half=0.06 + 0.1 * draw.random(),
                    concurrency=concurrency,
                    prompts=40 if first else 8,
                    answers=40 if first else 8,
                    tokens_per_second=concurrency * 46_000 / (p50 * speed),
                    requests_per_second=concurrency * 1000 / (p50 * speed),
                    win_rate=_interval(chance, 0.0 if name == BASE else 0.1),
                    kl=Distance(mean=kl, bound=search),
                    **shared,
                )
            )
    for n, reward, gold, p50 in CURVE:
        rows.append(best_of(n, reward, p50, gold=gold))
    rows.append(
        row(
            "ppo_mcts",
            strategy="ppo_mcts",
            level="answer",
            error="guide 'value' is not loaded: name it under engine.guides",
        )
    )
    return rows


def best_of(n: int, reward: float, p50: float, *, gold: float | None = None, **changes: Any) -> Row:
    """A row of the best-of-n curve; those below 16 are estimates."""
    found: dict[str, Any] = {
        "strategy": "best_of_n",
        "level": "answer",
        "family": "best_of_n",
        "strength": float(n),
        "decoding": {"strategy": "best_of_n", "n": n, "reward": "positivity"},
        "estimated": None if n == 16 else "order statistics of 16 answers",
        "win_rate": _interval(n / (n + 1), 0.02),
        "kl": Distance(mean=log(n) - (n - 1) / n, bound=True),
        "tokens_per_second": 8 * 46_000 / p50,
        "spent": {"demo": 48.0 * n, "positivity": 50.0 * n},
        "forwards": {"demo": 48.0, "positivity": 1.0},
        "peak_memory_mib": 1200.0 + 9 * n,
        "delivered": 46.0,
    }
    return measured(f"best_of_n {n}", reward, p50, gold=gold, half=0.08, **{**found, **changes})


def _interval(mean: float, half: float) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half)


def _gain(mean: float, half: float) -> Gain:
    return Gain(mean=mean, low=mean - half, high=mean + half, improved=min(0.95, max(0.05, 0.5 + mean / 2)))
