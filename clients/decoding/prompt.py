"""Strategies that change what the models read. Written by `make docs` from the registry: change it there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from trimtab.clients.decoding.objects import Community, Example
from trimtab.clients.decoding.strategy import PromptPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms(PromptPart):
    """Put the stored norms that are nearest to the query before it."""

    name: ClassVar[str] = "norms"

    k: Annotated[int | None, "norms at most, beside those of `ids`; 0: those of `ids` alone; 5 if not given"] = None
    tags: Annotated[Sequence[str] | None, "only norms with any of these tags; none: all; [] if not given"] = None
    ids: Annotated[Sequence[str] | None, "norms that are taken whatever the query and the tags are"] = None
    locale: Annotated[str | None, "of the answer, as de-AT: its norms, and those for all"] = None
    topic: Annotated[str | None, "of the request: its norms, and those for all"] = None
    max_tokens: Annotated[int | None, "tokens of all norms at most; what is over is left out; 512 if not given"] = None
    embedding: Annotated[str | None, "guide that embeds the query; None: norms are found by words alone"] = None
    share: Annotated[float | None, "what embeddings count in the order, beside words; 0.5 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona(PromptPart):
    """The system message says what the person who asks would like."""

    name: ClassVar[str] = "persona"

    attributes: Annotated[
        Mapping[str, float] | None,
        "weight of each attribute, -1 (its opposite) to 1; absent: as the request's `preference` has it",
    ] = None
    text: Annotated[str | None, "the preference in words, said as it is"] = None
    form: Annotated[
        Literal["sentences", "scores"] | None, "how attributes are put: a sentence each, or control tokens with scores"
    ] = None
    template: Annotated[
        str | None, "scores: of one attribute, with {attribute} and {score} in it; null: <{attribute}> {score}"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pluralism(PromptPart):
    """Let several communities speak: all in one answer, one of them, or as a mixture."""

    name: ClassVar[str] = "pluralism"

    mode: Annotated[
        Literal["overton", "steerable", "distributional"],
        "overton: one answer reflects all; steerable: one community is chosen; distributional: their mean",
    ]
    communities: Annotated[Mapping[str, Community], 'by name: {"guide": NAME} or {"system": TEXT}']
    max_tokens: Annotated[int | None, "tokens of a comment at most (overton, steerable); 128 if not given"] = None
    choose: Annotated[str | None, "steerable: the community that conditions the answer"] = None
    perspective: Annotated[str | None, "steerable: the base chooses the community that fits this best"] = None
    weights: Annotated[
        Mapping[str, float] | None, "distributional: of every community; only their ratios count. None: all alike"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principles(PromptPart):
    """Let a model write principles for the query, then answer and revise under them."""

    name: ClassVar[str] = "principles"

    guide: Annotated[str | None, "what writes the principles: `base`, or a language-model guide's name"] = None
    count: Annotated[int | None, "principles to ask for; more are left out; 4 if not given"] = None
    max_tokens: Annotated[int | None, "tokens of all principles at most; whole ones are used; 256 if not given"] = None
    rounds: Annotated[int | None, "revisions; 0: the answer is made under the principles at once"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite(PromptPart):
    """Let a model restate the last user message in a form that is answered better."""

    name: ClassVar[str] = "rewrite"

    guide: Annotated[str | None, "what rewrites: `base`, or a language-model guide's name; base if not given"] = None
    max_tokens: Annotated[int | None, "tokens of the new message at most; a longer one is not used"] = None
    instruction: Annotated[
        str | None, "what the rewriter is asked after the conversation so far; {instruction} is the message"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Urial(PromptPart):
    """Rules and answered questions stand before the conversation, so that a base model answers like an assistant."""

    name: ClassVar[str] = "urial"

    examples: Annotated[int | None, "how many of our answered questions: a fact, steps, a refusal"] = None
    system: Annotated[str | None, "rules in place of ours; empty: none; null: ours"] = None
    pairs: Annotated[Sequence[Example] | None, "answered questions of the request's own, after ours"] = None
