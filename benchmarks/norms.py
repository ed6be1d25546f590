"""Retrieval of norms: milliseconds per query over many made-up rules, and edits per second, in one run.

Rules are sentences of common words and of made-up names, whose frequencies follow Zipf's law; a third of them belong to
one of 200 tenants. Two threads ask at the same time. Vectors are random, so that they measure time alone.
"""

import argparse
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, product
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from report import print_json, print_table

from trimtab.decoders.library import Asked, Library, Norm, NormPatch

COMMON = """
the a to of and in for is with not that must never always when before after if only who by on or be ask answer say
explain name tell offer refuse check give mention use keep avoid state cite warn customer patient child user question
price refund order delivery law medicine dose doctor lawyer contract tax school exam teacher password account card
payment invoice address privacy data record date city country language tone polite short clear formal friendly safe
danger weapon fire chemical allergy food recipe travel visa border election vote party religion custom holiday gift
"""
SYLLABLES = "ba be bo da de di do fa fi ga go ka ki ko la le li lo ma me mi na ne no pa po ra re ri ro sa se ta te to"
MODEL = "random"
"""what stands for the digest of an embedding model"""
TOPICS = ("health", "law", "travel", "school", "shop", "bank", None, None, None, None)
TAGS = [f"tag{i}" for i in range(1000)]
TENANTS = [f"tenant{i}" for i in range(200)]


class Words:
    """Words to draw from: the common ones first, then names of three syllables."""

    def __init__(self, generator: random.Random) -> None:
        names = ["".join(parts) for parts in product(SYLLABLES.split(), repeat=3)]
        generator.shuffle(names)
        self.words = [*COMMON.split(), *names[:20_000]]
        self._sums = list(accumulate(1 / rank for rank in range(2, len(self.words) + 2)))
        self._generator = generator

    def sentence(self, count: int) -> str:
        """So many words, drawn by their frequency."""
        return " ".join(self._generator.choices(self.words, cum_weights=self._sums, k=count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norms", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=400, help="of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--dimensions", type=int, default=384, help="of the vectors; 0: without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the file is made, since disks differ; default: /tmp")
    args = parser.parse_args()
    words = Words(random.Random(args.seed))
    numbers = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        library = Library(Path(folder) / "norms.sqlite")
        began = perf_counter()
        library.norms.load(_made(words, args.norms, random.Random(args.seed)))
        conditions = {"norms": args.norms, "import_s": perf_counter() - began}
        if args.dimensions:
            began = perf_counter()
            library.norms.embed_missing(MODEL, lambda texts: _unit(numbers, len(texts), args.dimensions))
            conditions["store_vectors_s"] = perf_counter() - began
        rows = _retrievals(library, words, numbers, args)
        conditions |= {"edits_per_s": _edits(library, words, args)}
        library.close()
    print_table(rows)
    for name, value in conditions.items():
        print(f"{name}: {value:,.1f}")
    print_json(
        "norms", rows, **conditions, queries=args.queries, askers=args.threads, dimensions=args.dimensions,
        seed=args.seed, sqlite=sqlite3.sqlite_version,
    )  # fmt: skip


def _made(words: Words, count: int, generator: random.Random) -> Iterator[Norm]:
    for i in range(count):
        yield Norm.model_construct(
            id=f"norm-{i}",
            text=words.sentence(generator.randint(10, 25)),
            tags=tuple(dict.fromkeys(generator.choices(TAGS, k=generator.randint(0, 3)))),
            topic=generator.choice(TOPICS),
            tenant=generator.choice(TENANTS) if generator.random() < 1 / 3 else None,
        )


def _retrievals(
    library: Library, words: Words, numbers: np.random.Generator, args: argparse.Namespace
) -> list[dict[str, object]]:
    kinds: dict[str, Callable[[], Asked]] = {
        "3 words": lambda: Asked(words.sentence(3)),
        "12 words": lambda: Asked(words.sentence(12)),
        "100 words": lambda: Asked(words.sentence(100)),
        "10,000 words": lambda: Asked(words.sentence(10_000)),
        "12 words, topic and tenant": lambda: Asked(words.sentence(12), tenant=TENANTS[3], topic="law"),
        "12 words, one tag": lambda: Asked(words.sentence(12), tags=(TAGS[7],)),
        "12 words, one tag in twenty": lambda: Asked(words.sentence(12), tags=TAGS[:50]),
    }
    if args.dimensions:
        made = _unit(numbers, 64, args.dimensions)
        asked = {
            f"{name}, embedding": lambda kind=kind: kind()._replace(embedding=made[numbers.integers(64)], model=MODEL)
            for name, kind in kinds.items()
            if name.startswith("12 words")
        }
        kinds |= asked
    return [
        {"query": name, **_percentiles(library, [kind() for _ in range(args.queries)], args.threads)}
        for name, kind in kinds.items()
    ]


def _percentiles(library: Library, queries: list[Asked], threads: int) -> dict[str, float]:
    def timed(asked: Asked) -> tuple[float, int]:
        began = perf_counter()
        retrieved = library.norms.retrieve(asked)
        return (perf_counter() - began) * 1e3, len(retrieved.found)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(timed, queries[: 10 * threads]))  # fills the caches of pages
        measured = list(pool.map(timed, queries))
    times = [milliseconds for milliseconds, _ in measured]
    found = sum(count for _, count in measured) / len(measured)
    return {**{f"p{p} ms": float(np.percentile(times, p)) for p in (50, 95, 99)}, "found": found}


def _edits(library: Library, words: Words, args: argparse.Namespace) -> float:
    """Changes of texts per second, from all threads, each on disk before the next of its thread."""
    patches = [(f"norm-{i}", NormPatch(text=words.sentence(15))) for i in range(args.edits)]
    began = perf_counter()
    with ThreadPoolExecutor(args.threads) as pool:
        list(pool.map(lambda patch: library.norms.patch(*patch), patches))
    return args.edits / (perf_counter() - began)


def _unit(numbers: np.random.Generator, count: int, dimensions: int) -> NDArray[np.float32]:
    vectors = numbers.standard_normal((count, dimensions), np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
