"""HTTP calls to one server: many at once, cancellable, patient with a server that is busy."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import httpx2
from pydantic_core import from_json, to_json

from trimtab.engine.errors import ModelLoadError, RemoteUnavailable
from trimtab.engine.remote.events import Events
from trimtab.engine.remote.failures import Failed, broken, garbage, pause, refused
from trimtab.engine.remote.loop import LOOP
from trimtab.engine.remote.settings import ConnectionSettings
from trimtab.engine.remote.stats import RemoteStats

T = TypeVar("T")

LARGEST = 256 * 1024 * 1024
"""bytes of one answer that are read"""
_SESSION = ("x-session-id", "x-smg-routing-key")
"""headers by which routers keep a session on one replica: of vLLM and its router, and of SGLang's gateway"""


class Connection:
    """One server. Thread-safe; cancelling a call's future closes its connection, by which servers notice.

    A call that was not taken (no connection, 429, 503) is sent again after a while, and so is one whose connection was
    lost while nothing of its answer was told: answers are pure functions of what is asked. A silent server is not asked
    twice.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        stats: RemoteStats | None = None,
        failed: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """ModelLoadError where the key is missing; `failed` is told of each failed attempt, in the loop's thread."""
        self.settings = settings
        self.stats = stats or RemoteStats()
        self.name = _without_secrets(settings.url)
        """the address without credentials, for messages"""
        self._failed = failed
        self._http = httpx2.AsyncClient(
            headers=_key(settings),
            timeout=httpx2.Timeout(settings.read_timeout, connect=settings.connect_timeout, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=settings.connections),
        )
        self._free = asyncio.Semaphore(settings.connections)
        self._calls: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._lock = Lock()
        LOOP.enter()

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, session: str = ""
    ) -> "Future[Any]":
        """The JSON that the server answers; the future fails with RemoteUnavailable or RemoteError."""
        return self.start(self.fetch(method, path, body, session=session))

    def stream(
        self, path: str, body: Mapping[str, Any], told: Callable[[dict[str, Any]], None], *, session: str = ""
    ) -> "Future[None]":
        """Tell each JSON object of a stream, in the loop's thread, until `[DONE]`; what `told` raises ends the call.

        Never hedged, and never sent again once something was told.
        """
        return self.start(self.listen(path, body, told, session=session))

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run work that awaits `fetch` and `listen`; cancelling the future cancels it, and so does `close`."""
        with self._lock:
            if not self._closed:
                return LOOP.start(self.held(work))
        work.close()
        raise RemoteUnavailable(f"the connection to {self.name} is closed")

    async def fetch(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, session: str = "") -> Any:
        """`send` for work that runs in the loop."""
        request = self._request(method, path, body, session)
        return await self._call(partial(self._hedged, request), lambda: True)

    async def listen(
        self, path: str, body: Mapping[str, Any], told: Callable[[dict[str, Any]], None], *, session: str = ""
    ) -> None:
        """`stream` for work that runs in the loop."""
        request = self._request("POST", path, body, session)
        began = False

        def first(chunk: dict[str, Any]) -> None:
            nonlocal began
            began = True
            told(chunk)

        await self._call(partial(self._listen, request, first), lambda: not began)

    async def held(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that `close` cancels: for tasks that are started within the loop."""
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        try:
            return await work
        finally:
            self._calls.discard(call)

    def close(self) -> None:
        """Cancel all calls and close the connections; not to be called from the loop's own thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        LOOP.start(self._end()).result()
        LOOP.leave()

    async def _end(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._http.aclose()

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, session: str) -> httpx2.Request:
        headers = dict.fromkeys(_SESSION, session) if session else {}
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = to_json(body)
        return self._http.build_request(method, self.settings.url + path, content=content, headers=headers)

    async def _call(self, attempt: Callable[[], Coroutine[Any, Any, T]], repeatable: Callable[[], bool]) -> T:
        """Run attempts until one succeeds, or none may follow."""
        async with self._turn():
            began = time.perf_counter()
            answer = await self._persist(attempt, repeatable)
            self.stats.seconds.add(time.perf_counter() - began)
            return answer

    async def _persist(self, attempt: Callable[[], Coroutine[Any, Any, T]], repeatable: Callable[[], bool]) -> T:
        settings, tried = self.settings, 0
        while True:
            try:
                return await attempt()
            except Failed as failed:
                self.stats.failed(failed.kind)
                self._failed(failed.kind)
                wait = None
                if failed.again and repeatable() and tried < settings.retries:
                    wait = pause(tried, settings.backoff, settings.longest_backoff, failed.retry_after)
                if wait is None:
                    raise failed.error(self.name) from None
            tried += 1
            self.stats.retries += 1
            await asyncio.sleep(wait)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one of the connections."""
        self.stats.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.stats.waiting -= 1
        self.stats.in_flight += 1
        try:
            yield
        finally:
            self._free.release()
            self.stats.in_flight -= 1
            self.stats.calls += 1

    async def _hedged(self, request: httpx2.Request) -> Any:
        """One attempt, or the sooner of two where the first is late."""
        late = self.settings.hedge_after
        if late is None:
            return await self._answer(request)
        attempts = {asyncio.create_task(self._answer(request))}
        try:
            done, _ = await asyncio.wait(attempts, timeout=late)
            if not done:
                self.stats.hedges += 1
                attempts.add(asyncio.create_task(self._answer(request)))
            while True:
                done, waiting = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
                good = [each for each in done if each.exception() is None]
                if good or not waiting:
                    return (good or list(done))[0].result()
                attempts = waiting
        finally:
            for each in attempts:
                each.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)

    async def _answer(self, request: httpx2.Request) -> Any:
        """One attempt at a whole answer."""
        async with self._response(request) as response:
            async with asyncio.timeout(self.settings.read_timeout):  # a body that drips is as bad as silence
                body = await _read(response)
            return _parsed(body)

    async def _listen(self, request: httpx2.Request, told: Callable[[dict[str, Any]], None]) -> None:
        """One attempt at a stream."""
        events = Events()
        async with self._response(request) as response:
            async for data in response.aiter_bytes():
                for event in events.feed(data):
                    told(_object(_parsed(event)))
                if events.ended:
                    return
        raise Failed("lost", "ended its stream before the answer was whole", unavailable=True, again=True)

    @asynccontextmanager
    async def _response(self, request: httpx2.Request) -> AsyncIterator[httpx2.Response]:
        """A response with status 200, closed at the end; whatever goes wrong meanwhile is a Failed."""
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    async with asyncio.timeout(self.settings.read_timeout):
                        body = await _read(response)
                    raise refused(response, _maybe(body))
                yield response
            finally:
                await response.aclose()
        except (httpx2.HTTPError, httpx2.StreamError, TimeoutError) as error:
            raise broken(error, self.settings.read_timeout) from error


async def _read(response: httpx2.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise garbage(f"answered more than {LARGEST // 2**20} MiB")
    return b"".join(parts)


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        raise garbage("answered what is no JSON: is it an API server?") from None


def _maybe(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        return None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise garbage("streamed what is no JSON object")
    return value


def _key(settings: ConnectionSettings) -> dict[str, str]:
    if settings.api_key_env is None:
        return {}
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise ModelLoadError(f"api_key_env: the environment variable {settings.api_key_env} is not set")
    return {"authorization": f"Bearer {key}"}


def _without_secrets(url: str) -> str:
    parsed = httpx2.URL(url)
    port = "" if parsed.port is None else f":{parsed.port}"
    return f"{parsed.scheme}://{parsed.host}{port}{parsed.path.rstrip('/')}"
