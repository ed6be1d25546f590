"""Requests and how their responses are read: what both clients share. Nothing here touches the network."""

import email.utils
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2

from trimtab.clients.errors import ClientError
from trimtab.clients.fields import ChatFields, CompletionFields, Message, body_of
from trimtab.clients.results import Answer, Guide, Label, Tokens

T = TypeVar("T")

Asked = tuple[str | Sequence[Message], str]
"""a prompt, or the messages of a conversation, and an answer"""
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""a text, token ids, or a list of either"""

BUSY = (429, 503)
"""statuses after which the same request may succeed"""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and the function that reads what comes back."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    body: Mapping[str, Any] | None = None
    request_id: str | None = None
    accepted: tuple[int, ...] = (200,)
    """statuses of answers that `read` understands"""
    content: bytes | None = None
    """a body that is no JSON object"""
    own_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """What this request adds to those of the client."""
        return {**self.own_headers, **({} if self.request_id is None else {"x-request-id": self.request_id})}

    def answer(self, response: httpx2.Response) -> T:
        """What the body of a good response says; raises ClientError for one that no trimtab server sends."""
        try:
            return self.read(response)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"the answer to {self.path} is not that of a trimtab server ({type(error).__name__}: {error})"
            raise ClientError(message, status=response.status_code, request_id=request_id(response)) from error


def chat(model: str, messages: Sequence[Message], fields: Mapping[str, Any]) -> Call[Answer]:
    """POST /v1/chat/completions."""
    sent, own_id = body_of(fields, ChatFields)
    return Call("POST", "/v1/chat/completions", _answer, {"model": model, "messages": list(messages), **sent}, own_id)


def complete(model: str, prompt: Prompt, fields: Mapping[str, Any]) -> Call[Answer]:
    """POST /v1/completions."""
    sent, own_id = body_of(fields, CompletionFields)
    return Call("POST", "/v1/completions", _answer, {"model": model, "prompt": prompt, **sent}, own_id)


def streamed(call: Call[Answer], *, progress: bool, trace: bool) -> Call[Answer]:
    """The same request, answered piece by piece."""
    wanted = {"include_usage": True, "include_progress": progress, "include_trace": trace}
    options = {name: True for name, asked in wanted.items() if asked}
    body = {**(call.body or {}), "stream": True, "stream_options": options}
    return Call(call.method, call.path, call.read, body, call.request_id)


def score(guide: str, pairs: Iterable[Asked], own_id: str | None) -> Call[list[float]]:
    """POST /v1/score."""
    body = {"model": guide, "pairs": _pairs(pairs)}
    return Call("POST", "/v1/score", lambda reply: [each["score"] for each in data_of(reply)], body, own_id)


def classify(guide: str, pairs: Iterable[Asked], own_id: str | None) -> Call[list[Label]]:
    """POST /v1/classify."""

    def read(response: httpx2.Response) -> list[Label]:
        return [Label(each["label"], tuple(each["probs"])) for each in data_of(response)]

    return Call("POST", "/v1/classify", read, {"model": guide, "pairs": _pairs(pairs)}, own_id)


def tokenize(
    text: str | Sequence[Message],
    *,
    model: str | None,
    add_special_tokens: bool | None,
    add_generation_prompt: bool | None,
    texts: bool,
) -> Call[Tokens]:
    """POST /tokenize."""
    given = {
        "prompt" if isinstance(text, str) else "messages": text if isinstance(text, str) else list(text),
        "model": model,
        "add_special_tokens": add_special_tokens,
        "add_generation_prompt": add_generation_prompt,
        "return_token_strs": texts or None,
    }
    body = {name: value for name, value in given.items() if value is not None}
    return Call("POST", "/tokenize", lambda reply: Tokens.of(reply.json()), body)


def detokenize(ids: Sequence[int], *, model: str | None) -> Call[str]:
    """POST /detokenize."""
    body = {"tokens": list(ids), **({} if model is None else {"model": model})}
    return Call("POST", "/detokenize", lambda reply: str(reply.json()["prompt"]), body)


def models() -> Call[list[str]]:
    """GET /v1/models."""
    return Call("GET", "/v1/models", lambda reply: [card["id"] for card in data_of(reply)])


def model(name: str) -> Call[dict[str, Any]]:
    """GET /v1/models/{id}."""
    return Call("GET", f"/v1/models/{quote(name)}", lambda reply: dict(reply.json()))


def strategies() -> Call[list[dict[str, Any]]]:
    """GET /v1/strategies."""
    return Call("GET", "/v1/strategies", data_of)


def guides() -> Call[list[Guide]]:
    """GET /v1/guides."""
    return Call("GET", "/v1/guides", lambda reply: [Guide.of(each) for each in data_of(reply)])


def machine() -> Call[dict[str, Any]]:
    """GET /v1/machine."""
    return Call("GET", "/v1/machine", lambda reply: dict(reply.json()))


def version() -> Call[str]:
    """GET /version."""
    return Call("GET", "/version", lambda reply: str(reply.json()["version"]))


def health() -> Call[bool]:
    """GET /health."""
    return Call("GET", "/health", lambda reply: reply.status_code == 200, accepted=(200, 503))


def ready() -> Call[bool]:
    """GET /ready."""
    return Call("GET", "/ready", lambda reply: reply.status_code == 200, accepted=(200, 503))


def request_id(response: httpx2.Response) -> str | None:
    """What the server's log knows the request by."""
    return response.headers.get("x-request-id")


def refused(response: httpx2.Response) -> ClientError:
    """The error of a response that is none of 200, read to its end."""
    status, headers = response.status_code, response.headers
    may_retry = status in BUSY and headers.get("x-should-retry") != "false"
    message, code, param = f"HTTP {status}, and not from a trimtab server", None, None
    try:
        error = response.json()["error"]
        message, code, param = error["message"], error["code"], error["param"]
    except (ValueError, KeyError, TypeError):
        pass  # a proxy's own page: its status is all there is to tell
    return ClientError(
        message,
        status=status,
        code=code,
        param=param,
        request_id=request_id(response),
        retry_after=_seconds(headers.get("retry-after")),
        may_retry=may_retry,
    )


def unreachable(url: str, error: httpx2.HTTPError) -> ClientError:
    """The error of a request that got no response; one that only took too long is not sent again."""
    told = _words(error)
    if isinstance(error, httpx2.ReadTimeout):
        return ClientError(f"{url} was silent for longer than the client's timeout ({told})")
    connection = isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError | httpx2.ConnectTimeout)
    return ClientError(f"no answer from {url} ({told}): is `trimtab serve` running there?", may_retry=connection)


def broken(url: str, own_id: str | None, error: httpx2.HTTPError) -> ClientError:
    """The error of a stream whose connection ended before the answer did; it is not sent again."""
    return ClientError(f"the stream from {url} broke off ({_words(error)})", request_id=own_id)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _answer(response: httpx2.Response) -> Answer:
    return Answer.of(response.json(), request_id(response))


def data_of(response: httpx2.Response) -> list[dict[str, Any]]:
    """The entries of a list."""
    return list(response.json()["data"])


def _pairs(pairs: Iterable[Asked]) -> list[dict[str, Any]]:
    return [
        {"prompt": asked, "answer": answer} if isinstance(asked, str) else {"messages": list(asked), "answer": answer}
        for asked, answer in pairs
    ]


def _seconds(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date; None for one that holds neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass  # not a number: a date
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
