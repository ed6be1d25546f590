"""A toy base with one guide of every kind, on a vocabulary so small that a trace shows whole distributions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from toy import Logits, Toy, byte_tokenizer, random_table

from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.results import Choice, TokenTrace
from trimtab.engine.vocabulary import Vocabulary

V, EOS = 5, 4
PROMPT = [2, 1, 3]
BYTES, END = 257, 256  # of the byte tokenizer, its EOS last
BASES: dict[str, dict[str, Any]] = {
    "args": {"reward": "rm", "w": 0.5, "k": 3},
    "rad": {"reward": "rm", "k": 3},
    "fudge": {"classifier": "v", "k": 4},
    "cd": {"value": "q"},
    "ivo": {"value": "q"},
    "vas": {"value": "v", "k": 3},
    "genarm": {"arm": "a"},
    "pad": {"arm": "a", "k": 4},
    "dera": {"aligned": "a"},
    "mod": {"weights": {"a": 0.5, "base": 0.5}},
    "proxy_tuning": {"expert": "a", "antiexpert": "b"},
    "dexperts": {"expert": "a", "antiexpert": "b"},
    "eft": {"tuned": "a"},
    "ivl": {"value": "a"},
    "contrastive": {"amateur": "a"},
    "cfg": {},
    "re_control": {"value": "h", "lr": 0.1},
    "control_vector": {"vector": "c"},
    "panacea": {"guide": "p", "preference": {"x": 0.75, "y": 0.25}},
    "mixture": {"weights": {"a": 0.5}},
    "candidates": {"top_k": 3},
    "value": {"guide": "q"},
}
"""a request for every method that steers scores"""
Array = np.ndarray
Value = Callable[[Sequence[int]], float]
BASE = random_table(V)


def voice(salt: int) -> Logits:
    """A table that has nothing to do with that of another salt."""
    return lambda prefix: BASE([*prefix, 100 + salt])


def value_of(table: Logits) -> Value:
    """A number for every prefix."""
    return lambda prefix: float(table(prefix)[0])


LMS = {"a": voice(1), "b": voice(2)}
SCORERS = {"rm": value_of(voice(3)), "v": value_of(voice(4))}
HEADS = {  # a head of the whole vocabulary, and one with a hidden layer and one output
    "q": [np.random.default_rng(5).normal(size=(V, V)).astype("f")],
    "q2": [np.random.default_rng(8).normal(size=(V, V)).astype("f")],
    "h": [np.random.default_rng(6).normal(size=shape).astype("f") for shape in ((7, V), (1, 7))],
    "h2": [np.random.default_rng(9).normal(size=shape).astype("f") for shape in ((7, V), (1, 7))],
}
BLOCKS = {name: np.random.default_rng(seed).normal(size=(3, V)) for name, seed in (("p", 11), ("p2", 12))}
"""of adapters: what is added under every preference, and for the attributes x and y"""
VECTORS = {"c": np.random.default_rng(7).normal(size=V), "c2": np.random.default_rng(10).normal(size=V)}


def zoo(**options: Any) -> Toy:
    """The base with two language models, scorers, value heads of both widths, control vectors and scaled adapters."""
    toy = Toy(BASE, eos=EOS, **options)
    for name, table in LMS.items():
        toy.add_lm(name, table)
    for name, value in SCORERS.items():
        toy.add_scorer(name, value)
    for name, weights in HEADS.items():
        toy.add_head(name, ValueHead([torch.from_numpy(w) for w in weights], [torch.zeros(len(w)) for w in weights]))
    for name, direction in VECTORS.items():
        toy.add_vector(name, direction)
    for name, (general, x, y) in BLOCKS.items():
        toy.add_adapter(name, general, {"x": x, "y": y})
    return toy


def babble(salt: int) -> Logits:
    """Words of three letters' choice, at all degrees of certainty."""
    table, shown = random_table(BYTES, scale=2.0), Vocabulary(byte_tokenizer()).encode("abc ")

    def logits(prefix: Sequence[int]) -> np.ndarray:
        z = np.full(BYTES, -30.0)
        z[shown] = table([*prefix, salt])[shown]
        return z

    return logits


def log_softmax(z: Array) -> Array:
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def whole(top: Sequence[tuple[int, float]]) -> Array:
    """Log-probabilities of all tokens out of a traced list of the best."""
    return np.array([dict(top)[token] for token in range(V)])


def positions(choice: Choice) -> list[tuple[list[int], TokenTrace]]:
    """The tokens of a traced answer, each with those before it."""
    assert choice.trace is not None
    ids = [each.id for each in choice.trace]
    assert tuple(ids) == choice.token_ids
    return [(ids[:i], each) for i, each in enumerate(choice.trace)]
