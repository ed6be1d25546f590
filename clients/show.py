"""How the terminal chat shows numbers, comparisons and traces."""

import math
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.clients.comparison import COLUMNS, Comparison
from trimtab.clients.results import Answer, Decoding, TokenTrace
from trimtab.clients.stream import Progress

WIDTH = 100
"""columns at most, and where the output is no terminal"""
MOVED = 0.5
"""nats of KL from which on a token counts as moved"""
MOST = 12
"""tokens in the table of those that moved most"""
COLOURS = {"nudge": "magenta", "draft": "magenta", "steered": "yellow", "base": "cyan"}


def console() -> Console:
    """Where tables go: as wide as the terminal, and WIDTH at most."""
    out = Console(highlight=False)
    return Console(highlight=False, width=min(out.width, WIDTH) if out.is_terminal else WIDTH)


def plain(text: str) -> str:
    """A model's text without the characters that would control the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def cost_line(answer: Answer) -> str:
    """Strategy, reward of the chosen candidate, distance from the base, tokens and time of one answer."""
    decoding = answer.decoding
    parts = [decoding.strategy]
    if preset := decoding.raw.get("preset"):
        parts.append(f"preset {preset}")
    if auto := decoding.raw.get("auto"):
        parts.append(f"setting {auto['setting']} of auto")
    if policy := decoding.raw.get("policy"):
        parts.append(f"policy {policy['name']}")
    reward = decoding.reward()
    if reward is not None:
        rewards = [each.reward for each in decoding.candidates if each.reward is not None]
        parts.append(f"reward {reward:.3g} (mean {sum(rewards) / len(rewards):.3g})")
    if (kl := decoding.kl()) is not None:
        parts.append(f"KL {kl:.3g}")
    parts.append(f"{answer.usage.completion_tokens} tokens, {decoding.model_tokens} spent")
    parts.append(f"{decoding.seconds:.2f} s")
    if decoding.stopped_by not in (None, "finished"):
        parts.append(f"stopped by {decoding.stopped_by}")
    return ", ".join(parts)


def progress_line(progress: Progress) -> str:
    """How far a search is, on one line."""
    best = "" if progress.best_reward is None else f", best {progress.best_reward:.3g}"
    return f"{progress.finished} of {progress.candidates} finished{best}, {progress.seconds:.1f} s"


def comparison(compared: Comparison) -> Table:
    """A row for each strategy, its answer's first line under its name."""
    name, *numbers, text = COLUMNS
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column(f"{name} and {text}", ratio=1, no_wrap=True, overflow="ellipsis")
    for column in numbers:
        table.add_column(column, justify="left" if column == "finish" else "right", min_width=len(column))
    for row in compared:
        label, *told, answer = map(plain, row.cells())
        table.add_row(Text.assemble((label, "bold"), "\n  ", answer), *told)
    return table


def why(decoding: Decoding) -> RenderableType:
    """What shaped the first choice: its text with the tokens that steering moved, and those that it moved most."""
    trace = decoding.trace[0]
    moved = sorted((index for index, each in enumerate(trace) if _moved(each)), key=lambda i: -_distance(trace[i]))
    parts: list[RenderableType] = [Text(_summary(decoding, trace, len(moved)))]
    if moved:
        parts += [Text(), _marked(trace), Text(), _table(trace, moved[:MOST])]
        if len(moved) > MOST:
            parts.append(Text(f"and {len(moved) - MOST} that moved less"))
    return Group(*parts)


def _summary(decoding: Decoding, trace: Sequence[TokenTrace], moved: int) -> str:
    writers = [each.source for each in trace]
    told = ", ".join(f"{writers.count(name)} by {name}" for name in dict.fromkeys(writers))
    kl = decoding.kl()
    distance = "" if kl is None else f"; KL from the base {kl:.3g} nats, {kl / max(1, len(trace)):.2g} a token"
    verdict = f"{moved} were moved, in brackets" if moved else "none was moved"
    return f"{decoding.strategy}: {len(trace)} tokens, {told}{distance}; {verdict}"


def _marked(trace: Sequence[TokenTrace]) -> Text:
    """The answer, runs of moved tokens in brackets and in the colour of their writer."""
    text = Text()
    for moved, run in groupby(trace, _moved):
        tokens = list(run)
        words = plain("".join(each.text for each in tokens))
        if not moved:
            text.append(words)
            continue
        lead = words[: len(words) - len(words.lstrip())]
        text.append(f"{lead}[{words.lstrip()}]", style=COLOURS.get(tokens[0].source, "cyan"))
    return text


def _table(trace: Sequence[TokenTrace], indices: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("token", "written", "by", "KL", "p base", "p steered", "the base's best"):
        table.add_column(name, justify="left" if name in ("written", "by", "the base's best") else "right")
    for index in indices:
        each = trace[index]
        best = each.best_of_base
        table.add_row(
            str(index),
            Text(_shown(each.text)),
            each.source,
            "-" if each.kl is None else f"{each.kl:.2f}",
            _probability(each.logprob_base),
            _probability(each.logprob_steered),
            Text("-" if best is None else "the same" if best == each.text else _shown(best)),
        )
    return table


def _moved(token: TokenTrace) -> bool:
    """Whether another model wrote the token, or steering changed what could be drawn."""
    return token.source in ("nudge", "draft") or _distance(token) >= MOVED


def _distance(token: TokenTrace) -> float:
    """KL at the token; where it was not computed, by how much steering changed the token's own log-probability."""
    if token.kl is not None:
        return token.kl
    if token.logprob_base is None or token.logprob_steered is None:
        return 0.0
    return abs(token.logprob_steered - token.logprob_base)


def _probability(logprob: float | None) -> str:
    return "-" if logprob is None else f"{math.exp(logprob):.1%}"


def _shown(token: str) -> str:
    """A token with its spaces and line ends to be seen."""
    return '"' + plain(token).replace("\n", "\\n").replace("\t", "\\t") + '"'
