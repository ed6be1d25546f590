"""POST /generate of SGLang: its own route, because its completions name alternatives by text and not by id.

Fields by SGLang's documentation of `/generate` and its sampling parameters. Its filters are applied together
rather than one after the other, so that top-k with top-p and min-p may keep other tokens than elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.engine.errors import RemoteError, RemoteUnavailable
from trimtab.engine.remote import dialect
from trimtab.engine.remote.fields import At
from trimtab.engine.remote.wire import Ask, Capabilities, Continuation, Reply, Token
from trimtab.engine.vocabulary import Vocabulary

PATH = "/generate"
_NO_LIMIT = 2**31


def refused(capabilities: Capabilities) -> frozenset[str]:
    """Fields of SamplingParams that the server does not know, or means otherwise."""
    return frozenset()


def body(ask: Ask, capabilities: Capabilities) -> dict[str, Any]:
    """The body of the call, not streamed; several continuations are a batch where each has a seed of its own."""
    first = _sampling(ask)
    prompt: Any = list(ask.prompt)
    told: dict[str, Any] = {"input_ids": prompt, "sampling_params": first}
    if capabilities.seeds:
        seed = dialect.seed(ask, capabilities, 31)
        each = [{**first, "sampling_seed": seed + number} for number in range(ask.n)]
        told = (
            {"input_ids": [prompt] * ask.n, "sampling_params": each}
            if ask.n > 1
            else {**told, "sampling_params": each[0]}
        )
    elif ask.n > 1:
        told["sampling_params"] = {**first, "n": ask.n}
    if ask.logprobs is not None or ask.prompt_logprobs is not None:
        told["return_logprob"] = True
        told["top_logprobs_num"] = max(ask.logprobs or 0, ask.prompt_logprobs or 0)
        told["logprob_start_len"] = -1 if ask.prompt_logprobs is None else 0
    if ask.salt and capabilities.salts:
        told["cache_salt"] = dialect.salt(ask)
    if ask.priority:
        told["priority"] = ask.priority
    return told


def _sampling(ask: Ask) -> dict[str, Any]:
    sampling = ask.sampling
    told: dict[str, Any] = {
        "max_new_tokens": ask.max_tokens,
        "min_new_tokens": ask.min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": sampling.ignore_eos,
        "skip_special_tokens": sampling.skip_special_tokens,
        "no_stop_trim": True,
    }
    if ask.stop:
        told["stop"] = list(ask.stop)
    if ask.stop_token_ids:
        told["stop_token_ids"] = list(ask.stop_token_ids)
    if sampling.logit_bias:
        told["logit_bias"] = {str(id_): bias for id_, bias in sampling.logit_bias.items()}
    return told


def reply(ask: Ask, capabilities: Capabilities, answer: Any, vocabulary: Vocabulary) -> Reply:
    """What the answer says: one object, or a list of them for several continuations."""
    parts = list(At(answer).each(ask.n)) if ask.n > 1 else [At(answer)]
    meta = parts[0]["meta_info"]
    prompt: tuple[Token, ...] = ()
    if ask.prompt_logprobs is not None:
        told = _tokens(meta, "input", ask.prompt_logprobs, vocabulary)
        if [token.id for token in told] != list(ask.prompt):
            raise meta["input_token_logprobs"].wrong("the prompt's tokens")
        prompt = tuple(told)
    continuations: tuple[Continuation, ...] = ()
    if ask.max_tokens:
        continuations = tuple(_whole(ask, each, vocabulary) for each in parts)
    return Reply(continuations, prompt, _cached(meta))


def deltas(ask: Ask, capabilities: Capabilities, vocabulary: Vocabulary) -> "Stream | None":
    """A reader of the streamed answer."""
    return Stream(ask, vocabulary) if ask.max_tokens and ask.prompt_logprobs is None else None


class Stream(dialect.Gathered):
    """A streamed answer: each chunk repeats all tokens so far, or brings the new ones, as the server was started."""

    ids = "output_ids"

    def take(self, chunk: Mapping[str, Any]) -> list[tuple[int, Token]]:
        """The new tokens of a chunk, each with the number of its continuation."""
        at = At(chunk)
        if not at["error"].missing:
            raise RemoteError("the remote server broke the answer off with an error")
        number = 0 if at["index"].missing else at["index"].integer(0, self._ask.n)
        meta, known = at["meta_info"], len(self._tokens[number])
        fresh = meta["completion_tokens"].integer(known, self._ask.max_tokens + 1) - known
        ids = at["output_ids"].ids(self._vocabulary.rows)
        if len(ids) < fresh:
            raise at["output_ids"].wrong(f"{fresh} new token ids")
        tokens = _drawn(self._ask, ids[len(ids) - fresh :], meta, self._vocabulary)
        self._tokens[number] += tokens
        self._cached = _cached(meta)
        if not meta["finish_reason"].missing:
            self._ends[number] = _end(meta["finish_reason"], self._ask)
        return [(number, token) for token in tokens]


def _whole(ask: Ask, at: At, vocabulary: Vocabulary) -> Continuation:
    ids = at["output_ids"].ids(vocabulary.rows, ask.max_tokens)
    end = _end(at["meta_info"]["finish_reason"], ask)
    return dialect.check_end(ask, Continuation(_drawn(ask, ids, at["meta_info"], vocabulary), *end), at["output_ids"])


def _drawn(ask: Ask, ids: Sequence[int], meta: At, vocabulary: Vocabulary) -> tuple[Token, ...]:
    """The last tokens that `meta_info` tells of, which must be these."""
    if ask.logprobs is None or not ids:
        return tuple(map(Token, ids))
    told = _tokens(meta, "output", ask.logprobs, vocabulary)[-len(ids) :]
    if [token.id for token in told] != list(ids):
        raise meta["output_token_logprobs"].wrong("the tokens of output_ids")
    return tuple(told)


def _tokens(meta: At, which: str, count: int, vocabulary: Vocabulary) -> list[Token]:
    """Entries are lists of log-probability, id and text."""
    values = list(meta[f"{which}_token_logprobs"].each())
    tops = list(meta[f"{which}_top_logprobs"].each(len(values))) if count else []
    tokens = []
    for place, entry in enumerate(values):
        id_ = _part(entry, 1).integer(0, vocabulary.rows)
        if which == "input" and place == 0 and _part(entry, 0).missing:
            tokens.append(Token(id_))
            continue
        pairs = []
        if tops:
            pairs = [
                (_part(each, 1).integer(0, vocabulary.rows), _part(each, 0).logprob()) for each in tops[place].each()
            ]
        tokens.append(Token(id_, _part(entry, 0).logprob(), dialect.best(pairs, count)))
    return tokens


def _part(entry: At, place: int) -> At:
    found = entry.list()
    if len(found) <= place:
        raise entry.wrong("a log-probability and a token id")
    return At(found[place], f"{entry.path}[{place}]")


def _end(at: At, ask: Ask) -> tuple[Any, str | int | None]:
    """`{type, matched}`; a matched token that was not asked for is the end of text."""
    if at["type"].value == "abort":
        raise RemoteUnavailable("the remote server gave the continuation up before it was whole")
    matched = at["matched"].value
    known = matched if matched in (*ask.stop, *ask.stop_token_ids) and type(matched) in (str, int) else None
    return dialect.finish(at["type"]), known


def _cached(meta: At) -> int:
    cached = meta["cached_tokens"]
    return 0 if cached.missing else cached.integer(0, _NO_LIMIT)
