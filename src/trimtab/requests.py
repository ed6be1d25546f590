"""A request before it is validated, and when it can run."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.compiling import Compiler
from trimtab.decoders.floor import Floor
from trimtab.decoders.search.sample import Sample
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.backlog import Load
from trimtab.engine.grammar import Grammar
from trimtab.engine.plan import SteerPlan
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Message


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request before it is validated; exactly one of `prompt` and `messages` is given."""

    prompt: str | Sequence[int] | None = None
    messages: tuple[Message, ...] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    """choices to return"""
    decoding: Mapping[str, Any] | None = None
    """strategy and parameters, as over the wire; absent: plain sampling"""
    cache_salt: str = ""
    """requests share cached prefixes only with requests of the same salt"""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    progress: bool = False
    """tell of the search's progress, as events"""
    priority: int = 0
    """lower ones are served first, whatever waits behind them"""
    add_special_tokens: bool = True
    """for text prompts: let the tokenizer add what it puts before a text (BOS)"""
    grammar: Grammar | None = None
    """what every answer must satisfy, but a refusal to answer (rule `abstain`)"""
    random_stream: int = 0
    """number of the first choice's random stream; draws depend on the seed, the stream and the place in the text"""
    prompt_logprobs: int | None = None
    """tell of each token of the prompt its log-probability under the base, and so many best tokens beside it"""
    tools: tuple[Mapping[str, Any], ...] = ()
    """functions that the chat template tells the model of, in OpenAI's form"""
    shown_tokens: frozenset[int] = frozenset()
    """special tokens that stand in the text, though `skip_special_tokens` leaves out the others"""
    floor: Floor | None = None
    """the operator's, which `decoding` is laid upon"""
    tenant: str | None = None
    """whose it is: its norms and profiles are found under this name"""
    trusted: bool = False
    """`decoding` is the operator's own, too: it may name what the floor is made of"""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that can run: tokenised, every limit checked, the seed drawn."""

    request: GenerationRequest
    prompt_ids: "array[int]"
    spec: DecodingSpec
    plan: SteerPlan
    max_tokens: int
    rows: int
    compiler: Compiler
    """of the program and of the conversations that it may hold"""
    needs: Mapping[str, object] = field(default_factory=dict)
    """what the request asks of guides, by name: the guides, and rewards that are none, as they were when it was made"""

    @property
    def guides(self) -> frozenset[str]:
        """Names of the guides that the request needs."""
        return frozenset(self.needs)

    @property
    def load(self) -> Load:
        """What it adds to the queue."""
        return Load(1, self.rows, len(self.prompt_ids) + self.max_tokens)

    @property
    def strategy(self) -> str:
        return self.spec.strategy

    @property
    def searches(self) -> bool:
        """Whether the program considers more answers than it returns."""
        return not isinstance(self.spec.search, Sample)

    @property
    def decoding(self) -> dict[str, Any]:
        """The resolved `decoding` object, as it is echoed in the response."""
        return self.spec.dump()
