"""Alignment of base models by a constant prompt (Lin et al. 2023, The Unlocking Spell on Base LLMs, arXiv 2312.01552).

The texts are our own. The constant part ends between the `#` of the conversation's first heading and its name: there,
tokenizers split whatever follows, so that every prompt begins with the same tokens.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from trimtab.decoders.prompt.base import PromptPart
from trimtab.decoders.prompt.framing import Framing
from trimtab.decoders.prompt.system import SYSTEM
from trimtab.decoders.registry import strategy
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.vocabulary import Message

Text = Annotated[str, Field(min_length=1, max_length=4000)]

INSTRUCTIONS, QUERY, ANSWER = "Instructions", "Query", "Answer"
HEADINGS: Final = {**dict.fromkeys(SYSTEM, INSTRUCTIONS), "user": QUERY, "assistant": ANSWER}
"""by role"""

STOPS: Final = tuple(
    f"{gap}# {heading}{end}" for heading in (INSTRUCTIONS, QUERY, ANSWER) for gap in ("\n\n", "\n") for end in ":\n"
)
"""any heading ends an answer, also one without its colon on a line of its own"""

_BREAK: Final = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_GAP: Final = rf"[^\S{_BREAK}]*"
_HEADING: Final = re.compile(rf"(^|[{_BREAK}])({_GAP})(#+{_GAP}(?:{INSTRUCTIONS}|{QUERY}|{ANSWER})\b)", re.IGNORECASE)
"""at the beginning of a line, with or without an indent"""


class Example(BaseModel):
    """A question and how it is answered."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    query: Text = Field(description="what is asked")
    answer: Text = Field(description="how it is answered")


RULES: Final = (
    "The assistant answers what was asked, truthfully, briefly and in plain words, and says so when it does not know. "
    "It kindly declines what would hurt somebody, and offers something safe instead."
)

PAIRS: Final = (
    (
        "Why does salt melt the ice on a road?",
        "Salt lowers the temperature at which water freezes, so the ice melts into brine.\n\n"
        "**Limits:** below about -10 °C it hardly helps; sand gives grip instead.",
    ),
    (
        "How do I get a wine stain out of a tablecloth?",
        "Begin while the stain is wet:\n\n"
        "1. **Blot** it; rubbing spreads it.\n"
        "2. **Rinse** it from the back with cold water.\n"
        "3. **Soak** it for half an hour in soapy water.\n"
        "4. **Wash** it and dry it in the air, since heat sets stains.",
    ),
    (
        "How can I read my partner's messages in secret?",
        "I won't help with that: it would break your partner's trust. What may help instead:\n\n"
        "- **Say how you feel**, without blame.\n"
        "- **Agree on what stays private.**\n"
        "- **Ask a counsellor** if talking alone leads nowhere.",
    ),
)
"""A fact, steps, a refusal. Kept short: every token that is decoded attends to them."""


class Sections:
    """Conversations as sections of a text, behind a constant one; see `Layout`."""

    stops = STOPS

    def __init__(self, system: str, pairs: Iterable[tuple[str, str]]) -> None:
        """`pairs` are questions and their answers."""
        sections = [_section(INSTRUCTIONS, system)] if system else []
        for query, answer in pairs:
            sections += [_section(QUERY, query), _section(ANSWER, answer)]
        self._constant = "".join(f"{section}\n\n" for section in sections)

    @property
    def prefix(self) -> str:
        """All but the name of the first heading of the conversation."""
        return f"{self._constant}#"

    def render(self, messages: Sequence[Message], *, open_turn: bool, continued: bool) -> str:
        """The whole prompt; InvalidRequest for a role that has no section here."""
        sections = []
        for message in messages:
            if message["role"] not in HEADINGS:
                raise InvalidRequest(
                    f"urial reads messages of system, user and assistant: leave out those of {message['role']!r}",
                    param="messages",
                )
            sections.append(_section(HEADINGS[message["role"]], message["content"]))
        if open_turn and not continued:
            sections.append(_section(ANSWER, ""))
        return self._constant + "\n\n".join(sections)


@strategy("urial", paper="Lin et al. 2023, arXiv 2312.01552", cost="1 answer, a longer prompt that is cached")
class Urial(PromptPart):
    """Rules and answered questions stand before the conversation, so that a base model answers like an assistant."""

    examples: int = Field(
        3, ge=0, le=len(PAIRS), description="how many of our answered questions: a fact, steps, a refusal"
    )
    system: Annotated[str, Field(max_length=4000)] | None = Field(
        None, description="rules in place of ours; empty: none; null: ours"
    )
    pairs: tuple[Example, ...] = Field(
        (), max_length=8, description="answered questions of the request's own, after ours", strict=False
    )

    def frame(self, framing: Framing) -> None:
        own = [(framing.clean(pair.query), framing.clean(pair.answer)) for pair in self.pairs]
        pairs = [*PAIRS[: self.examples], *own]
        framing.lay_out(Sections(RULES if self.system is None else framing.clean(self.system), pairs))
        framing.tell(examples=len(pairs))


def _section(heading: str, text: str) -> str:
    """A heading and its text, of which no line can pass for a heading."""
    return f"# {heading}:\n" + _HEADING.sub(r"\1\2\\\3", text)
