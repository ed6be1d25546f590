"""The part of `trimtab doctor` that looks at guides, once they are loaded."""

from collections.abc import Iterator

from trimtab.llm import LLM
from trimtab.server.doctor import Check
from trimtab.server.guides import describe
from trimtab.server.schema.responses import GuideCard


def guide_checks(llm: LLM) -> Iterator[Check]:
    """What each guide is, and for each reward model the findings of its contract."""
    for card in describe(llm):
        yield Check(f"guide {card.name}", True, _told(card))
        for each in card.contract.findings if card.contract else ():
            yield Check(f"{each.name} of {card.name}", each.ok, each.finding, each.fix)


def _told(card: GuideCard) -> str:
    parts = [f"{card.role} {card.model}"]
    if card.vocabulary is not None:
        parts.append(f"vocabulary {card.vocabulary}")
    if card.context_length is not None:
        parts.append(f"context of {card.context_length} tokens")
    if card.chat_template is not None:
        parts.append("chat template" if card.chat_template else "no chat template")
    if card.role != "program" and card.scores_answers and not card.scores_candidates:
        parts.append("scores whole answers only")
    if card.card is not None:
        parts.append(f"trained on {card.card.data} ({card.card.licence})")
    return ", ".join(parts)
