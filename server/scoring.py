"""POST /v1/score and /v1/classify: what a reward guide says of answers that are given."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.rewards import Judgement
from trimtab.server.body import JsonRoute
from trimtab.server.errors import ApiError
from trimtab.server.nearest import hint
from trimtab.server.schema.responses import PromptTokensDetails
from trimtab.server.schema.scoring import (
    AnswersRequest,
    Classified,
    ClassifyRequest,
    Scored,
    ScoreRequest,
    ScoringList,
    ScoringUsage,
)
from trimtab.server.service import Service


def routes(service: Service) -> APIRouter:
    """The endpoints of the rewards."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/score", response_model=ScoringList)
    async def score(body: ScoreRequest, request: Request) -> Response:
        """Score answers with a reward guide."""
        judged = await _judge(service, body, request)
        return _listed(service, "score", body, judged, [Scored(index=i, score=j.score) for i, j in enumerate(judged)])

    @router.post("/v1/classify", response_model=ScoringList)
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        """Tell the labels that a reward guide gives to answers."""
        judged = await _judge(service, body, request)
        labels = service.llm.rewards[body.model].labels
        return _listed(service, "classify", body, judged, [_label(i, labels, j) for i, j in enumerate(judged)])

    return router


async def _judge(service: Service, body: AnswersRequest, request: Request) -> list[Judgement]:
    _check_guide(service, body.model)
    answers = body.answers(service.settings.limits.max_pairs)
    return await service.bridge.result(service.llm.judge(body.model, answers), request.receive)


def _check_guide(service: Service, name: str) -> None:
    """Raise a 404 unless `name` is a guide, and InvalidRequest unless it scores answers."""
    llm = service.llm
    if name in llm.rewards:
        return
    if name not in llm.guides and name != llm.model_name:
        message = f"the guide {name!r} does not exist; {hint(name, llm.rewards)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    role = f"a guide of role {llm.guides[name].role}" if name in llm.guides else "the base model"
    raise InvalidRequest(f"{name!r} is {role} and scores no answers; {hint(name, llm.rewards)}", param="model")


def _label(index: int, labels: Sequence[str], judgement: Judgement) -> Classified:
    probs = judgement.probabilities
    return Classified(index=index, label=labels[probs.index(max(probs))], probs=probs, num_classes=len(probs))


def _listed(
    service: Service,
    prefix: str,
    body: AnswersRequest,
    judged: Sequence[Judgement],
    data: Sequence[Scored] | Sequence[Classified],
) -> Response:
    tokens, cached = sum(each.tokens for each in judged), sum(each.cached for each in judged)
    usage = ScoringUsage(
        prompt_tokens=tokens, total_tokens=tokens, prompt_tokens_details=PromptTokensDetails(cached_tokens=cached)
    )
    head = service.head(prefix, "list") | {"model": body.model}
    return Response(ScoringList(**head, data=data, usage=usage).model_dump_json(), media_type="application/json")
