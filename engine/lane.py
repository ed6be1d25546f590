"""One model's reading of a sequence."""

from array import array
from dataclasses import dataclass
from typing import Self

from trimtab.engine.alignment import Translation
from trimtab.engine.model import Model
from trimtab.engine.pages import PageTable
from trimtab.engine.plan import PLAIN, LanePlan, Variant


@dataclass(eq=False, slots=True)
class Lane:
    """Token ids of one prompt and answer in the vocabulary of the model that reads them, and their pages there.

    The tokens whose keys and values are stored are `tokens[:table.length]`.
    """

    name: str
    """what usage reports call it"""
    model: Model
    tokens: "array[int]"
    table: PageTable
    variant: Variant = PLAIN
    scores: bool = False
    """it reads candidates for the next token, so its last token is stored as well before they come"""
    called: bool = False
    """it keeps no step with the base: it catches up when the program calls for it"""
    translation: Translation | None = None
    """of the base's ids; None: they are the same, or text carries over"""

    @classmethod
    def of(cls, plan: LanePlan, model: Model, translation: Translation | None, salt: bytes) -> Self:
        """A lane that holds its prompt; `salt` keeps the cached prefixes of strangers apart."""
        return cls(
            name=plan.name,
            model=model,
            tokens=plan.prompt[:],
            table=model.runner.pool.table(b"|".join((model.salt_of(plan.variant), salt))),
            variant=plan.variant,
            scores=plan.scores,
            called=plan.called,
            translation=translation,
        )

    @property
    def unstored(self) -> int:
        """Tokens before the last whose keys and values are still to be computed; at most 0: it can go on."""
        return len(self.tokens) - 1 - self.table.length

    @property
    def pending(self) -> "array[int]":
        """Tokens that are not stored yet."""
        return self.tokens[self.table.length :]

    def append(self, token: int) -> None:
        """Add a token of the base; one without counterpart here reads as the end of a text."""
        if self.translation is not None:
            token = self.translation.token(token)
            if token < 0:
                token = min(self.model.eos_ids, default=0)
        self.tokens.append(token)

    def replace(self, tokens: "array[int]") -> None:
        """Hold `tokens` instead; what both begin with stays stored."""
        common = 0
        for old, new in zip(self.tokens, tokens, strict=False):
            if old != new:
                break
            common += 1
        self.tokens = tokens[:]
        self.table.trim(min(common, len(tokens) - 1))

    def trim(self, count: int) -> None:
        """Take the last `count` tokens back."""
        if count:
            del self.tokens[-count:]
        self.table.trim(len(self.tokens) - 1)

    def fork(self) -> Self:
        """The same reading on shared pages."""
        return type(self)(
            self.name,
            self.model,
            self.tokens[:],
            self.table.fork(),
            self.variant,
            self.scores,
            self.called,
            self.translation,
        )
