"""What the prompt parts of one request put around every conversation that the base answers."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.decoders.attributes import Attribute
from trimtab.decoders.preference import known_attribute
from trimtab.decoders.prompt.system import with_system
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.vocabulary import Message, Vocabulary

if TYPE_CHECKING:
    from trimtab.decoders.library import Library


class Embedded(NamedTuple):
    """A text as an embedding model sees it."""

    vector: NDArray[np.float32]  # (D,), of length 1
    model: str
    """the model's digest; vectors of one digest can be compared"""


Embed = Callable[[str, str, str], Embedded]
"""the vector of a query by the guide of a name; raises InvalidRequest that names the path if there is none"""


_OPEN = ("method", "norms", "left_out", "missing")
"""what is told of an operator's part"""


class Layout(Protocol):
    """How the base reads conversations in place of its chat template."""

    @property
    def prefix(self) -> str:
        """What every prompt begins with; its pages stay in the cache."""
        ...

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        ...

    def render(self, messages: Sequence[Message], *, open_turn: bool, continued: bool) -> str:
        """The whole prompt, prefix included: with an open answer, or with the last message left open."""
        ...


class Framing:
    """Filled at admission, part after part; `where` is the path of the part that speaks."""

    def __init__(
        self,
        query: str,
        vocabulary: Vocabulary,
        *,
        library: "Library | None" = None,
        tenant: str | None = None,
        embed: Embed | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> None:
        self.query = query
        """the last user message, or the text prompt; empty if there is none"""
        self.library = library
        """norms and profiles, where the operator keeps some"""
        self.tenant = tenant
        """whose request it is, for norms of one tenant"""
        self.where = "decoding"
        self.layout: Layout | None = None
        self.told: list[dict[str, Any]] = []
        """what the response tells of each part"""
        self._vocabulary = vocabulary
        self._embed = embed
        self._attributes = attributes or {}
        self._speaking = -1
        self._said: list[tuple[int, str]] = []
        """by the number of the part"""

    def begin(self, method: str, where: str) -> None:
        """Let the next part speak."""
        self._speaking, self.where = len(self.told), where
        self.told.append({"method": method})

    def begin_again(self, number: int, where: str) -> None:
        """Let a part speak anew; what it said and told before is forgotten."""
        self._speaking, self.where = number, where
        self.told[number] = {"method": self.told[number]["method"]}
        self._said = [each for each in self._said if each[0] != number]

    def copied(self) -> "Framing":
        """A copy that may go its own way."""
        other = copy(self)
        other.told, other._said = [dict(each) for each in self.told], list(self._said)
        return other

    def say(self, text: str) -> None:
        """Put a text into the system message, after the client's own and those of parts before."""
        self._said.append((self._speaking, text))

    def lay_out(self, layout: Layout) -> None:
        """Let the base read conversations so; InvalidRequest where another part has said how."""
        if self.layout is not None:
            raise InvalidRequest("two parts lay the prompt out: leave one out", param=self.where)
        self.layout = layout

    def tell(self, **facts: Any) -> None:
        """Add to what the response tells of the part."""
        self.told[self._speaking].update(facts)

    def attribute(self, name: str, field: str) -> Attribute:
        """The attribute of this name, which the part names in `field`; InvalidRequest if there is none."""
        return known_attribute(self._attributes, name, f"{self.where}.{field}.{name}")

    def clean(self, text: str) -> str:
        """Break up strings of special tokens, so that data cannot open a turn of the conversation."""
        return self._vocabulary.harmless(text)

    def count(self, text: str) -> int:
        """Tokens of a text in the base's vocabulary."""
        return len(self._vocabulary.encode(text))

    def embed(self, guide: str, text: str, field: str) -> Embedded:
        """The vector of a query; InvalidRequest that names the field unless an embedding guide has the name."""
        assert self._embed is not None, "the request was not made for embeddings"
        return self._embed(guide, text, f"{self.where}.{field}")

    def around(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """A conversation with everything that the parts say."""
        return with_system(messages, "\n\n".join(self._texts)) if self.speaks else tuple(messages)

    def before(self, text: str) -> str:
        """A text prompt with everything that the parts say in front of it."""
        return "\n\n".join((*self._texts, text))

    def of_first(self, parts: int) -> "Framing":
        """What the first parts alone say."""
        other = self.copied()
        other._said = [each for each in self._said if each[0] < parts]
        return other

    def facts(self, laid: int) -> tuple[dict[str, Any], ...]:
        """What was told, for one run of the request, whose parts may add to it.

        Of the operator's parts, the first `laid` ones, that is which they are, and which norms there were.
        """
        own = [{name: each[name] for name in _OPEN if name in each} for each in self.told[:laid]]
        return (*own, *map(dict, self.told[laid:]))

    @property
    def speaks(self) -> bool:
        """Whether there is anything to put around conversations."""
        return bool(self._said)

    @property
    def _texts(self) -> list[str]:
        """What was said, in the order of the parts."""
        return [text for _, text in sorted(self._said, key=lambda each: each[0])]
