"""The part of `trimtab doctor` that looks at a base which another server runs."""

from collections.abc import Iterator

from trimtab.engine.plan import BASE
from trimtab.engine.remote.wire import Capabilities
from trimtab.llm import LLM
from trimtab.server.doctor import Check


def remote_checks(llm: LLM) -> Iterator[Check]:
    """What the server of the base is and can do, and what becomes of requests that need more."""
    base = llm.models[BASE].remote
    if base is None:
        return
    can = base.capabilities
    context = "" if can.context_length is None else f", context of {can.context_length} tokens"
    yield Check("remote", True, f"{can.kind} serves {can.model}{context}; it {', '.join(_abilities(can))}")
    for lack, fix in _lacks(can):
        yield Check("remote lacks", True, lack, fix)


def _abilities(can: Capabilities) -> Iterator[str]:
    yield "takes token ids"
    if can.token_ids:
        yield "returns token ids"
    if can.many:
        yield "writes several answers in a call"
    if can.streams:
        yield "draws as a local base would"
    elif can.seeds:
        yield "repeats itself under a seed"
    if can.logprobs >= 0:
        yield f"tells {can.logprobs} log-probabilities of each token"
    if can.prompt_logprobs >= 0:
        yield f"and {can.prompt_logprobs} of each token of a prompt"
    if can.salts:
        yield "keeps prefixes of different salts apart"
    if can.scores:
        yield f"judges by {' and '.join(can.scores)}"


def _lacks(can: Capabilities) -> Iterator[tuple[str, str]]:
    """What it cannot do with what follows from it, and what to change."""
    if not can.token_ids:
        yield "no token ids: what it writes is tokenised again", "use a server that knows return_token_ids"
    if not can.seeds:
        yield "no seeds: a request with one may not repeat", "leave seeds out, or use trimtab or vLLM there"
    if can.logprobs < 0:
        yield "no log-probabilities: traces and what weighs answers by them are a 400", "turn them on there"
    if min(can.logprobs, can.prompt_logprobs) < 1:
        told = "too few log-probabilities: nudging and wsd are a 400"
        yield told, "vLLM: raise --max-logprobs; llama.cpp and SGLang: see docs/remote.md"
    if not can.salts:
        yield "no salts: callers share stored prefixes, as timing may tell", "give callers with secrets a server each"
