"""The toy engine over a base that another engine runs, as `Toy` is over one of its own: for what holds of both."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from toy import Logits, Toy

from trimtab.engine.model import Model
from trimtab.engine.plan import BASE
from trimtab.engine.remote.model import FarRunner
from trimtab.engine.remote.settings import RemoteSettings
from trimtab.engine.remote.wire import Ask, Capabilities, Continuation, Reply, Token
from trimtab.engine.results import Choice, Result, TokenLogprob

CAPABILITIES = Capabilities(
    kind="trimtab",
    model="toy",
    context_length=None,
    token_prompts=True,
    token_ids=True,
    many=True,
    seeds=True,
    streams=True,
    logprobs=20,
    prompt_logprobs=20,
    include_stop=True,
    salts=True,
)


class ToyBase:
    """`RemoteBase`'s interface over a toy of its own; calls are answered at once, and land in the next tick."""

    def __init__(self, there: Toy) -> None:
        self.there = there
        self.settings = RemoteSettings(url="http://toy", chunk=3)
        self.capabilities = CAPABILITIES
        self.asked: list[Ask] = []

    def ask(self, ask: Ask, told: Callable[[int, Token], None] | None = None) -> "Future[Reply]":
        self.asked.append(ask)
        sampling = ask.sampling.model_copy(
            update={
                "seed": ask.seed,
                "max_tokens": max(1, ask.max_tokens),
                "min_tokens": ask.min_tokens,
                "stop": ask.stop,
                "stop_token_ids": ask.stop_token_ids,
                "logprobs": ask.logprobs,
            }
        )
        result = self.there.run(
            ask.prompt,
            sampling,
            n=ask.n,
            prompt_logprobs=ask.prompt_logprobs,
            random_stream=ask.stream,
        )
        continuations = tuple(map(_continuation, result.choices)) if ask.max_tokens else ()
        for index, each in enumerate(continuations if told is not None else ()):
            for token in each.tokens:
                told(index, token)
        future: Future[Reply] = Future()
        future.set_result(Reply(continuations, _prompt(ask, result), result.usage.cached_tokens))
        return future


class FarToy(Toy):
    """A toy whose base runs elsewhere; its guides are here. `runner` is the base's own, there."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.runner = self.base.remote.there.runner  # type: ignore[union-attr]

    def _model(self, name: str, logits: Logits, features: Logits | None = None) -> Model:
        if name != BASE:
            return super()._model(name, logits, features)
        there = Toy(logits, eos=min(self._eos, default=None))
        base = ToyBase(there)
        runner = FarRunner(there.runner.vocab_size)
        return Model(BASE, runner, self.vocabulary, 10_000, self._eos, b"", remote=base)  # type: ignore[arg-type]


def _continuation(choice: Choice) -> Continuation:
    reports = choice.logprobs or [TokenLogprob(id_, 0.0) for id_ in choice.token_ids]
    known = choice.logprobs is not None
    tokens = (Token(each.id, each.logprob if known else None, each.top) for each in reports)
    return Continuation(tuple(tokens), choice.finish_reason, choice.stop_reason)


def _prompt(ask: Ask, result: Result) -> tuple[Token, ...]:
    if ask.prompt_logprobs is None:
        return ()
    assert result.prompt_logprobs is not None
    first, *others = result.prompt_logprobs
    assert first is None
    return (Token(ask.prompt[0]), *(Token(each.id, each.logprob, each.top) for each in others if each is not None))
