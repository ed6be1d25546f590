"""The Python client for programs that use asyncio; all but the waiting is what `trimtab.clients.client` does."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from trimtab.clients import calls, library
from trimtab.clients.calls import Asked, Call, Prompt
from trimtab.clients.comparison import Comparison, Row
from trimtab.clients.connection import TIMEOUT, URL, headers, limits
from trimtab.clients.errors import ClientError
from trimtab.clients.fields import ChatFields, CompletionFields, Decoding, Message
from trimtab.clients.results import Answer, Guide, Label, Tokens
from trimtab.clients.retries import TIMES, Retries
from trimtab.clients.stream import Event, Reader

T = TypeVar("T")


class AsyncTrimtabClient:
    """`TrimtabClient` with methods to be awaited; their arguments and answers are the same."""

    def __init__(
        self, url: str = URL, *, api_key: str | None = None, timeout: float = TIMEOUT, retries: int = TIMES
    ) -> None:
        self.url = url.rstrip("/")
        self._retries = Retries(retries)
        self._http = httpx2.AsyncClient(base_url=self.url, headers=headers(api_key), timeout=limits(timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def chat(self, model: str, messages: Sequence[Message], **fields: Unpack[ChatFields]) -> Answer:
        """The answer to a conversation."""
        return await self._ask(calls.chat(model, messages, fields))

    def stream_chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        progress: bool = False,
        trace: bool = False,
        **fields: Unpack[ChatFields],
    ) -> AsyncGenerator[Event, None]:
        """Text as it comes, and then the Answer; closing the generator (contextlib.aclosing) cancels the request."""
        return self._events(calls.streamed(calls.chat(model, messages, fields), progress=progress, trace=trace))

    async def complete(self, model: str, prompt: Prompt, **fields: Unpack[CompletionFields]) -> Answer:
        """What follows a text, or several."""
        return await self._ask(calls.complete(model, prompt, fields))

    def stream_complete(
        self,
        model: str,
        prompt: Prompt,
        *,
        progress: bool = False,
        trace: bool = False,
        **fields: Unpack[CompletionFields],
    ) -> AsyncGenerator[Event, None]:
        """The same piece by piece, as `stream_chat` has it."""
        return self._events(calls.streamed(calls.complete(model, prompt, fields), progress=progress, trace=trace))

    async def compare(
        self,
        model: str,
        messages: Sequence[Message],
        strategies: Mapping[str, Decoding | None],
        **fields: Unpack[ChatFields],
    ) -> Comparison:
        """Answers to one question under several strategies, asked for at once."""
        asked = {name: calls.chat(model, messages, {**fields, "decoding": each}) for name, each in strategies.items()}

        async def row(name: str) -> Row:
            try:
                answer = await self._ask(asked[name])
            except ClientError as error:
                return Row(name, None, error)
            return Row(name, answer)

        return Comparison(tuple(await asyncio.gather(*map(row, asked))))

    async def score(self, guide: str, pairs: Iterable[Asked], *, request_id: str | None = None) -> list[float]:
        """Scores of answers by a reward guide, in order."""
        return await self._ask(calls.score(guide, pairs, request_id))

    async def classify(self, guide: str, pairs: Iterable[Asked], *, request_id: str | None = None) -> list[Label]:
        """Labels of answers by a reward guide, in order."""
        return await self._ask(calls.classify(guide, pairs, request_id))

    async def tokenize(
        self,
        text: str | Sequence[Message],
        *,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool | None = None,
        texts: bool = False,
    ) -> Tokens:
        """Token ids of a text, or of a conversation under the chat template."""
        return await self._ask(
            calls.tokenize(
                text,
                model=model,
                add_special_tokens=add_special_tokens,
                add_generation_prompt=add_generation_prompt,
                texts=texts,
            )
        )

    async def detokenize(self, ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of token ids."""
        return await self._ask(calls.detokenize(ids, model=model))

    async def models(self) -> list[str]:
        """Ids of the models that are served, presets among them."""
        return await self._ask(calls.models())

    async def model(self, name: str) -> dict[str, Any]:
        """What the server tells of one model."""
        return await self._ask(calls.model(name))

    async def strategies(self) -> list[dict[str, Any]]:
        """Every strategy with its parameters' JSON Schema."""
        return await self._ask(calls.strategies())

    async def guides(self) -> list[Guide]:
        """Every guide that requests may steer with."""
        return await self._ask(calls.guides())

    async def norms(
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
        return await self._ask(
            library.norms(q=q, tags=tags, tenant=tenant, locale=locale, topic=topic, after=after, limit=limit)
        )

    async def norm(self, id: str) -> dict[str, Any]:
        """One norm, with its `version`."""
        return await self._ask(library.norm(id))

    async def create_norm(self, norm: Mapping[str, Any]) -> dict[str, Any]:
        """Add a norm, which is in force from the next request on."""
        return await self._ask(library.create_norm(norm))

    async def change_norm(self, id: str, changes: Mapping[str, Any], *, version: int | None = None) -> dict[str, Any]:
        """Change some fields of a norm; with a `version`, of that one alone (a ClientError of status 412 otherwise)."""
        return await self._ask(library.change_norm(id, changes, version))

    async def delete_norm(self, id: str, *, version: int | None = None) -> None:
        """Take a norm away."""
        await self._ask(library.delete_norm(id, version))

    async def import_norms(self, norms: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """Add and replace norms, all or none; returns how many were `created` and `replaced`."""
        return await self._ask(library.import_norms(norms))

    async def export_norms(self) -> list[dict[str, Any]]:
        """Every norm, as `import_norms` takes them."""
        return await self._ask(library.export_norms())

    async def embed_norms(self, embedding: str, *, model: str | None = None) -> int:
        """Make the vectors of all norms that have none by this guide; returns how many. Many take long."""
        return await self._ask(library.embed_norms(embedding, model))

    async def profiles(self) -> list[dict[str, Any]]:
        """The preferences that are stored under this key."""
        return await self._ask(library.profiles())

    async def profile(self, id: str) -> dict[str, Any]:
        """One stored preference."""
        return await self._ask(library.profile(id))

    async def store_profile(self, id: str, preference: Mapping[str, Any]) -> dict[str, Any]:
        """Store a preference, `weights`, `text` or `infer`, for requests that name its id."""
        return await self._ask(library.store_profile(id, preference))

    async def erase_profile(self, id: str) -> None:
        """Erase a stored preference."""
        await self._ask(library.erase_profile(id))

    async def health(self) -> bool:
        """Whether the engine lives."""
        return await self._ask(calls.health())

    async def ready(self) -> bool:
        """Whether new requests are accepted."""
        return await self._ask(calls.ready())

    async def machine(self) -> dict[str, Any]:
        """What the server runs on: `hardware`, `memory_mib` that it holds now, `models` with dtype and device."""
        return await self._ask(calls.machine())

    async def version(self) -> str:
        """Version of the server."""
        return await self._ask(calls.version())

    async def _ask(self, call: Call[T]) -> T:
        return call.answer(await self._send(call))

    async def _events(self, call: Call[Answer]) -> AsyncGenerator[Event, None]:
        response = await self._send(call, stream=True)
        reader = Reader(calls.request_id(response))
        try:
            async for data in response.aiter_bytes():
                for event in reader.feed(data):
                    yield event
            reader.end()
        except httpx2.HTTPError as error:
            raise calls.broken(self.url, calls.request_id(response), error) from error
        finally:
            await response.aclose()

    async def _send(self, call: Call[Any], *, stream: bool = False) -> httpx2.Response:
        """A good response, after as many tries as it takes; of a stream, before anything of it was read."""
        tried = 0
        while True:
            request = self._http.build_request(
                call.method, call.path, json=call.body, content=call.content, headers=call.headers
            )
            try:
                response = await self._http.send(request, stream=stream)
                if response.status_code in call.accepted:
                    return response
                await response.aread()
                failure = calls.refused(response)
            except httpx2.HTTPError as error:
                failure = calls.unreachable(self.url, error)
            wait = self._retries.wait(tried, failure)
            if wait is None:
                raise failure
            await asyncio.sleep(wait)
            tried += 1
