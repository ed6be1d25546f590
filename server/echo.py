"""A prompt that a text completion repeats before each of its answers, with log-probabilities if they are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.engine.results import TokenLogprob
from trimtab.engine.vocabulary import Vocabulary
from trimtab.server.logprobs import TextLogprobs


@dataclass(frozen=True, slots=True)
class Echo:
    """One prompt as text and as tokens; the first `silent` tokens were not written by the caller (BOS)."""

    text: str
    ids: Sequence[int]
    silent: int
    skip_special: bool
    """special tokens are no part of the text"""
    as_ids: bool = False
    """log-probabilities name tokens by their ids"""

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[int],
        ids: Sequence[int],
        vocabulary: Vocabulary,
        *,
        skip_special: bool,
        as_ids: bool = False,
    ) -> "Echo":
        """A string is repeated as it came, special tokens that it spells out included."""
        if not isinstance(prompt, str):
            return cls(vocabulary.decode(prompt, skip_special), ids, 0, skip_special, as_ids)
        silent = 0
        while silent < len(ids) and ids[silent] in vocabulary.special_ids:
            if prompt.startswith(vocabulary.token_bytes(ids[silent]).decode()):
                break
            silent += 1
        return cls(prompt, ids, silent, skip_special=False, as_ids=as_ids)

    def logprobs(self, told: Sequence[TokenLogprob | None], vocabulary: Vocabulary) -> dict[str, Any]:
        """What is known of the prompt's tokens, as text completions tell it."""
        aligned = TextLogprobs(vocabulary, 0, skip_special=self.skip_special, as_ids=self.as_ids)
        return aligned.echo(self.ids, told, self.text, self.silent)


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The log-probabilities of a prompt and of its answer as one."""
    return {name: [*first[name], *second[name]] for name in first}
