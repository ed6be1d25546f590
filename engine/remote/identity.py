"""Who answers at an address: kind of server, model, room and tokenizer. Asked at start and after each loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.engine.errors import RemoteError
from trimtab.engine.remote.client import Connection
from trimtab.engine.remote.fields import At
from trimtab.engine.remote.loop import together
from trimtab.engine.remote.spelling import Spelling, Told, hashed

ServerKind = Literal["trimtab", "vllm", "sglang", "llama.cpp", "other"]
_OWNERS: dict[str, ServerKind] = {"trimtab": "trimtab", "vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
_NO_LIMIT = 2**31
_NO_ID = 2**31


@dataclass(frozen=True, slots=True)
class Identity:
    """What must stay the same while requests run."""

    kind: ServerKind
    model: str
    context_length: int | None
    tokenizer: str
    """hash; empty where the server does not tell"""
    differs: str | None
    """the first text that it spells otherwise than the local vocabulary"""


async def identify(
    connection: Connection, expected: Literal["auto", ServerKind], served: str | None, spelling: Spelling
) -> Identity:
    """Ask for the models and the tokenizer; RemoteUnavailable or RemoteError where nothing useful answers.

    `expected` is the kind of server, `served` the model; None: the first that it lists.
    """
    cards = list(At(await connection.fetch("GET", "/v1/models"))["data"].each())
    names = [card["id"].text() for card in cards]
    if not names or (served is not None and served not in names):
        asked = "any model" if served is None else repr(served)
        raise RemoteError(f"the server at {connection.name} does not serve {asked}, only {names}: set served")
    card = cards[0] if served is None else cards[names.index(served)]
    kind = _kind(card) if expected == "auto" else expected
    room = None if card["max_model_len"].missing else card["max_model_len"].integer(1, _NO_LIMIT)
    if kind == "llama.cpp":
        props = At(await connection.fetch("GET", "/props"))["default_generation_settings"]["n_ctx"]
        room = None if props.missing else props.integer(1, _NO_LIMIT)
    told = await _spelled(connection, kind, card["id"].text(), spelling)
    if told is None:
        return Identity(kind, card["id"].text(), room, "", None)
    return Identity(kind, card["id"].text(), room, hashed(told), spelling.differs(told))


def _kind(card: At) -> ServerKind:
    owner = card["owned_by"].value
    return _OWNERS.get(owner, "other") if isinstance(owner, str) else "other"


async def _spelled(connection: Connection, kind: ServerKind, model: str, spelling: Spelling) -> Told | None:
    """What the server makes of each text; None where it has no way to tell."""
    try:
        return await together(_tokenized(connection, kind, model, text) for text in spelling.texts)
    except RemoteError:
        if kind != "other":
            raise
    try:
        return await together(_as_prompt(connection, model, text) for text in spelling.texts)
    except RemoteError:
        pass
    try:
        pairs = zip(spelling.ids, spelling.decoded, strict=True)
        return await together(_echoed(connection, model, ids, len(decoded)) for ids, decoded in pairs)
    except RemoteError:
        return None


async def _tokenized(connection: Connection, kind: ServerKind, model: str, text: str) -> Sequence[int]:
    body: dict[str, Any] = {"model": model, "prompt": text, "add_special_tokens": False}
    if kind == "llama.cpp":
        body = {"content": text, "add_special": False, "parse_special": True}
    return At(await connection.fetch("POST", "/tokenize", body))["tokens"].ids(_NO_ID)


async def _as_prompt(connection: Connection, model: str, text: str) -> Sequence[int]:
    """The ids of a text prompt."""
    body = {"model": model, "prompt": text, "max_tokens": 1, "return_token_ids": True, "add_special_tokens": False}
    choice = next(At(await connection.fetch("POST", "/v1/completions", body))["choices"].each(1))
    return choice["prompt_token_ids"].ids(_NO_ID)


async def _echoed(connection: Connection, model: str, ids: Sequence[int], length: int) -> str:
    """The text of a prompt of ids, as long as ours."""
    body = {"model": model, "prompt": list(ids), "max_tokens": 1, "echo": True}
    choice = next(At(await connection.fetch("POST", "/v1/completions", body))["choices"].each(1))
    return choice["text"].text()[:length]
