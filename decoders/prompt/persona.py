"""Personas: a preference as words of the system message.

Attributes and how much of each is wanted become sentences (Janus, Lee et al. 2024, arXiv 2405.17977), or scores under
control tokens, for models that were trained to read them (Rewards-in-Context, Yang et al. 2024, arXiv 2402.10207).
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from trimtab.decoders.attributes import MAX_ATTRIBUTES, Level
from trimtab.decoders.preference import Resolved, Text
from trimtab.decoders.prompt.base import PromptPart
from trimtab.decoders.prompt.framing import Framing
from trimtab.decoders.registry import strategy

SCORE: Final = "<{attribute}> {score}"
"""of one attribute, where a request gives no template"""


@strategy("persona", paper="Lee et al. 2024, arXiv 2405.17977", cost="1 answer, a longer prompt")
class Persona(PromptPart):
    """The system message says what the person who asks would like."""

    attributes: dict[str, Level] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ATTRIBUTES,
        description="weight of each attribute, -1 (its opposite) to 1; absent: as the request's `preference` has it",
    )
    text: Text | None = Field(None, description="the preference in words, said as it is")
    form: Literal["sentences", "scores"] = Field(
        "sentences", description="how attributes are put: a sentence each, or control tokens with scores"
    )
    template: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description=f"scores: of one attribute, with {{attribute}} and {{score}} in it; null: {SCORE}"
    )

    @classmethod
    def preferred(cls, given: dict[str, Any], preference: Resolved) -> dict[str, Any]:
        if given.get("attributes") is not None or given.get("text") is not None:
            return given
        if preference.text is not None:
            return {**given, "text": preference.text}
        return {**given, "attributes": dict(preference.weights)}

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        if self.attributes is None and self.text is None:
            raise ValueError("give attributes, text or both, or a `preference` to the request")
        if self.template is not None and (self.form != "scores" or "{score}" not in self.template):
            raise ValueError("a template is for the form scores, and holds {score}")
        return self

    def frame(self, framing: Framing) -> None:
        stated = self._scores(framing) if self.form == "scores" else self._sentences(framing)
        text = framing.clean("\n".join(filter(None, (stated, self.text))))
        framing.tell(text=text)
        if text:
            framing.say(text)

    def _sentences(self, framing: Framing) -> str:
        """What is wanted most comes last, where it is read last."""
        levels = sorted((self.attributes or {}).items(), key=lambda each: abs(each[1]))
        phrases = [framing.attribute(name, "attributes").phrase(level) for name, level in levels]
        return " ".join(f"Give an answer that is {phrase}." for phrase in phrases if phrase)

    def _scores(self, framing: Framing) -> str:
        template, told = self.template or SCORE, []
        for name, level in (self.attributes or {}).items():
            framing.attribute(name, "attributes")
            told.append(template.replace("{attribute}", name).replace("{score}", f"{level:.2f}"))
        return " ".join(told)
