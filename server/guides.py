"""What each guide is and can do, as people are told."""

from dataclasses import asdict

from trimtab.engine.guides.base import EmbeddingGuide, Guide, HeadGuide, LanguageGuide, ScorerGuide
from trimtab.engine.guides.card import Card
from trimtab.engine.guides.config import GuideConfig, RemoteRewardConfig
from trimtab.engine.guides.loaded import Guides
from trimtab.engine.rewards.contract import Contract
from trimtab.engine.rewards.program import Program
from trimtab.engine.sources import short_name
from trimtab.llm import LLM
from trimtab.server.schema.responses import (
    ContractFinding,
    GuideCard,
    GuideContract,
    GuideOrigin,
    VocabularyRelation,
)


def describe(llm: LLM) -> list[GuideCard]:
    """Every guide of the configuration, in its order."""
    loaded = llm.loaded
    return [_card(loaded, guide) for guide in loaded.by_name.values()]


def vocabulary_relation(guide: Guide) -> VocabularyRelation | None:
    """How a guide's tokens relate to the base's; None for guides that read no tokens of their own."""
    if not isinstance(guide, LanguageGuide | ScorerGuide):
        return None
    if guide.translation is None:
        return "text only"
    return "same" if guide.translation.identity else "translated"


def scores_candidates(guide: Guide) -> bool:
    """Whether a guide gives values to single candidates for the next token."""
    if isinstance(guide, HeadGuide):
        return guide.head.width > 1
    return isinstance(guide, ScorerGuide) and guide.translation is not None


def _card(loaded: Guides, guide: Guide) -> GuideCard:
    config = loaded.configs[guide.name]
    reader = guide if isinstance(guide, LanguageGuide | ScorerGuide) else None
    return GuideCard(
        name=guide.name,
        role=guide.role,
        model=_model(config),
        vocabulary=vocabulary_relation(guide),
        context_length=_context_length(guide),
        chat_template=reader and bool(reader.vocabulary.tokenizer.chat_template),
        scores_candidates=scores_candidates(guide),
        scores_answers=guide.name in loaded.rewards,
        attributes=guide.attributes if isinstance(guide, LanguageGuide) else None,
        contract=_contract(loaded.contracts.get(guide.name)),
        card=_origin(loaded.cards.get(guide.name)),
    )


def _model(config: GuideConfig) -> str:
    """What a guide runs; of one on another server its name there, since the address is no caller's business."""
    if isinstance(config, Program):
        return config.kind
    if isinstance(config, RemoteRewardConfig):
        return "remote" if config.guide is None else short_name(config.guide)
    return short_name(config.model)


def _context_length(guide: Guide) -> int | None:
    """Tokens that a guide reads at most; None for one that reads along with the base."""
    if isinstance(guide, EmbeddingGuide):
        return guide.encoder.max_tokens
    return guide.model.context_length if isinstance(guide, LanguageGuide | ScorerGuide) else None


def _contract(contract: Contract | None) -> GuideContract | None:
    if contract is None:
        return None
    return GuideContract(ok=contract.ok, findings=[ContractFinding(**asdict(each)) for each in contract.findings])


def _origin(card: Card | None) -> GuideOrigin | None:
    if card is None:
        return None
    return GuideOrigin.model_validate(card.model_dump(include=set(GuideOrigin.model_fields)))
