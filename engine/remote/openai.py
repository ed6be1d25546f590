"""POST /v1/completions of trimtab, vLLM (0.32) and others that take token ids as a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.engine.errors import RemoteError, RemoteUnavailable
from trimtab.engine.remote import dialect
from trimtab.engine.remote.fields import At
from trimtab.engine.remote.wire import Ask, Capabilities, Continuation, Reply, Token
from trimtab.engine.vocabulary import Vocabulary

PATH = "/v1/completions"
_BEYOND_OPENAI = frozenset(
    {"top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "skip_special_tokens"}
)
_MARK = "token_id:"
"""how vLLM and trimtab name tokens under return_tokens_as_token_ids"""
_BUSY = frozenset({"overloaded", "draining", "guide_unavailable", "service_unavailable_error", "rate_limit_error"})
_NO_LIMIT = 2**31


def refused(capabilities: Capabilities) -> frozenset[str]:
    """Fields of SamplingParams that the server does not know."""
    return _BEYOND_OPENAI if capabilities.kind == "other" else frozenset()


def body(ask: Ask, capabilities: Capabilities) -> dict[str, Any]:
    """The body of the call, not streamed."""
    sampling, known = ask.sampling, capabilities.kind != "other"
    told: dict[str, Any] = {
        "model": capabilities.model,
        "prompt": list(ask.prompt),
        "n": ask.n,
        "max_tokens": ask.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": ask.seed if capabilities.streams else dialect.seed(ask, capabilities, 63),
    }
    if sampling.logit_bias:
        told["logit_bias"] = {str(id_): bias for id_, bias in sampling.logit_bias.items()}
    if ask.stop:
        told["stop"] = list(ask.stop)
    if known:
        told |= _extensions(ask, capabilities)
    if ask.logprobs is not None:
        told["logprobs"] = ask.logprobs
    if capabilities.token_ids:
        told["return_token_ids"] = True
    if ask.logprobs is not None or ask.prompt_logprobs is not None:
        told["return_tokens_as_token_ids"] = True
    if ask.prompt_logprobs is not None:
        told |= _about_prompt(ask, capabilities)
    return told


def _extensions(ask: Ask, capabilities: Capabilities) -> dict[str, Any]:
    """Fields under vLLM's names, which trimtab takes as well."""
    sampling = ask.sampling
    told: dict[str, Any] = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": ask.min_tokens,
        "stop_token_ids": list(ask.stop_token_ids),
        "include_stop_str_in_output": True,
        "ignore_eos": sampling.ignore_eos,
        "skip_special_tokens": sampling.skip_special_tokens,
    }
    if capabilities.streams:
        told["random_stream"] = ask.stream
    if ask.salt and capabilities.salts:
        told["cache_salt"] = dialect.salt(ask)
    if ask.priority:
        told["priority"] = ask.priority
    return told


def _about_prompt(ask: Ask, capabilities: Capabilities) -> dict[str, Any]:
    """What asks for the prompt's log-probabilities: vLLM has a field, others echo."""
    if capabilities.kind == "vllm":
        return {"prompt_logprobs": ask.prompt_logprobs, "max_tokens": max(ask.max_tokens, 1)}
    return {"echo": True, "logprobs": max(ask.logprobs or 0, ask.prompt_logprobs or 0)}


def reply(ask: Ask, capabilities: Capabilities, answer: Any, vocabulary: Vocabulary) -> Reply:
    """What the answer says."""
    at = At(answer)
    choices = _in_order(at["choices"], ask.n)
    prompt: tuple[Token, ...] = ()
    skipped = 0
    if ask.prompt_logprobs is not None:
        if capabilities.kind == "vllm":
            prompt = _prompt(ask, choices[0]["prompt_logprobs"], vocabulary)
        else:
            skipped = len(ask.prompt)
            prompt = _tokens(ask.prompt, choices[0]["logprobs"], ask.prompt_logprobs, vocabulary, 0, read=True)
    told: tuple[Continuation, ...] = ()
    if ask.max_tokens:
        told = tuple(_continuation(ask, capabilities, each, vocabulary, skipped) for each in choices)
    return Reply(told, prompt, _cached(at))


def deltas(ask: Ask, capabilities: Capabilities, vocabulary: Vocabulary) -> "Stream | None":
    """A reader of the streamed answer."""
    if not capabilities.token_ids or ask.prompt_logprobs is not None or not ask.max_tokens:
        return None
    return Stream(ask, vocabulary)


