"""Plain sampling: each choice is one independent draw from the model."""

from collections.abc import Generator

from trimtab.decoders.params import Params
from trimtab.decoders.registry import strategy
from trimtab.engine.program import Answer, Context, Extend, Op


@strategy("sample", cost="1 answer")
class Sample(Params):
    """Draw each choice once, token by token; streams as it decodes."""

    def rows(self, choices: int) -> int:
        return choices

    def run(self, context: Context) -> Generator[Op, None, Answer]:
        drafts = context.prompt.fork(context.choices)
        context.stream(drafts)
        yield Extend(drafts)
        return Answer(drafts, [(draft, None) for draft in drafts])
