"""Plain sampling: each choice is one independent draw from the model."""

from collections.abc import Generator
from typing import Any, ClassVar

from trimtab.decoders.registry import strategy
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.engine.program import Answer, Extend, Op


@strategy("sample", cost="1 answer")
class Sample(Search):
    """Draw each choice once, token by token; streams as it decodes."""

    whole: ClassVar[bool] = True

    def rows(self, choices: int) -> int:
        return choices

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(context.choices)
        context.stream(drafts)
        yield Extend(drafts)
        return Answer(drafts, drafts)
