"""What the engine is asked to do, and what its sequences begin with."""

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from trimtab.engine.alignment import Translation
from trimtab.engine.backlog import Load
from trimtab.engine.budget import Budget
from trimtab.engine.grammar import Start
from trimtab.engine.plan import LanePlan, SteerPlan
from trimtab.engine.program import Conversation, Program
from trimtab.engine.results import Deliver
from trimtab.engine.vocabulary import Message, TextStream


class Opening(NamedTuple):
    """What a sequence begins with."""

    prompt: "array[int]"
    plan: SteerPlan
    text: TextStream
    limit: int
    """tokens, prompt included, at which the answer ends"""
    lane: LanePlan | None = None
    """the one model that reads and writes, in its own vocabulary; None: the base and the plan's lanes"""


Opener = Callable[[Conversation], Opening]


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine is asked to do: everything is validated, the prompt is tokens."""

    handle: object
    deliver: Deliver
    prompt: "array[int]"
    messages: tuple[Message, ...]
    """the conversation as rewards see it"""
    program: Program
    plan: SteerPlan
    text: TextStream
    choices: int
    rows: int
    """sequences that it may decode at the same time"""
    max_tokens: int
    budget: Budget = field(default_factory=Budget)
    progress: bool = False
    """tell the caller how far the program is"""
    opener: Opener | None = None
    """openings of other conversations, for programs that ask for them; raises InvalidRequest"""
    translations: Mapping[str, Translation | None] = field(default_factory=dict)
    """of the base's ids, per lane name; filled for guides that number their tokens differently"""
    grammar: Start | None = None
    """begins the grammar that answers must satisfy, over the vocabulary that writes them"""
    salt: bytes = b""
    """requests share cached prefixes only with requests of the same salt"""
    pinned: int = 0
    """tokens at the beginning of the prompt that other requests begin with, too: their pages are given up last"""
    discreet: bool = False
    """tell nothing of answers that are not returned"""
    tree: bool = False
    """tell what the search wrote on the way, unless it has to be discreet"""
    random_stream: int = 0
    """number of the first random stream"""
    prompt_logprobs: int | None = None
    """best tokens to tell of at each token of the prompt, beside its own; None: nothing"""
    strategy: str = ""
    """name of the strategy, for counts"""
    priority: int = 0
    """lower ones are served first"""
    guides: Mapping[str, object] = field(default_factory=dict)
    """what the request needs by name, as it was when the request was prepared: guides, and rewards that are none"""

    @property
    def load(self) -> Load:
        """What it adds to the queue."""
        return Load(1, self.rows, len(self.prompt) + self.max_tokens)
