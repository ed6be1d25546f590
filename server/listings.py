"""What this server offers: models, strategies, guides, and its tokenizer."""

from typing import Any

from fastapi import APIRouter

from trimtab.server.body import JsonRoute
from trimtab.server.guides import describe
from trimtab.server.schema.responses import GuideList, ModelCard, ModelList
from trimtab.server.schema.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from trimtab.server.service import Service
from trimtab.server.strategies import budget_schema, described, described_rules


def routes(service: Service) -> APIRouter:
    """Models, strategies, guides, tokenize and detokenize."""
    router = APIRouter(route_class=JsonRoute)
    llm = service.llm
    card = ModelCard(id=llm.model_name, created=service.created, max_model_len=llm.context_length)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The models that requests may name."""
        return ModelList(data=[card])

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> ModelCard:
        """One model."""
        service.check_model(model)
        return card

    @router.get("/v1/strategies")
    async def list_strategies() -> dict[str, Any]:
        """Every decoding strategy and rule of selection with its JSON Schema, budgets, and the rewards to name."""
        return {
            "object": "list",
            "data": described(),
            "rules": described_rules(),
            "budget": budget_schema(),
            "rewards": sorted(llm.rewards),
        }

    @router.get("/v1/guides")
    async def list_guides() -> GuideList:
        """Every guide: its role and model, and what it can be used for."""
        return GuideList(data=describe(llm))

    @router.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """Token ids of a text or of a conversation under the chat template."""
        if body.model is not None:
            service.check_model(body.model)
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

    @router.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        """The text of token ids."""
        if body.model is not None:
            service.check_model(body.model)
        body.check_ids(llm.vocabulary.size)
        return DetokenizeResponse(prompt=llm.vocabulary.decode(body.tokens, skip_special_tokens=False))

    return router
