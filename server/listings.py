"""What this server offers: models, strategies, guides, and its tokenizers."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from trimtab.engine.machine import machine, memory
from trimtab.engine.sources import short_name
from trimtab.server.auto import number_format
from trimtab.server.callers import GuardedRoute
from trimtab.server.guides import describe
from trimtab.server.openapi import refusals
from trimtab.server.schema.responses import GuideList, MachineReport, ModelCard, ModelList, ServedModel, StrategyList
from trimtab.server.schema.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from trimtab.server.service import Service, Target
from trimtab.server.strategies import budget_schema, described_rules, listed
from trimtab.server.version import installed_version

if TYPE_CHECKING:
    from trimtab.llm import LLM


def model_card(service: Service, target: Target) -> ModelCard:
    """What is told of a model id."""
    preset = target.preset
    return ModelCard(
        id=target.id,
        created=service.created,
        max_model_len=target.llm.context_length,
        parent=None if preset is None else target.llm.model_name,
        description=(preset.description or None) if preset is not None else None,
    )


def routes(service: Service) -> APIRouter:
    """Models, strategies, guides, tokenize and detokenize."""
    router = APIRouter(route_class=GuardedRoute)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The models that requests may name: each base model, and each of its presets."""
        return ModelList(data=[model_card(service, target) for target in service.targets.values()])

    @router.get("/v1/models/{model:path}", responses=refusals(404))
    async def model(model: str) -> ModelCard:
        """One model."""
        return model_card(service, service.target(model))

    @router.get("/v1/machine")
    async def report_machine() -> MachineReport:
        """What this server runs on and how, which latencies are to be read with."""
        served = [
            ServedModel(
                id=name,
                source=short_name(llm.settings.model),
                dtype=number_format(llm),
                device=str(llm.models["base"].runner.device),
                max_model_len=llm.context_length,
            )
            for name, llm in service.llms.items()
        ]
        return MachineReport(version=installed_version(), hardware=machine(), memory_mib=memory(), models=served)

    @router.get("/v1/strategies", response_model=StrategyList)
    async def list_strategies() -> dict[str, Any]:
        """Every decoding strategy and rule of selection with its JSON Schema, budgets, and the rewards to name."""
        frontier = service.rules.frontier
        return {
            "object": "list",
            "data": listed(available=frontier is not None and frontier.model in service.llms),
            "rules": described_rules(),
            "budget": budget_schema(),
            "rewards": sorted({reward for llm in service.llms.values() for reward in llm.rewards}),
        }

    @router.get("/v1/guides")
    async def list_guides() -> GuideList:
        """Every guide: its role and model, and what it can be used for."""
        return GuideList(data=[card for llm in service.llms.values() for card in describe(llm)])

    @router.post("/tokenize", responses=refusals(403, 404))
    async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeResponse:
        """Token ids of a text or of a conversation under the chat template."""
        call = service.call(request, "tokenize", body.model, body.given)
        with service.quotas.held(call.caller):
            return await run_in_threadpool(_tokenized, call.llm, body)

    @router.post("/detokenize", responses=refusals(403, 404))
    async def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizeResponse:
        """The text of token ids."""
        call = service.call(request, "tokenize", body.model, body.given)
        vocabulary = call.llm.vocabulary
        body.check_ids(vocabulary.size)
        with service.quotas.held(call.caller):
            text = await run_in_threadpool(vocabulary.decode, body.tokens, skip_special_tokens=False)
        return DetokenizeResponse(prompt=text)

    return router


def _tokenized(llm: "LLM", body: TokenizeRequest) -> TokenizeResponse:
    vocabulary = llm.vocabulary
    if body.messages is not None:
        tokens = vocabulary.chat(
            [message.to_message() for message in body.messages],
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
            template_kwargs=body.chat_template_kwargs,
        )
    else:
        tokens = vocabulary.encode(body.prompt or "", body.add_special_tokens)
    strings = [vocabulary.token_bytes(t).decode("utf-8", "replace") for t in tokens]
    return TokenizeResponse(
        count=len(tokens),
        max_model_len=llm.context_length,
        tokens=tokens,
        token_strs=strings if body.return_token_strs else None,
    )
