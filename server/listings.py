"""What this server offers: models, strategies, guides, and its tokenizers."""

from typing import Any

from fastapi import APIRouter, Request

from trimtab.server.callers import GuardedRoute
from trimtab.server.guides import describe
from trimtab.server.openapi import refusals
from trimtab.server.schema.responses import GuideList, ModelCard, ModelList, StrategyList
from trimtab.server.schema.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from trimtab.server.service import Service, Target
from trimtab.server.strategies import budget_schema, described, described_rules


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

    @router.get("/v1/strategies", response_model=StrategyList)
    async def list_strategies() -> dict[str, Any]:
        """Every decoding strategy and rule of selection with its JSON Schema, budgets, and the rewards to name."""
        return {
            "object": "list",
            "data": described(),
            "rules": described_rules(),
            "budget": budget_schema(),
            "rewards": sorted({reward for llm in service.llms.values() for reward in llm.rewards}),
        }

    @router.get("/v1/guides")
    async def list_guides() -> GuideList:
        """Every guide: its role and model, and what it can be used for."""
        return GuideList(data=[card for llm in service.llms.values() for card in describe(llm)])

    @router.post("/tokenize", responses=refusals(403, 404))
    def tokenize(body: TokenizeRequest, request: Request) -> TokenizeResponse:
        """Token ids of a text or of a conversation under the chat template."""
        llm = service.call(request, "tokenize", body.model, body.given).llm
        if body.messages is not None:
            tokens = llm.vocabulary.chat(
                [message.to_message() for message in body.messages],
                add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
                continue_final_message=body.continue_final_message,
                template_kwargs=body.chat_template_kwargs,
            )
        else:
            tokens = llm.vocabulary.encode(body.prompt or "", body.add_special_tokens)
        strings = [llm.vocabulary.token_bytes(t).decode("utf-8", "replace") for t in tokens]
        return TokenizeResponse(
            count=len(tokens),
            max_model_len=llm.context_length,
            tokens=tokens,
            token_strs=strings if body.return_token_strs else None,
        )

    @router.post("/detokenize", responses=refusals(403, 404))
    def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizeResponse:
        """The text of token ids."""
        llm = service.call(request, "tokenize", body.model, body.given).llm
        body.check_ids(llm.vocabulary.size)
        return DetokenizeResponse(prompt=llm.vocabulary.decode(body.tokens, skip_special_tokens=False))

    return router