class Stream(dialect.Gathered):
    """A streamed completion of n continuations."""

    ids = "choices[{number}].token_ids"

    def take(self, chunk: Mapping[str, Any]) -> list[tuple[int, Token]]:
        """The new tokens of a chunk, each with the number of its continuation."""
        at = At(chunk)
        if not at["error"].missing:
            raise _told(at["error"])
        if not at["usage"].missing:
            self._cached = _cached(at)
        return [pair for choice in at["choices"].each() for pair in self._choice(choice)]

    def _choice(self, at: At) -> list[tuple[int, Token]]:
        number = at["index"].integer(0, self._ask.n)
        tokens: Sequence[Token] = ()
        if not at["token_ids"].missing:
            room = self._ask.max_tokens - len(self._tokens[number])
            ids = at["token_ids"].ids(self._vocabulary.rows, room)
            if ids and self._ends[number] is not None:
                raise at.wrong("nothing for a continuation that has ended")
            tokens = _drawn(self._ask, ids, at["logprobs"], self._vocabulary, 0)
            self._tokens[number] += tokens
        if not at["finish_reason"].missing:
            reason = dialect.stop_reason(at["stop_reason"], self._ask, self._vocabulary)
            self._ends[number] = dialect.finish(at["finish_reason"]), reason
        return [(number, token) for token in tokens]


def _in_order(at: At, count: int) -> list[At]:
    choices = list(at.each(count))
    numbers = [each["index"].integer(0, count) for each in choices]
    if sorted(numbers) != list(range(count)):
        raise at.wrong("each choice once")
    return [choices[numbers.index(number)] for number in range(count)]


def _continuation(ask: Ask, capabilities: Capabilities, at: At, vocabulary: Vocabulary, skipped: int) -> Continuation:
    reason = dialect.stop_reason(at["stop_reason"], ask, vocabulary)
    finish = dialect.finish(at["finish_reason"])
    if not capabilities.token_ids:
        return Continuation(dialect.spelled(at["text"].text(), vocabulary), finish, reason)
    ids = at["token_ids"].ids(vocabulary.rows, ask.max_tokens)
    tokens = _drawn(ask, ids, at["logprobs"], vocabulary, skipped)
    return dialect.check_end(ask, Continuation(tokens, finish, reason), at["token_ids"])


def _drawn(ask: Ask, ids: Sequence[int], at: At, vocabulary: Vocabulary, skipped: int) -> tuple[Token, ...]:
    if ask.logprobs is None or not ids:
        return tuple(map(Token, ids))
    return _tokens(ids, at, ask.logprobs, vocabulary, skipped)


def _tokens(
    ids: Sequence[int], at: At, count: int, vocabulary: Vocabulary, begin: int, *, read: bool = False
) -> tuple[Token, ...]:
    """The tokens that `logprobs` tells of from `begin` on, which must be these ids; `read` of a prompt."""
    names, values, tops = at["tokens"].list(), at["token_logprobs"], at["top_logprobs"]
    if len(names) < begin + len(ids) or len(values.list()) != len(names):
        raise at.wrong("an entry for each token")
    alternatives = None if tops.missing else tops.list(len(names))
    tokens = []
    for place, id_ in enumerate(ids, begin):
        if names[place] != f"{_MARK}{id_}":
            raise At(names[place], f"{at.path}.tokens[{place}]").wrong(f"'{_MARK}' and the id of the token")
        value = At(values.list()[place], f"{values.path}[{place}]")
        if value.missing and read and place == 0:
            tokens.append(Token(id_))
            continue
        top = At(alternatives[place] if alternatives and count else {}, f"{tops.path}[{place}]")
        pairs = [(_id(key, top, vocabulary), At(each, top.path).logprob()) for key, each in top.object().items()]
        tokens.append(Token(id_, value.logprob(), dialect.best(pairs, count)))
    return tuple(tokens)


def _prompt(ask: Ask, at: At, vocabulary: Vocabulary) -> tuple[Token, ...]:
    """vLLM's `prompt_logprobs`: an object by token id for each token, null for the first."""
    tokens: list[Token] = []
    for each, id_ in zip(at.each(len(ask.prompt)), ask.prompt, strict=True):
        if each.missing and not tokens:
            tokens.append(Token(id_))
            continue
        pairs = {_number(key, each, vocabulary): each[key]["logprob"].logprob() for key in each.object()}
        if id_ not in pairs:
            raise each.wrong("the log-probability of the prompt's token")
        tokens.append(Token(id_, pairs[id_], dialect.best(list(pairs.items()), ask.prompt_logprobs or 0)))
    return tuple(tokens)


def _id(name: str, at: At, vocabulary: Vocabulary) -> int:
    if not name.startswith(_MARK):
        raise at.wrong(f"tokens named '{_MARK}' and an id")
    return _number(name.removeprefix(_MARK), at, vocabulary)


def _number(name: str, at: At, vocabulary: Vocabulary) -> int:
    if not (name.isascii() and name.isdigit() and len(name) < 10):
        raise at.wrong("token ids")
    return At(int(name), at.path).integer(0, vocabulary.rows)


def _cached(at: At) -> int:
    usage = at["usage"]
    if usage.missing or usage["prompt_tokens_details"].missing:
        return 0
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return 0 if cached.missing else cached.integer(0, _NO_LIMIT)


def _told(at: At) -> RemoteError | RemoteUnavailable:
    """An error inside a stream."""
    error = at.object()
    if error.get("code") in (429, 503, *_BUSY) or error.get("type") in _BUSY:
        return RemoteUnavailable("the remote server broke the answer off: it is busy, or shutting down")
    return RemoteError("the remote server broke the answer off with an error")
