"""A guide as a deployment: one reward model that many replicas ask, their calls answered in batches."""

import asyncio
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray import serve
from trimtab.cluster.placing import placed
from trimtab.cluster.protocol import SKEW, GuideCall, mismatch

if TYPE_CHECKING:
    from trimtab.cluster.judge import Judge
    from trimtab.engine.rewards import Judgement, Pair

FAILURES = 3
"""calls in a row that may fail by no fault of their own; then the guide counts as broken"""

Answer = tuple[int, dict[str, Any]]
"""status and body, as over HTTP"""


class Guide:
    """Answers bodies of /v1/score and /v1/classify as the server does, for one reward."""

    def __init__(
        self, settings: Mapping[str, Any], name: str, expected: str, fraction: float, batch: int, wait: float
    ) -> None:
        """`expected` is the digest of its configuration, `fraction` the share of a GPU that it may use."""
        from trimtab.cluster.judge import load_judge
        from trimtab.server.settings import Settings

        own = Settings.model_validate(placed(settings, fraction))
        self._name = name
        self._digest = expected
        self._limit = own.server.limits.max_pairs
        self._judge: Judge = load_judge(name, own.engine)
        self._lock = threading.Lock()
        self._failed = 0
        self._judged.set_max_batch_size(batch)  # type: ignore[attr-defined]
        self._judged.set_batch_wait_timeout_s(wait)  # type: ignore[attr-defined]

    def check_health(self) -> None:
        """Raise once the guide cannot answer any more; Serve then starts another replica in its place."""
        if self._failed >= FAILURES:
            raise RuntimeError(f"{self._failed} calls in a row have failed: see the log")
        self._judge.check()

    async def post(self, call: GuideCall) -> Answer:
        """Answer one call."""
        from trimtab.engine.errors import TrimtabError
        from trimtab.server.errors import ApiError, api_error

        reason = mismatch(call["protocol"])
        if reason is None and call["digest"] != self._digest:
            reason = "the caller expects another configuration of this guide: an update is under way"
        if reason is not None:
            return 503, ApiError(503, reason, code=SKEW).body
        try:
            pairs = self._pairs(call)
            judged: list[Judgement] | Exception = await self._judged(pairs)
            if isinstance(judged, Exception):
                raise judged
        except (TrimtabError, ValueError) as error:
            told = api_error(error)
            return told.status_code, told.body
        return 200, self._told(call["path"], judged)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def _judged(self, asked: "list[list[Pair]]") -> "list[list[Judgement] | Exception]":
        """Judge the pairs of all calls of a batch at once."""
        return await asyncio.to_thread(self._judge_calls, asked)

    def _judge_calls(self, asked: "Sequence[list[Pair]]") -> "list[list[Judgement] | Exception]":
        """What each call gets; where they fail together each is tried alone, so that none pays for another's pairs.

        What is not the fault of a call is raised, and counted until something is judged again: after an error of CUDA
        nothing in this process ever is.
        """
        from trimtab.engine.errors import TrimtabError

        try:
            with self._lock:
                found = iter(self._counted([pair for pairs in asked for pair in pairs]))
        except (TrimtabError, ValueError) as error:
            if len(asked) == 1:
                return [error]
            return [each for pairs in asked for each in self._judge_calls([pairs])]
        return [[next(found) for _ in pairs] for pairs in asked]

    def _counted(self, pairs: "list[Pair]") -> "list[Judgement]":
        from trimtab.engine.errors import TrimtabError

        try:
            judged = self._judge.judge(pairs)
        except (TrimtabError, ValueError):
            raise
        except Exception:
            self._failed += 1
            raise
        self._failed = 0
        return judged

    def _pairs(self, call: GuideCall) -> "list[Pair]":
        from trimtab.engine.errors import InvalidRequest
        from trimtab.server.schema.scoring import AnswersRequest, ClassifyRequest, ScoreRequest

        kinds: dict[str, type[AnswersRequest]] = {"/v1/score": ScoreRequest, "/v1/classify": ClassifyRequest}
        if call["path"] not in kinds:
            raise InvalidRequest(f"a guide answers {' and '.join(kinds)}, not {call['path']}")
        return kinds[call["path"]].model_validate(call["body"]).answers(self._limit)

    def _told(self, path: str, judged: "Sequence[Judgement]") -> dict[str, Any]:
        if path == "/v1/score":
            data = [{"index": i, "object": "score", "score": each.score} for i, each in enumerate(judged)]
        else:
            data = [_label(i, self._judge.labels, each.probabilities) for i, each in enumerate(judged)]
        tokens = sum(each.tokens for each in judged)
        details = {"cached_tokens": sum(each.cached for each in judged)}
        return {
            "id": f"{path.removeprefix('/v1/')}-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": self._name,
            "system_fingerprint": self._digest,
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": details},
        }

    def __del__(self) -> None:
        """Stop its engine, if it has one."""
        if hasattr(self, "_judge"):
            self._judge.close()


def _label(index: int, labels: Sequence[str], probs: list[float]) -> dict[str, Any]:
    return {"index": index, "label": labels[probs.index(max(probs))], "probs": probs, "num_classes": len(probs)}
