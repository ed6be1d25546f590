"""Train the guides that trimtab ships: `make demo-guides`, or only those that are named.

Everything is made anew from the human ratings, the prompts beside this file and the seeds below, in build/demo-guides;
a run that was interrupted goes on. What a guide needs to be loaded is then copied to engine/guides/demo.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TextIO

from trimtab.engine.errors import TrimtabError
from trimtab.engine.guides.folders import SHIPPED
from trimtab.training.cli import train
from trimtab.training.data import Prompted, read
from trimtab.training.demo.ratings import write_ratings
from trimtab.training.demo.wishes import write_wishes
from trimtab.training.errors import TrainingError
from trimtab.training.options import (
    ArmOptions,
    ExpertOptions,
    Lora,
    PanaceaOptions,
    PreferenceOptions,
    RewardOptions,
    Sampled,
    Source,
    ValueOptions,
    VectorOptions,
)
from trimtab.training.rollouts import Rollout, rollouts
from trimtab.training.run import REPORT
from trimtab.training.schedule import Schedule

WORK: Final = Path("build/demo-guides")
HERE: Final = Path(__file__).parent
PROMPTS: Final = HERE / "prompts.jsonl"
RATINGS: Final = WORK / "ratings.jsonl"
OPPOSITES: Final = WORK / "opposites.jsonl"
PAIRS: Final = WORK / "pairs"
"""of preferences, by attribute"""
PAIRED: Final = 300
"""prompts whose answers are compared by attribute"""
WISHES: Final = WORK / "wishes.jsonl"
WEIGHED: Final = HERE / "preference.yaml"
WISHING: Final = 120
"""questions that end in wishes"""

RATED: Final = "human ratings of VADER (Hutto and Gilbert 2014)"
WRITTEN: Final = "prompts written for trimtab, answered by the base and scored by demo:positivity"
SENTENCE: Final = re.compile(r"[^.!?\n]{40,}?[.!?](?=\s)")
"""at the beginning of an answer; what is shorter is a number or an exclamation"""
LICENCE: Final = "MIT"
"""of the ratings"""
LICENCES: Final = "Apache-2.0 (prompts, base), MIT (ratings behind the reward)"

# Answers that all guides but the reward learn from: sampled once, shared by the cache.
SAMPLED: Final = Sampled(reward="demo:positivity", answers=8, max_tokens=40, temperature=1.0, cache=WORK / "rollouts")
# Adapters that write: the upper half of the layers, of a rank that keeps a file at 0.6 MB.
WRITER: Final = Lora(rank=4, alpha=8, modules="q_proj,v_proj,o_proj,down_proj", layers="15-29")
# Imitation of a quarter of the answers: more of it learns them by heart.
SHORT: Final = Schedule(epochs=2, batch=8, lr=5e-4)
# Where the data is prompts alone.
ANSWERED: Final[dict[str, Any]] = {"data": PROMPTS, "source": WRITTEN, "licence": LICENCES, "sampled": SAMPLED}

GUIDES: Final[dict[str, Source]] = {
    "positivity": RewardOptions(
        out=WORK / "positivity",
        data=RATINGS,
        source=RATED,
        licence=LICENCE,
        prefixes=True,
        chat_template=HERE / "answer_alone.jinja",
        schedule=Schedule(epochs=2, batch=32, lr=5e-4),
        lora=Lora(rank=8, alpha=16, layers="15-29"),
    ),
    "positivity-value": ValueOptions(out=WORK / "positivity-value", method="fudge", tokens=True, **ANSWERED),
    "positivity-td": ValueOptions(out=WORK / "positivity-td", method="td", tokens=True, **ANSWERED),
    "positivity-prefix": ValueOptions(out=WORK / "positivity-prefix", method="fudge", width=64, **ANSWERED),
    "positivity-control": ValueOptions(out=WORK / "positivity-control", method="td", width=64, **ANSWERED),
    "positivity-arm": ArmOptions(out=WORK / "positivity-arm", lora=WRITER, **ANSWERED),
    "positive-lm": ExpertOptions(out=WORK / "positive-lm", keep="best", schedule=SHORT, lora=WRITER, **ANSWERED),
    "negative-lm": ExpertOptions(out=WORK / "negative-lm", keep="worst", schedule=SHORT, lora=WRITER, **ANSWERED),
    "aligned": ExpertOptions(out=WORK / "aligned", method="dpo", lora=WRITER, **ANSWERED),
    "positivity-vector": VectorOptions(
        out=WORK / "positivity-vector",
        data=OPPOSITES,
        source=WRITTEN,
        licence=LICENCES,
        method="mean",
        layers="8-22",
    ),
    "preferences": PanaceaOptions(
        out=WORK / "preferences",
        data=PAIRS,
        source=f"{WRITTEN}, and cut after the first sentence",
        licence=LICENCES,
        schedule=Schedule(epochs=3, batch=2, lr=2e-3),
        lora=Lora(rank=6, alpha=12, modules="v_proj,o_proj,down_proj", layers="18-29"),
        block=3,
    ),
    "pro": PreferenceOptions(
        out=WORK / "pro",
        data=WISHES,
        rewards=WEIGHED,
        source="prompts and wishes written for trimtab, answered by the base and scored by demo:positivity",
        licence=LICENCES,
        schedule=Schedule(epochs=40, batch=16, lr=1e-3, weight_decay=0.1, patience=6),
    ),
}
"""in order: the reward comes before what learns from its scores"""


def main(names: list[str]) -> None:
    """Train and ship the guides called `names`, or all of them."""
    if unknown := sorted(set(names) - GUIDES.keys()):
        raise TrainingError(f"no demo guide is called {unknown[0]!r}: choose from {', '.join(GUIDES)}")
    WORK.mkdir(parents=True, exist_ok=True)
    if not RATINGS.is_file():
        write_ratings(RATINGS)
    for name in names or GUIDES:
        began = time.monotonic()
        if name == "positivity-vector":
            _write_opposites()
        if name == "preferences":
            _write_pairs()
        if name == "pro":
            write_wishes(WISHES, [*islice(_groups(), WISHING)], WEIGHED)
        train(GUIDES[name])
        _ship(WORK / name, SHIPPED / name)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def _write_opposites() -> None:
    """Pair the best with the worst of the sampled answers to each prompt: they differ in little but the theme."""
    with OPPOSITES.open("w", encoding="utf-8") as sink:
        for group in _groups():
            _write_extremes(sink, group)


def _write_pairs() -> None:
    """Pair answers by positivity, and for brevity the first sentence of one with all of it."""
    PAIRS.mkdir(exist_ok=True)
    with (PAIRS / "positivity.jsonl").open("w", encoding="utf-8") as sink:
        for group in islice(_groups(), PAIRED):
            _write_extremes(sink, group)
    with (PAIRS / "brevity.jsonl").open("w", encoding="utf-8") as sink:
        for group in islice(_groups(), PAIRED):
            for each in group:
                if (first := SENTENCE.match(each.answer)) and first[0] != each.answer:
                    _write_pair(sink, each, first[0], each.answer)
                    break


def _groups() -> Iterator[list[Rollout]]:
    """The sampled answers, by prompt."""
    prompts = [record.messages for record in read(PROMPTS, Prompted)]
    found = rollouts(GUIDES["positivity-vector"], SAMPLED, prompts, seed=0)
    for at in range(0, len(found), SAMPLED.answers):
        yield found[at : at + SAMPLED.answers]


def _write_extremes(sink: TextIO, group: Sequence[Rollout]) -> None:
    """Write the best of the answers to a prompt and the worst."""
    best, worst = max(group, key=lambda each: each.reward), min(group, key=lambda each: each.reward)
    _write_pair(sink, best, best.answer, worst.answer)


def _write_pair(sink: TextIO, rollout: Rollout, chosen: str, rejected: str) -> None:
    sink.write(json.dumps({"prompt": rollout.messages, "chosen": chosen, "rejected": rejected}) + "\n")


def _ship(made: Path, shipped: Path) -> None:
    """Copy what loads; the report and sampled answers stay behind."""
    shutil.rmtree(shipped, ignore_errors=True)
    shipped.mkdir(parents=True)
    for file in sorted(made.iterdir()):
        if file.is_file() and file.name != REPORT:
            shutil.copyfile(file, shipped / file.name)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except TrimtabError as error:
        sys.exit(f"trimtab: {error}")
