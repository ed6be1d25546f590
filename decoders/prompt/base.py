"""What every prompt part is: parameters that change what the models read before they answer."""

from collections.abc import Generator
from typing import Any, NamedTuple

from trimtab.decoders.params import Params
from trimtab.decoders.prompt.framing import Framing
from trimtab.decoders.search.base import SearchContext
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.program import Op
from trimtab.engine.vocabulary import Message


class Prepared(NamedTuple):
    """What a part makes of a conversation while the request runs."""

    messages: tuple[Message, ...]
    """what the next part, and at last the search, works on; the framing is put around it afterwards"""
    report: dict[str, Any]
    """what the response tells of the part, beside what it told at admission"""


class PromptPart(Params):
    """One part of how a request is put to the models; several in one request act in the order listed.

    Rewards, and guides that score, read the conversation as the client sent it, whatever the parts do.
    """

    @property
    def prepares(self) -> bool:
        """Whether it has texts written before the search begins."""
        return False

    @property
    def rows(self) -> int:
        """Texts that are written at the same time."""
        return 1

    def frame(self, framing: Framing) -> None:
        """At admission: say what is put around conversations; raises InvalidRequest that names the field."""

    def steer(self, draft: Draft) -> None:
        """At admission: ask for mixtures, and for the models that `prepare` calls by name (`draft.writer`)."""

    def prepare(self, context: SearchContext, messages: tuple[Message, ...]) -> Generator[Op, Any, Prepared]:
        """While the request runs, before the search: have texts written by helpers (`context.start(helper=True)`)."""
        raise NotImplementedError
