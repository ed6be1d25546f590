"""What is checked before a run begins, so that nothing is measured in vain."""

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.bench.errors import BenchError
from trimtab.bench.gold import NONE, VADER, Gold
from trimtab.bench.plan import Options, different
from trimtab.bench.prompts import Prompt, PromptSet
from trimtab.bench.records import Conditions, Level, Setting
from trimtab.bench.settings import level, words
from trimtab.clients.calls import Asked
from trimtab.clients.client import ClientError, TrimtabClient

OWN_SERVER = "a server of its own"
"""in place of the URL, whose port is another one each time"""
_MISSING = re.compile(r"^no (?:reward )?guide is named '([^']*)'|^'([^']*)' is no preference guide")
"""how the server says that it has no such guide"""
_HELLO = ({"role": "user", "content": "Hello!"},)
_ANSWER = "Yes."


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    model: str
    """id that requests name: its first"""
    version: str
    hardware: Mapping[str, Any]
    dtype: str
    device: str
    kinds: Mapping[str, str]
    """of strategies: search, steer or prompt"""
    guides: Mapping[str, bool]
    """whether each scores answers"""


def examine(client: TrimtabClient) -> Server:
    """Ask a server what it is; raises BenchError for one that is not there or takes no requests."""
    try:
        if not client.ready():
            raise BenchError(f"the server at {client.url} takes no requests now: it is loading, or shutting down")
        machine = client.machine()
        kinds = {each["name"]: each["kind"] for each in client.strategies()}
        guides = {each.name: each.scores_answers for each in client.guides()}
    except ClientError as error:
        told = (
            f"{error}. Start one with `trimtab serve` and give its --url, or leave --url out: then the run starts one"
        )
        raise BenchError(told if error.status is None else str(error)) from None
    model = machine["models"][0]
    return Server(model["id"], machine["version"], machine["hardware"], model["dtype"], model["device"], kinds, guides)


def conditions(options: Options, server: Server, prompts: PromptSet) -> Conditions:
    """Under which the run is made."""
    return Conditions(
        url=options.url or OWN_SERVER,
        model=server.model,
        reward=options.reward,
        gold=None if options.gold == NONE else options.gold,
        prompts=prompts.name,
        digest=prompts.digest,
        seed=options.seed,
        repeats=options.repeats,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        version=server.version,
        commit=source_commit(),
        dtype=server.dtype,
        device=server.device,
        machine=server.hardware,
    )


def changed(agreed: Conditions, server: Server) -> list[str]:
    """What a server that came back has otherwise than the one before, a line each."""
    before = agreed.model_dump(include={"model", "version", "dtype", "device", "machine"})
    now = {
        "model": server.model,
        "version": server.version,
        "dtype": server.dtype,
        "device": server.device,
        "machine": server.hardware,
    }
    return list(different(before, now))


def levels(settings: Sequence[Setting], server: Server) -> dict[str, Level]:
    """What settings work on."""
    return {each.name: level(each, server.kinds) for each in settings}


def check_measures(options: Options, settings: Sequence[Setting], server: Server) -> None:
    """Raise BenchError unless the server has the reward, curves go by it, and gold is another measure."""
    scorers = sorted(name for name, scores in server.guides.items() if scores)
    has = f"the server has {', '.join(scorers) or 'none'}"
    if options.reward not in server.guides:
        raise BenchError(f"--reward {options.reward}: no guide of that name scores answers; {has}")
    if not server.guides[options.reward]:
        raise BenchError(f"--reward {options.reward}: this guide scores no answers; {has}")
    if options.gold == options.reward:
        raise BenchError(
            f"--gold {options.gold}: that is the reward; gold is a measure that steering never sees: take {VADER}, "
            f"{NONE}, or another guide"
        )
    for each in settings:
        if each.curve and each.decoding.get("reward") != options.reward:
            raise BenchError(
                f"setting {each.name}: its curve follows from the order of its answers by --reward {options.reward}, "
                "so decoding.reward has to be that guide, by name; or leave `curve` out"
            )


def check_prompts(
    client: TrimtabClient, prompts: Sequence[Prompt], options: Options, server: Server, gold: Gold | None
) -> None:
    """Raise BenchError for prompts that are too long, or whose answers the reward or gold cannot score."""
    wrong = []
    for prompt in prompts:
        pair: Asked = (prompt.conversation, _ANSWER)
        try:
            told = client.tokenize(prompt.conversation, model=server.model)
            if (room := told.max_model_len - options.max_tokens) < len(told.ids):
                wrong.append(f"  {prompt.id}: {len(told.ids)} tokens, and beside the answer there is room for {room}")
            client.score(options.reward, [pair])
            if gold is not None and gold.reads(prompt.language):
                gold.scores([pair])
        except ClientError as error:
            if error.status is None:
                raise BenchError(str(error)) from None
            wrong.append(f"  {prompt.id}: {error}")
    if wrong:
        raise BenchError("\n".join(["these prompts cannot be asked or scored; leave them out:", *wrong]))


def try_settings(
    client: TrimtabClient, settings: Sequence[Setting], options: Options, server: Server, warn: Callable[[str], None]
) -> None:
    """Ask for one token under each setting; a refusal is only told, as the run tells it of that setting alone.

    Raises BenchError, with all settings that it concerns, for guides that the server lacks and for settings that use
    gold.
    """
    asked = {each.name: each.decoding or None for each in settings}
    compared = client.compare(
        server.model, _HELLO, asked, max_tokens=1, seed=options.seed, temperature=options.temperature
    )
    missing: dict[str, list[str]] = {}
    for setting, row in zip(settings, compared, strict=True):
        if row.error is not None:
            if row.error.status is None and row.error.code is None:
                raise BenchError(f"while trying {setting.name}: {row.error}")
            found = _MISSING.match(str(row.error))
            if found:
                missing.setdefault(found[1] or found[2], []).append(setting.name)
            elif row.error.status not in (429, 503):  # it was busy
                warn(f"{setting.name} will be left out, and its rows say why: {row.error}")
    if missing:
        wanted = "\n".join(f"  {guide!r}, for {', '.join(names)}" for guide, names in sorted(missing.items()))
        raise BenchError(
            f"the server lacks guides that the settings name:\n{wanted}\n"
            f"It has {', '.join(sorted(server.guides)) or 'none'}. Add them to its configuration, or leave these "
            "settings out: name the others with --only, or give another file with --settings"
        )
    if options.gold not in (NONE, VADER):
        done = {row.name: row.answer.decoding["spec"] for row in compared if row.answer is not None}
        seen = [each.name for each in settings if options.gold in {*words(each.decoding), *words(done.get(each.name))}]
        if seen:
            raise BenchError(
                f"--gold {options.gold}: {', '.join(seen)} steer by it, and gold is a measure that steering never "
                "sees: take another one, or leave these settings out with --only"
            )


def source_commit() -> str | None:
    """Of the source tree that this file lies in; None where it lies in none."""
    here = Path(__file__).resolve().parent
    try:
        told = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "--short", "HEAD"], cwd=here, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    top, _, commit = told.stdout.strip().partition("\n")
    if told.returncode != 0 or not (Path(top) / "src" / "trimtab").is_dir():
        return None
    changed = subprocess.run(["git", "diff-index", "--quiet", "HEAD"], cwd=top, capture_output=True)
    return commit if changed.returncode == 0 else f"{commit}, changed"
