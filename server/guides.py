"""What each guide is and can do, as people are told."""

from trimtab.engine.guides.base import Guide, HeadGuide, LanguageGuide, ScorerGuide
from trimtab.engine.guides.config import GuideConfig
from trimtab.engine.rewards.program import Program
from trimtab.llm import LLM, short_name
from trimtab.server.schema.responses import GuideCard, VocabularyRelation


def describe(llm: LLM) -> list[GuideCard]:
    """Every guide of the configuration, in its order."""
    return [_card(guide, llm.settings.guides[name], name in llm.rewards) for name, guide in llm.guides.items()]


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


def _card(guide: Guide, config: GuideConfig, scores_answers: bool) -> GuideCard:
    model = guide.model if isinstance(guide, LanguageGuide | ScorerGuide) else None
    return GuideCard(
        name=guide.name,
        role=guide.role,
        model=config.kind if isinstance(config, Program) else short_name(config.model),
        vocabulary=vocabulary_relation(guide),
        context_length=model and model.context_length,
        chat_template=model and bool(model.vocabulary.tokenizer.chat_template),
        scores_candidates=scores_candidates(guide),
        scores_answers=scores_answers,
    )
