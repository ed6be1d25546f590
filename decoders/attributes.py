"""Named attributes of answers, which preferences weigh: what each is called at its ends, and what measures it."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from trimtab.decoders.rewards import Expression
from trimtab.engine.guides.folders import DEMO, shipped_guides

MAX_ATTRIBUTES: Final = 16
"""of one preference"""

Level = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]
"""how much of an attribute is wanted: 1 all of it, -1 its opposite, 0 has no say"""
Wording = Annotated[str, Field(min_length=1, max_length=500)]

_DEGREES: Final = ("", "slightly ", "", "very ", "extremely ")
"""before an adjective, for the quarters 1 to 4 of a weight; quarter 0 says nothing"""


class Attribute(BaseModel):
    """One thing that answers have more or less of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Wording = Field(description="adjective of answers with as little of it as can be, as in 'an answer that is X'")
    high: Wording = Field(description="adjective of answers with as much of it as can be")
    reward: Expression | None = Field(
        None, description="what measures it, in units of about one standard deviation over answers to a prompt"
    )
    arm: str | None = Field(None, description="language-model guide that writes with more of it")
    description: str = Field("", description="for people")

    def phrase(self, weight: float) -> str | None:
        """What is wanted of an answer by a weight in [-1, 1], to the nearest quarter, halves up; None: nothing."""
        quarter = int(4 * abs(weight) + 0.5)
        return f"{_DEGREES[quarter]}{self.high if weight > 0 else self.low}" if quarter else None


def default_attributes(model: str) -> dict[str, Attribute]:
    """Return the attributes of a server that configures none.

    Those of the demo model are measured by the guides that come with it, and all others by what every server has
    (`default_guides`), or by nothing: they are words for a persona.
    """
    shipped = shipped_guides() if model == DEMO else {}
    measured = {
        "positivity": Attribute(
            low="gloomy",
            high="cheerful",
            reward=Expression(guide="positivity", weight=2.5) if "positivity" in shipped else None,
            arm="positivity-arm" if "positivity-arm" in shipped else None,
            description="whether it sees the good in things",
        ),
        "brevity": Attribute(
            low="long",
            high="short",
            reward=Expression(guide="brevity", weight=0.1),
            description="how few words it needs",
        ),
        "length": Attribute(
            low="short",
            high="long",
            reward=Expression(guide="length", weight=0.1),
            description="how many words it has",
        ),
        "praise": Attribute(
            low="full of blame",
            high="full of praise",
            reward=Expression.of("lexicon"),
            description="kind words rather than harsh ones",
        ),
    }
    worded = {
        "formality": ("casual", "formal", "the tone of a letter to strangers, or of a talk among friends"),
        "warmth": ("cool and matter-of-fact", "warm and caring", "whether it speaks to the person who asks"),
        "detail": ("rough, with the main point alone", "detailed", "how deep it goes"),
        "simplicity": ("technical", "simple, in everyday words", "what it takes for granted"),
        "humour": ("serious", "funny", "whether it jokes"),
        "confidence": ("tentative", "confident", "how it puts what it claims"),
        "directness": ("roundabout", "direct, with the answer first", "how soon it comes to the point"),
        "creativity": ("conventional", "imaginative", "whether it goes beyond the usual"),
    }
    return measured | {
        name: Attribute(low=low, high=high, description=told) for name, (low, high, told) in worded.items()
    }
