"""POST /completion of llama.cpp's server: its own route, because its completions of the OpenAI API return no token ids.

Fields by the documentation of `llama-server`. Presence and frequency penalties count the prompt there, too, and
stop tokens and a least length do not exist, so they are refused; so are several continuations in one call.
"""

from typing import Any

from trimtab.engine.remote import dialect
from trimtab.engine.remote.fields import At
from trimtab.engine.remote.wire import Ask, Capabilities, Continuation, Reply, Token
from trimtab.engine.vocabulary import Vocabulary

PATH = "/completion"
_ENDS = {"eos": "stop", "word": "stop", "limit": "length"}
_NO_LIMIT = 2**31


def refused(capabilities: Capabilities) -> frozenset[str]:
    """Fields of SamplingParams that the server does not know, or means otherwise."""
    return frozenset({"presence_penalty", "frequency_penalty", "min_tokens", "stop_token_ids"})


def body(ask: Ask, capabilities: Capabilities) -> dict[str, Any]:
    """The body of the call, not streamed."""
    sampling = ask.sampling
    told: dict[str, Any] = {
        "prompt": list(ask.prompt),
        "n_predict": ask.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": -1,
        "samplers": ["penalties", "temperature", "min_p", "top_k", "top_p"],
        "seed": dialect.seed(ask, capabilities, 32),
        "ignore_eos": sampling.ignore_eos,
        "cache_prompt": True,
        "return_tokens": True,
        "stop": list(ask.stop),
    }
    if sampling.logit_bias:
        told["logit_bias"] = [[id_, bias] for id_, bias in sampling.logit_bias.items()]
    if ask.logprobs is not None:
        told["n_probs"] = max(ask.logprobs, 1)
    return told


def reply(ask: Ask, capabilities: Capabilities, answer: Any, vocabulary: Vocabulary) -> Reply:
    """What the answer says; of tokens that complete a stop string no log-probabilities come."""
    at = At(answer)
    ids = at["tokens"].ids(vocabulary.rows, ask.max_tokens)
    kind = at["stop_type"].text()
    if kind not in _ENDS:
        raise at["stop_type"].wrong("'eos', 'word' or 'limit'")
    reason = None
    if kind == "word":
        reason = dialect.stop_reason(at["stopping_word"], ask, vocabulary)
    tokens = tuple(map(Token, ids))
    if ask.logprobs is not None:
        told = [_token(each, ask.logprobs, vocabulary) for each in at["completion_probabilities"].each()]
        if [token.id for token in told] != list(ids[: len(told)]) or (kind != "word" and len(told) < len(ids)):
            raise at["completion_probabilities"].wrong("an entry for each token")
        tokens = (*told, *tokens[len(told) :])
    finish: Any = _ENDS[kind]
    continuation = dialect.check_end(ask, Continuation(tokens, finish, reason), at["tokens"])
    return Reply((continuation,), cached=_cached(at))


def deltas(ask: Ask, capabilities: Capabilities, vocabulary: Vocabulary) -> None:
    """Its streams leave out tokens that end within a character."""
    return


def _token(at: At, count: int, vocabulary: Vocabulary) -> Token:
    pairs = [(each["id"].integer(0, vocabulary.rows), each["logprob"].logprob()) for each in at["top_logprobs"].each()]
    return Token(at["id"].integer(0, vocabulary.rows), at["logprob"].logprob(), dialect.best(pairs, count))


def _cached(at: At) -> int:
    if at["timings"].missing:
        return 0
    cached = at["timings"]["cache_n"]
    return 0 if cached.missing else cached.integer(0, _NO_LIMIT)
