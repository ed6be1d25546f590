"""What a remote server can do, found by trying each thing once, with short calls to a text that says nothing."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trimtab.engine.errors import ModelLoadError, RemoteError
from trimtab.engine.remote import completions
from trimtab.engine.remote.client import Connection
from trimtab.engine.remote.fields import At
from trimtab.engine.remote.identity import Identity
from trimtab.engine.remote.wire import Ask, Capabilities, Continuation, Reply
from trimtab.engine.sampling import MAX_LOGPROBS, SamplingParams
from trimtab.engine.vocabulary import Vocabulary

_TEXT = "The quick brown fox jumps over the lazy dog, and then"
_TOKENS = 8
_COUNTS = (MAX_LOGPROBS, 5, 1, 0)
"""numbers of alternatives that are tried, most first: 20 is vLLM's default limit, 5 was OpenAI's"""
_SAME = 0.05
"""nats by which a log-probability may move between two calls of one prompt: half-precision arithmetic"""
_ROUTES = {"score": ("/v1/score", "/score"), "classify": ("/v1/classify", "/classify"), "pooling": ("/pooling",)}


class Probe:
    """One look at everything; each part narrows what is believed of the server."""

    def __init__(self, connection: Connection, identity: Identity, vocabulary: Vocabulary) -> None:
        self._connection = connection
        self._vocabulary = vocabulary
        self._prompt = vocabulary.encode(_TEXT)
        one_by_one = identity.kind == "llama.cpp"
        self._found = Capabilities(
            kind=identity.kind,
            model=identity.model,
            context_length=identity.context_length,
            token_prompts=True,
            token_ids=True,
            many=not one_by_one,
            seeds=True,
            streams=identity.kind == "trimtab",
            logprobs=-1,
            prompt_logprobs=-1,
            include_stop=False,
            salts=identity.kind in ("trimtab", "vllm", "sglang"),
            tokenizer=identity.tokenizer,
        )

    async def run(self) -> Capabilities:
        """Try everything; ModelLoadError where there are no token prompts."""
        greedy = await self._first()
        await self._many()
        await self._seeds()
        await self._logprobs()
        await self._prompt_logprobs()
        await self._stop(greedy)
        self._found = replace(self._found, scores=await self._scores())
        return self._found

    async def _first(self) -> Continuation:
        """A plain call, with fewer and fewer extras until one is taken."""
        extras: Sequence[dict[str, bool]] = (
            {}, {"streams": False}, {"streams": False, "token_ids": False, "salts": False},
        )  # fmt: skip
        failure = RemoteError("")
        for less in extras:
            self._found = replace(self._found, **less)  # type: ignore[arg-type]
            try:
                return (await self._ask(temperature=0.0)).continuations[0]
            except RemoteError as error:
                failure = error
        raise ModelLoadError(
            f"the server at {self._connection.name} takes no token ids as a prompt of {completions.path(self._found)} "
            f"({failure}): use trimtab, vLLM, SGLang or llama.cpp's server there"
        )

    async def _many(self) -> None:
        if self._found.many:
            self._found = replace(self._found, many=await self._try(n=2) is not None)

    async def _seeds(self) -> None:
        first, again, other = await self._try(seed=1), await self._try(seed=1), await self._try(seed=2)
        if first is None or again is None or other is None:
            self._found = replace(self._found, seeds=False)
            return
        ids = [[token.id for token in each.continuations[0].tokens] for each in (first, again, other)]
        self._found = replace(self._found, seeds=ids[0] == ids[1])

    async def _logprobs(self) -> None:
        """How many alternatives it tells, if they are those of temperature 1 before filters, under any sampling."""
        for count in _COUNTS:
            plain = await self._try(logprobs=count)
            if plain is None:
                continue
            warped = await self._try(logprobs=count, temperature=2.0, top_p=0.5)
            if warped is not None and _alike(_begin(plain), _begin(warped)):
                self._found = replace(self._found, logprobs=count)
            return

    async def _prompt_logprobs(self) -> None:
        if self._found.kind == "llama.cpp" or not self._found.token_ids:
            return
        for count in _COUNTS:
            told = await self._try(max_tokens=0, prompt_logprobs=count)
            if told is not None:
                self._found = replace(self._found, prompt_logprobs=count)
                return

    async def _stop(self, greedy: Continuation) -> None:
        """Whether a string that ends a continuation is among its tokens."""
        ids = [token.id for token in greedy.tokens]
        text = self._vocabulary.decode(ids[1:2], skip_special_tokens=True)
        if not text.strip() or "\ufffd" in text:
            text = self._vocabulary.decode(ids[:1], skip_special_tokens=True)
        if not text or "\ufffd" in text:
            self._found = replace(self._found, include_stop=self._found.token_ids)
            return
        told = await self._try(temperature=0.0, stop=(text,))
        if told is not None:
            kept = self._vocabulary.decode([token.id for token in told.continuations[0].tokens])
            self._found = replace(self._found, include_stop=text in kept)

    async def _scores(self) -> tuple[str, ...]:
        """Routes that the server's own description names."""
        try:
            paths = At(await self._connection.fetch("GET", "/openapi.json"))["paths"].object()
        except RemoteError:
            return ()
        return tuple(name for name, routes in _ROUTES.items() if any(route in paths for route in routes))

    async def _try(self, **changes: Any) -> Reply | None:
        """The answer, or None where the server refuses, or answers something else."""
        try:
            return await self._ask(**changes)
        except RemoteError:
            return None

    async def _ask(self, *, temperature: float = 1.0, top_p: float = 1.0, **changes: Any) -> Reply:
        sampling = SamplingParams(temperature=temperature, top_p=top_p)
        given = {"max_tokens": _TOKENS, "seed": 1, **changes}
        ask = Ask(self._prompt, sampling=sampling, **given)
        path, body = completions.path(self._found), completions.body(ask, self._found)
        answer = await self._connection.fetch("POST", path, body)
        return completions.reply(ask, self._found, answer, self._vocabulary)


def _begin(reply: Reply) -> dict[int, float]:
    """What is told of the first position, the same under any sampling: its best tokens and the drawn one."""
    tokens = reply.continuations[0].tokens
    if not tokens or tokens[0].logprob is None:
        return {}
    return {tokens[0].id: tokens[0].logprob, **dict(tokens[0].top)}


def _alike(first: dict[int, float], second: dict[int, float]) -> bool:
    """Whether two calls tell the same of the tokens that both tell of, and of one at least."""
    both = first.keys() & second.keys()
    return bool(both) and all(math.isclose(first[id_], second[id_], abs_tol=_SAME) for id_ in both)
