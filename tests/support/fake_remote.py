"""A server that plays a tiny language model under the dialect of each kind, with faults to switch on.

The model is a table: logits of a prefix are drawn from a generator seeded by it. It speaks the byte tokenizer's small
letters and ends with `<eos>`.
"""

import json
import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fake_faults import COMPLETIONS, Fault, Faulty, WithTransport
from running import Played
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from toy import byte_tokenizer

from trimtab.engine.vocabulary import Vocabulary

EOS = 256
VOCABULARY = Vocabulary(byte_tokenizer())
SPOKEN = (*VOCABULARY.encode("abcdefghijklmnopqrstuvwxyz "), EOS)
_VLLM_FORBIDS = set("@/\\\0")


@dataclass
class Sampled:
    ids: list[int]
    raw: list[np.ndarray]
    finish: str
    reason: Any


class FakeRemote:
    """One server on a port of its own, which it keeps when it is stopped and started again."""

    def __init__(self, kind: str = "vllm", *, speaks_ids: bool = True, warped: bool = False) -> None:
        self.kind = kind
        self.model = "toy"
        self.room = 4096
        self.speaks_ids = speaks_ids
        """of kind `other`: whether it knows return_token_ids"""
        self.warped = warped
        """log-probabilities are told after temperature and filters"""
        self.knows_streams = kind == "trimtab"
        self.shift = 0
        """added to the ids of letters: another tokenizer"""
        self.salt = 0
        """seeds another table"""
        self.calls: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.gone = 0
        """calls whose client left before the answer was whole"""
        self.running = 0
        self.most = 0
        """calls that ran at the same time, at most"""
        self.script: list[Fault | None] = []
        """one for each of the next calls"""
        self.always: Fault | None = None
        self.vocabulary = VOCABULARY
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._listener.close()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        routes = [Route(path, self._completions, methods=["POST"]) for path in self._served()]
        routes += [
            Route("/v1/models", self._models),
            Route("/props", self._props),
            Route("/openapi.json", self._openapi),
        ]
        if self.kind != "other":
            routes.append(Route("/tokenize", self._tokenize, methods=["POST"]))
        self._played = Played(WithTransport(Starlette(routes=routes)), listener)

    def stop(self) -> None:
        """Go away: connections are closed, and nobody listens."""
        self._played.stop()

    def __enter__(self) -> "FakeRemote":
        return self

    def __exit__(self, *_: object) -> None:
        if self._played.alive:
            self.stop()

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Bodies of the calls of one path so far."""
        return [body for route, body, _ in self.calls if route == path]

    def logprobs(self, prefix: Sequence[int]) -> np.ndarray:
        """Log-probabilities of the next token, temperature 1: (257,)."""
        logits = np.full(257, -30.0)
        draws = np.random.default_rng([self.salt, len(prefix), *prefix]).normal(size=len(SPOKEN))
        logits[list(SPOKEN)] = draws * 1.5
        return logits - math.log(np.exp(logits).sum())

    def _served(self) -> Sequence[str]:
        return {"sglang": COMPLETIONS[1:2], "llama.cpp": COMPLETIONS[2:]}.get(self.kind, COMPLETIONS[:1])

    async def _models(self, request: Request) -> Response:
        owner = {"llama.cpp": "llamacpp", "other": "somebody"}.get(self.kind, self.kind)
        card: dict[str, Any] = {"id": self.model, "object": "model", "owned_by": owner}
        if self.kind not in ("llama.cpp", "other"):
            card["max_model_len"] = self.room
        return await self._serve(request, {"object": "list", "data": [card]})

    async def _props(self, request: Request) -> Response:
        return await self._serve(request, {"default_generation_settings": {"n_ctx": self.room}})

    async def _openapi(self, request: Request) -> Response:
        paths = {"trimtab": ["/v1/score", "/v1/classify"], "vllm": ["/score", "/pooling"]}.get(self.kind, [])
        return await self._serve(request, {"paths": {path: {} for path in paths}})

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        text = body["content" if self.kind == "llama.cpp" else "prompt"]
        ids = self._encode(text)
        return await self._serve(request, {"tokens": ids, "count": len(ids), "max_model_len": self.room})

    def _encode(self, text: str) -> list[int]:
        return [i + self.shift if i < 200 else i for i in self.vocabulary.encode(text)]

    def _read_out(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode([abs(i - self.shift) if i < 200 else i for i in ids])

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        error = self._invalid(body)
        if error is not None:
            return await self._serve(request, {"error": {"message": error, "code": 400}}, status=400)
        answer = {"sglang": self._sglang, "llama.cpp": self._llamacpp}.get(self.kind, self._openai)(body)
        return await self._serve(request, answer, stream=bool(body.get("stream")))

    def _invalid(self, body: dict[str, Any]) -> str | None:
        if self.kind == "other" and body.keys() & {"top_k", "min_tokens", "cache_salt", "ignore_eos"}:
            return "unknown fields"
        if self.kind == "other" and not self.speaks_ids and "add_special_tokens" in body:
            return "unknown field add_special_tokens"
        if "random_stream" in body and not self.knows_streams and self.kind == "trimtab":
            return "unknown field random_stream"
        if self.kind == "vllm" and set(body.get("cache_salt", "")) & _VLLM_FORBIDS:
            return "cache_salt"
        if self.kind == "vllm" and body["max_tokens"] < 1 and not body.get("echo"):
            return "max_tokens must be at least 1"
        if self.kind == "other" and not self.speaks_ids and "return_token_ids" in body:
            return "unknown field return_token_ids"
        return None

    def _draw(self, prompt: Sequence[int], told: Mapping[str, Any], seed: int, most: int) -> Sampled:
        """Draw a continuation; `told` has OpenAI's names."""
        generator = np.random.default_rng(seed % 2**63)
        ids: list[int] = []
        raw = []
        for place in range(most):
            plain = self.logprobs([*prompt, *ids])
            scaled = plain.copy()
            for id_, bias in (told.get("logit_bias") or {}).items():
                scaled[int(id_)] += bias
            if place < told.get("min_tokens", 0) or told.get("ignore_eos"):
                scaled[EOS] = -np.inf
            temperature = told.get("temperature", 1.0)
            noise = generator.gumbel(size=257)
            scaled = scaled / temperature if temperature > 0 else scaled * 1e9
            if 0 < told.get("top_k", 0) < 257:
                scaled[scaled < np.sort(scaled)[-told["top_k"]]] = -np.inf
            ids.append(int(np.argmax(scaled + noise)))
            raw.append(scaled - np.logaddexp.reduce(scaled) if self.warped else plain)
            text = self.vocabulary.decode(ids)
            if ids[-1] == EOS:
                return Sampled(ids, raw, "stop", None)
            if ids[-1] in (told.get("stop_token_ids") or ()):
                return Sampled(ids, raw, "stop", ids[-1])
            if found := [stop for stop in told.get("stop") or () if stop in text]:
                return Sampled(ids, raw, "stop", found[0])
        return Sampled(ids, raw, "length", None)

    def _openai(self, body: dict[str, Any]) -> Any:
        prompt, n, most = body["prompt"], body.get("n", 1), body["max_tokens"]
        if isinstance(prompt, str):
            prompt = self._encode(prompt)
        seed = body.get("seed", 0) + 1000 * body.get("random_stream", 0)
        step = 1000 if "random_stream" in body else 1
        drawn = [self._draw(prompt, body, seed + step * number, most) for number in range(n)]
        choices = []
        for number, each in enumerate(drawn):
            text = self._read_out([*prompt, *each.ids] if body.get("echo") else each.ids)
            choice: dict[str, Any] = {"index": number, "text": text, "logprobs": None, "finish_reason": each.finish}
            if self.kind == "other" and isinstance(each.reason, str):
                choice["text"] = text[: text.index(each.reason)]
            choice["stop_reason"] = each.reason
            ids, raw = each.ids, each.raw
            if body.get("echo"):
                ids, raw = [*prompt, *ids], [*self._read(prompt), *raw]
            if body.get("logprobs") is not None:
                choice["logprobs"] = self._aligned(ids, raw, body["logprobs"], body.get("return_tokens_as_token_ids"))
            if body.get("return_token_ids"):
                choice |= {"token_ids": each.ids, "prompt_token_ids": prompt}
            if self.kind == "vllm" and body.get("prompt_logprobs") is not None:
                choice["prompt_logprobs"] = self._prompt_logprobs(prompt, body["prompt_logprobs"])
            choices.append(choice)
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": 3}}
        return {"id": "cmpl-1", "model": self.model, "choices": choices, "usage": usage}

    def _read(self, prompt: Sequence[int]) -> list[Any]:
        return [None, *(self.logprobs(prompt[:end]) for end in range(1, len(prompt)))]

    def _aligned(self, ids: Sequence[int], raw: Sequence[Any], count: int, as_ids: bool | None) -> dict[str, Any]:
        def name(id_: int) -> str:
            return (
                f"token_id:{id_}" if as_ids and (self.kind != "other" or self.speaks_ids) else VOCABULARY.decode([id_])
            )

        best = [None if each is None else np.argsort(-each)[:count].tolist() for each in raw]
        return {
            "tokens": [name(id_) for id_ in ids],
            "token_logprobs": [None if r is None else _told(r[id_]) for id_, r in zip(ids, raw, strict=True)],
            "top_logprobs": [
                None if top is None else {name(t): _told(r[t]) for t in (id_, *top)} if count else {}
                for id_, r, top in zip(ids, raw, best, strict=True)
            ],
            "text_offset": [0] * len(ids),
        }

    def _prompt_logprobs(self, prompt: Sequence[int], count: int) -> list[Any]:
        told: list[Any] = []
        for id_, raw in zip(prompt, self._read(prompt), strict=True):
            kept = [] if raw is None else [id_, *np.argsort(-raw)[:count].tolist()]
            entry = {str(t): {"logprob": _told(raw[t]), "rank": 1, "decoded_token": "?"} for t in kept}
            told.append(None if raw is None else entry)
        return told

    def _sglang(self, body: dict[str, Any]) -> Any:
        prompts, params = body["input_ids"], body["sampling_params"]
        if isinstance(params, dict):
            parts = [(prompts, params)] * params.get("n", 1)
        else:
            parts = list(zip(prompts, params, strict=True))
        answers = []
        for number, (prompt, each) in enumerate(parts):
            told = {**each, "min_tokens": each["min_new_tokens"], "top_k": max(each["top_k"], 0)}
            drawn = self._draw(prompt, told, each.get("sampling_seed", number), each["max_new_tokens"])
            matched = drawn.reason if drawn.reason is not None else EOS
            finish = {"type": drawn.finish} | ({"matched": matched} if drawn.finish == "stop" else {})
            meta: dict[str, Any] = {
                "finish_reason": finish, "completion_tokens": len(drawn.ids), "cached_tokens": 3,
                "prompt_tokens": len(prompt),
            }  # fmt: skip
            if body.get("return_logprob"):
                meta |= self._pairs("output", drawn.ids, drawn.raw, body["top_logprobs_num"])
                if body["logprob_start_len"] == 0:
                    meta |= self._pairs("input", prompt, self._read(prompt), body["top_logprobs_num"])
            answers.append({"text": self.vocabulary.decode(drawn.ids), "output_ids": drawn.ids, "meta_info": meta})
        return answers if len(answers) > 1 else answers[0]

    def _pairs(self, which: str, ids: Sequence[int], raw: Sequence[Any], count: int) -> dict[str, Any]:
        tops = [None if r is None else [[_told(r[t]), t, None] for t in np.argsort(-r)[:count].tolist()] for r in raw]
        entries = [[None if r is None else _told(r[id_]), id_, None] for id_, r in zip(ids, raw, strict=True)]
        return {f"{which}_token_logprobs": entries, f"{which}_top_logprobs": tops if count else []}

    def _llamacpp(self, body: dict[str, Any]) -> Any:
        told = {**body, "logit_bias": {str(id_): bias for id_, bias in body.get("logit_bias", ())}}
        drawn = self._draw(body["prompt"], told, body["seed"], body["n_predict"])
        kind = "limit" if drawn.finish == "length" else "eos" if drawn.reason is None else "word"
        answer: dict[str, Any] = {"content": self.vocabulary.decode(drawn.ids), "tokens": drawn.ids, "stop_type": kind}
        answer |= {"stopping_word": drawn.reason or "", "timings": {"cache_n": 3}}
        if body.get("n_probs"):
            shown = len(drawn.ids) - (len(drawn.reason) if kind == "word" else 0)
            answer["completion_probabilities"] = [
                {
                    "id": id_,
                    "logprob": _told(raw[id_]),
                    "top_logprobs": [
                        {"id": t, "logprob": _told(raw[t])} for t in np.argsort(-raw)[: body["n_probs"]].tolist()
                    ],
                }
                for id_, raw in list(zip(drawn.ids, drawn.raw, strict=True))[:shown]
            ]
        return answer

    async def _serve(self, request: Request, answer: Any, *, status: int = 200, stream: bool = False) -> Response:
        """The answer, or what a fault makes of it."""
        body = json.loads(await request.body() or b"{}")
        path = request.url.path
        self.calls.append((path, body, dict(request.headers)))
        fault = self.always
        if self.script and path in self.script_paths:
            fault = self.script.pop(0) or fault
        fault = fault if fault is not None and path in fault.only else Fault()
        return Faulty(self, fault, answer, fault.status or status, stream=stream and status == 200)

    @property
    def script_paths(self) -> tuple[str, ...]:
        """Paths whose calls take faults from the script."""
        return COMPLETIONS if not self.script or self.script[0] is None else self.script[0].only

    def chunks(self, answer: Any) -> list[Any]:
        """A whole answer as a stream of one token each, the continuations in turn."""
        if self.kind == "sglang":
            parts = answer if isinstance(answer, list) else [answer]
            told = []
            for end in range(1, max(len(part["output_ids"]) for part in parts) + 1):
                for number, part in enumerate(parts):
                    if end <= len(part["output_ids"]):
                        told.append({"index": number, **_cut(part, end)})
            return told
        told = []
        choices = answer["choices"]
        for place in range(max((len(choice.get("token_ids", ())) for choice in choices), default=0)):
            for choice in choices:
                if place < len(choice["token_ids"]):
                    told.append({"choices": [_one(choice, place)], "usage": None})
        for choice in choices:
            ending = {key: choice[key] for key in ("index", "finish_reason", "stop_reason")}
            told.append({"choices": [{**ending, "text": "", "logprobs": None}]})
        return told


def _told(value: float) -> float:
    return max(float(value), -9999.0)


def _one(choice: dict[str, Any], place: int) -> dict[str, Any]:
    """The chunk of one token."""
    logprobs = choice["logprobs"]
    if logprobs is not None:
        logprobs = {key: values[place : place + 1] for key, values in logprobs.items()}
    ids = choice["token_ids"][place : place + 1]
    return {"index": choice["index"], "text": "", "logprobs": logprobs, "finish_reason": None, "token_ids": ids}


def _cut(part: dict[str, Any], end: int) -> dict[str, Any]:
    """What SGLang tells after `end` tokens: all of them so far."""
    ids, meta = part["output_ids"], dict(part["meta_info"])
    for key in ("output_token_logprobs", "output_top_logprobs"):
        if key in meta:
            meta[key] = meta[key][:end]
    meta["completion_tokens"] = end
    if end < len(ids):
        meta["finish_reason"] = None
    return {"output_ids": ids[:end], "meta_info": meta}
