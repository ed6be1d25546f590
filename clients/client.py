"""The Python client. `AsyncTrimtabClient` of `trimtab.clients.aio` is the same for programs that use asyncio."""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from trimtab.clients import calls, library
from trimtab.clients.calls import Asked, Call, Prompt
from trimtab.clients.comparison import Comparison, Row
from trimtab.clients.connection import TIMEOUT, URL, headers, limits
from trimtab.clients.errors import ClientError
from trimtab.clients.fields import ChatFields, CompletionFields, Decoding, Message
from trimtab.clients.pairs import write_pairs
from trimtab.clients.results import Answer, Guide, Label, Tokens
from trimtab.clients.retries import TIMES, Retries
from trimtab.clients.stream import Event, Piece, Progress, Reader, ToolCallDelta, Traced

__all__ = [
    "Answer", "ClientError", "Comparison", "Event", "Guide", "Label", "Piece", "Progress", "Retries", "Tokens",
    "ToolCallDelta", "Traced", "TrimtabClient",
]  # fmt: skip

T = TypeVar("T")


class TrimtabClient:
    """Talks to the server at `url`; every method raises ClientError.

    `api_key` is taken from TRIMTAB_API_KEY if it is not given. `timeout` is the longest silence in seconds. A server
    that is busy or cannot be reached is asked again, `retries` times, except for what has begun to stream.
    """

    def __init__(
        self, url: str = URL, *, api_key: str | None = None, timeout: float = TIMEOUT, retries: int = TIMES
    ) -> None:
        self.url = url.rstrip("/")
        self._retries = Retries(retries)
        self._http = httpx2.Client(base_url=self.url, headers=headers(api_key), timeout=limits(timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def chat(self, model: str, messages: Sequence[Message], **fields: Unpack[ChatFields]) -> Answer:
        """The answer to a conversation."""
        return self._ask(calls.chat(model, messages, fields))

    def stream_chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        progress: bool = False,
        trace: bool = False,
        **fields: Unpack[ChatFields],
    ) -> Generator[Event, None, None]:
        """Text as it comes, parts of tool calls, with `progress` how far a search is, and then the Answer.

        With `trace` what shaped each token comes before its text; `decoding` has to keep it (`trace="tokens"`). Leaving
        the loop, or closing the generator, cancels the request.
        """
        return self._events(calls.streamed(calls.chat(model, messages, fields), progress=progress, trace=trace))

    def complete(self, model: str, prompt: Prompt, **fields: Unpack[CompletionFields]) -> Answer:
        """What follows a text, or several; `echo`, `logprobs` and `max_tokens=0` tell how likely the text itself is."""
        return self._ask(calls.complete(model, prompt, fields))

    def stream_complete(
        self,
        model: str,
        prompt: Prompt,
        *,
        progress: bool = False,
        trace: bool = False,
        **fields: Unpack[CompletionFields],
    ) -> Generator[Event, None, None]:
        """The same piece by piece, as `stream_chat` has it."""
        return self._events(calls.streamed(calls.complete(model, prompt, fields), progress=progress, trace=trace))

    def compare(
        self,
        model: str,
        messages: Sequence[Message],
        strategies: Mapping[str, Decoding | None],
        **fields: Unpack[ChatFields],
    ) -> Comparison:
        """Answers to one question under several strategies, asked for at once; None is plain sampling.

        A strategy that fails has its error in its row and fails nothing else.
        """
        asked = {name: calls.chat(model, messages, {**fields, "decoding": each}) for name, each in strategies.items()}

        def row(name: str) -> Row:
            try:
                return Row(name, self._ask(asked[name]))
            except ClientError as error:
                return Row(name, None, error)

        with ThreadPoolExecutor(max(1, len(asked))) as pool:
            return Comparison(tuple(pool.map(row, asked)))

    def score(self, guide: str, pairs: Iterable[Asked], *, request_id: str | None = None) -> list[float]:
        """Scores of answers by a reward guide, in order.

        A pair holds what was asked, as a prompt or as messages, and the answer.
        """
        return self._ask(calls.score(guide, pairs, request_id))

    def classify(self, guide: str, pairs: Iterable[Asked], *, request_id: str | None = None) -> list[Label]:
        """Labels of answers by a reward guide, in order. Pairs are as for `score`."""
        return self._ask(calls.classify(guide, pairs, request_id))

    def tokenize(
        self,
        text: str | Sequence[Message],
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool | None = None,
        texts: bool = False,
    ) -> Tokens:
        """Token ids of a text, or of a conversation under the chat template; with `texts` the tokens' texts too."""
        return self._ask(
            calls.tokenize(
                text,
                model=model,
                add_special_tokens=add_special_tokens,
                add_generation_prompt=add_generation_prompt,
                texts=texts,
            )
        )

    def detokenize(self, ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of token ids."""
        return self._ask(calls.detokenize(ids, model=model))

    def models(self) -> list[str]:
        """Ids of the models that are served, presets among them."""
        return self._ask(calls.models())

    def model(self, name: str) -> dict[str, Any]:
        """What the server tells of one model."""
        return self._ask(calls.model(name))

    def strategies(self) -> list[dict[str, Any]]:
        """Every strategy with its parameters' JSON Schema."""
        return self._ask(calls.strategies())

    def guides(self) -> list[Guide]:
        """Every guide that requests may steer with."""
        return self._ask(calls.guides())

    def norms(
        self,
        *,
        q: str | None = None,
        tags: Sequence[str] = (),
        tenant: str | None = None,
        locale: str | None = None,
        topic: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Norms in the order of their ids, a page at a time; like all calls about norms, with the operator's key."""
        return self._ask(
            library.norms(q=q, tags=tags, tenant=tenant, locale=locale, topic=topic, after=after, limit=limit)
        )

    def norm(self, id: str) -> dict[str, Any]:
        """One norm, with its `version`."""
        return self._ask(library.norm(id))

    def create_norm(self, norm: Mapping[str, Any]) -> dict[str, Any]:
        """Add a norm, which is in force from the next request on."""
        return self._ask(library.create_norm(norm))

    def change_norm(self, id: str, changes: Mapping[str, Any], *, version: int | None = None) -> dict[str, Any]:
        """Change some fields of a norm; with a `version`, of that one alone (a ClientError of status 412 otherwise)."""
        return self._ask(library.change_norm(id, changes, version))

    def delete_norm(self, id: str, *, version: int | None = None) -> None:
        """Take a norm away."""
        self._ask(library.delete_norm(id, version))

    def import_norms(self, norms: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """Add and replace norms, all or none; returns how many were `created` and `replaced`."""
        return self._ask(library.import_norms(norms))

    def export_norms(self) -> list[dict[str, Any]]:
        """Every norm, as `import_norms` takes them."""
        return self._ask(library.export_norms())

    def embed_norms(self, embedding: str, *, model: str | None = None) -> int:
        """Make the vectors of all norms that have none by this guide; returns how many. Many take long."""
        return self._ask(library.embed_norms(embedding, model))

    def profiles(self) -> list[dict[str, Any]]:
        """The preferences that are stored under this key."""
        return self._ask(library.profiles())

    def profile(self, id: str) -> dict[str, Any]:
        """One stored preference."""
        return self._ask(library.profile(id))

    def store_profile(self, id: str, preference: Mapping[str, Any]) -> dict[str, Any]:
        """Store a preference, `weights`, `text` or `infer`, for requests that name its id."""
        return self._ask(library.store_profile(id, preference))

    def erase_profile(self, id: str) -> None:
        """Erase a stored preference."""
        self._ask(library.erase_profile(id))

    def health(self) -> bool:
        """Whether the engine lives."""
        return self._ask(calls.health())

    def ready(self) -> bool:
        """Whether new requests are accepted."""
        return self._ask(calls.ready())

    def machine(self) -> dict[str, Any]:
        """What the server runs on: `hardware`, `memory_mib` that it holds now, `models` with dtype and device."""
        return self._ask(calls.machine())

    def version(self) -> str:
        """Version of the server."""
        return self._ask(calls.version())

    def pairs(
        self,
        model: str,
        conversations: Iterable[Sequence[Message]],
        path: Path | str,
        *,
        n: int,
        reward: str | Mapping[str, Any],
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        parallel: int = 4,
    ) -> int:
        """Write a preference pair for each conversation, the best and the worst of n answers; returns how many.

        `path` gets lines of JSON in the conversational form that DPO trainers read. A conversation whose answers all
        have the same reward is left out. With a seed, the i-th conversation is answered with seed + i. When a
        ClientError ends it, the lines before stay.
        """
        decoding = {"strategy": "best_of_n", "n": n, "reward": reward, "export": "best_and_worst"}

        def ask(index: int, messages: Sequence[Message]) -> Answer:
            own_seed = None if seed is None else seed + index
            return self.chat(
                model, messages, decoding=decoding, temperature=temperature, max_tokens=max_tokens, seed=own_seed
            )

        return write_pairs(ask, list(conversations), Path(path), n=n, parallel=parallel)

    def _ask(self, call: Call[T]) -> T:
        return call.answer(self._send(call))

    def _events(self, call: Call[Answer]) -> Generator[Event, None, None]:
        response = self._send(call, stream=True)
        reader = Reader(calls.request_id(response))
        try:
            for data in response.iter_bytes():
                yield from reader.feed(data)
            reader.end()
        except httpx2.HTTPError as error:
            raise calls.broken(self.url, calls.request_id(response), error) from error
        finally:
            response.close()

    def _send(self, call: Call[Any], *, stream: bool = False) -> httpx2.Response:
        """A good response, after as many tries as it takes; of a stream, before anything of it was read."""
        tried = 0
        while True:
            request = self._http.build_request(
                call.method, call.path, json=call.body, content=call.content, headers=call.headers
            )
            try:
                response = self._http.send(request, stream=stream)
                if response.status_code in call.accepted:
                    return response
                response.read()
                failure = calls.refused(response)
            except httpx2.HTTPError as error:
                failure = calls.unreachable(self.url, error)
            wait = self._retries.wait(tried, failure)
            if wait is None:
                raise failure
            time.sleep(wait)
            tried += 1
