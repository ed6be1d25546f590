"""POST /v1/score and /v1/classify: what a reward guide says of answers that are given."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.rewards import Judgement
from trimtab.server.callers import Caller, GuardedRoute
from trimtab.server.errors import ApiError
from trimtab.server.logs import RequestRecord
from trimtab.server.nearest import hint
from trimtab.server.openapi import refusals
from trimtab.server.schema.responses import PromptTokensDetails
from trimtab.server.schema.scoring import (
    AnswersRequest,
    Classified,
    ClassifyList,
    ClassifyRequest,
    Scored,
    ScoreList,
    ScoreRequest,
    ScoringUsage,
)
from trimtab.server.service import Service

if TYPE_CHECKING:
    from trimtab.llm import LLM


def routes(service: Service) -> APIRouter:
    """The endpoints of the rewards."""
    router = APIRouter(route_class=GuardedRoute)

    @router.post("/v1/score", response_model=ScoreList, responses=refusals(403, 404))
    async def score(body: ScoreRequest, request: Request) -> Response:
        """Score answers with a reward guide."""
        _, judged = await _judge(service, "score", body, request)
        scores = [Scored(index=i, score=j.score) for i, j in enumerate(judged)]
        return _sent(ScoreList(**service.head("score", "list", body.model), data=scores, usage=_usage(judged)))

    @router.post("/v1/classify", response_model=ClassifyList, responses=refusals(403, 404))
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        """Tell the labels that a reward guide gives to answers."""
        llm, judged = await _judge(service, "classify", body, request)
        labels = llm.rewards[body.model].labels
        classes = [_label(i, labels, j) for i, j in enumerate(judged)]
        return _sent(ClassifyList(**service.head("classify", "list", body.model), data=classes, usage=_usage(judged)))

    return router


async def _judge(
    service: Service, endpoint: Literal["score", "classify"], body: AnswersRequest, request: Request
) -> tuple["LLM", list[Judgement]]:
    """The model whose guide it is, and what the guide says."""
    caller: Caller = request.state.caller
    llm = _owner(service, body.model)
    if caller.policy is not None:
        caller.policy.admit(endpoint)
        caller.policy.admit_guide(body.model)
    answers = body.answers(service.settings.limits.max_pairs)
    priority = 0 if caller.policy is None else max(0, caller.policy.limits.priority)
    lease = service.quotas.enter(caller, 1)
    record: RequestRecord = request.scope["trimtab.record"]
    record.model = body.model
    try:
        rating = llm.rate(body.model, answers, priority=priority)
    except BaseException:
        lease.abandon()
        raise
    try:
        return llm, await service.bridge.result(rating.future, request.receive)
    finally:
        record.model_tokens = rating.tokens
        lease.end(rating.tokens)


def _owner(service: Service, name: str) -> "LLM":
    """The model whose guide scores answers under `name`; raises a 404 or InvalidRequest."""
    llms = service.llms.values()
    rewards = [reward for llm in llms for reward in llm.rewards]
    for llm in llms:
        if name in llm.rewards:
            return llm
    owners = [llm for llm in llms if name in llm.guides]
    if not owners and name not in service.llms:
        message = f"the guide {name!r} does not exist; {hint(name, rewards)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    role = f"a guide of role {owners[0].guides[name].role}" if owners else "the base model"
    raise InvalidRequest(f"{name!r} is {role} and scores no answers; {hint(name, rewards)}", param="model")


def _label(index: int, labels: Sequence[str], judgement: Judgement) -> Classified:
    probs = judgement.probabilities
    return Classified(index=index, label=labels[probs.index(max(probs))], probs=probs, num_classes=len(probs))


def _usage(judged: Sequence[Judgement]) -> ScoringUsage:
    tokens, cached = sum(each.tokens for each in judged), sum(each.cached for each in judged)
    details = PromptTokensDetails(cached_tokens=cached)
    return ScoringUsage(prompt_tokens=tokens, total_tokens=tokens, prompt_tokens_details=details)


def _sent(answer: ScoreList | ClassifyList) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
