"""Every search on toys: a small request for each, and the models and rewards that they ask for."""

import math
from collections.abc import Callable
from typing import Any

from toy import Toy, random_table

from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings

VOCAB, EOS, LENGTH = 257, 7, 10
PROMPT = [3, 1, 4]
MESSAGES = ({"role": "user", "content": "Hi"},)
TABLE, OTHER = random_table(VOCAB, scale=2.5), random_table(VOCAB, scale=3.0)
ONE = {"reward": "taste"}
STEP = {"separator": "e", "step_tokens": 4}
SEARCHES: dict[str, dict[str, Any]] = {
    "beam_search": {"n": 4, "m": 2, "value": "taste", **STEP},
    "best_of_n": {"n": 4, **ONE},
    "cards": {"target": 2.0, "length": 8, "min_segment": 2, "max_segment": 4, "attempts": 3, "parallel": 2, **ONE},
    "cbs": {"w": 2, "k": 2, "chunk": 3, "tuned": "other"},
    "cd_blockwise": {"k": 3, "block": 3, "value": "taste"},
    "darwin": {"mutations": 2, "m": 3, "elite": 2, "mutation_tokens": 4, **ONE},
    "deal": {"beams": 2, "k": 3, "lookahead": 2, **ONE},
    "dts": {"simulations": 6, "block": 3, "parallel": 2, **ONE},
    "dts_star": {"simulations": 6, "block": 3, "parallel": 2, **ONE},
    "dvts": {"n": 4, "m": 2, "value": "taste", **STEP},
    "gsi": {"draft": "other", "value": "taste", "n": 3, "beta": 1.0, "threshold": 0.5, **STEP},
    "particle_filter": {"n": 4, "block": 3, "ess": 1.0, **ONE},
    "ppo_mcts": {"value": "taste", "simulations": 4, "k": 3},
    "qalign": {"steps": 5, **ONE},
    "refine": {"guide": "other", "rounds": 2, "n": 2, **ONE},
    "rps": {"directions": 3, "preference": {"taste": 1.0, "short": 0.5}},
    "rsd": {"draft": "other", "value": "taste", "delta": 0.2, **STEP},
    "self_consistency": {"n": 4, "extract": "text", "least": 4},
    "speculative_rejection": {"n": 4, "schedule": [3, 6], **ONE},
    "tqstar": {"k": 3, "rollout": 2, **ONE},
    "treebon": {"n": 4, "children": 2, "layers": 3, "dpo": "other", **ONE},
    "ts_llm": {"value": "taste", "simulations": 3, "width": 2, "step_tokens": 3, "endings": ["e"]},
}
SAMPLED = SamplingParams(seed=5, max_tokens=LENGTH)


def taste(text: str) -> float:
    return math.sin(sum(map(ord, text)) % 97)


def toy(reward: Callable[[str], float] = taste, settings: EngineSettings | None = None) -> Toy:
    engine = Toy(TABLE, rewards={"taste": reward, "short": lambda text: -float(len(text))}, eos=EOS, settings=settings)
    engine.add_lm("other", OTHER)
    return engine
