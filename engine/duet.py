"""One text by two models that may spell it differently: nudging (arXiv 2410.09300) and weak-to-strong decoding.

The guide drafts a few tokens in its own vocabulary; its words, spelled in the base's, are read by the base, which
takes over where it is sure or agrees. The engine runs the models: a `Duet` tells it whose turn it is, what each must
read, and what has been settled. One word is verified first, then two, then four while the base stays silent: a base
that speaks often costs the guide few tokens, and one that speaks rarely is asked rarely.
"""

from array import array
from codecs import utf_8_decode
from dataclasses import dataclass, replace
from itertools import accumulate
from math import exp, fsum
from typing import Final, Literal, NamedTuple

from trimtab.engine.grammar import GrammarState
from trimtab.engine.plan import GatePlan
from trimtab.engine.results import FinishReason
from trimtab.engine.vocabulary import Vocabulary
from trimtab.engine.words import split_words, word_starts

LONGEST_CHARACTER: Final = 4  # bytes of the longest character, so tokens too


class Look(NamedTuple):
    """What the base thinks after one token."""

    top_id: int
    """its most likely next token"""
    top_p: float
    next_logprob: float | None
    """of the token that follows in this run; None after the last"""


class Spoken(NamedTuple):
    """A token of the answer, in the base's vocabulary."""

    id: int
    source: Literal["base", "nudge", "draft"]
    logprob: float | None
    """under the base, of a token that the guide wrote; None where no row was run before it, and for drawn tokens"""


class Verdict(NamedTuple):
    """What the base's reading settled."""

    accepted: list[Spoken]
    draw: int | None
    """the row to draw the base's next token from; None: the guide is next, or the answer is over"""


@dataclass(slots=True)
class _Turn:
    """What the guide has said since it was last asked."""

    text: str = ""
    """not accepted yet, complete characters only"""
    tail: bytes = b""
    """the start of a character"""
    taken: int = 0
    """tokens since the base last read"""
    wanted: int = 1
    """words to draft before the base reads"""
    before: str = ""
    """the last word before `text` that the base let stand in this turn, perhaps a part of it"""
    ended: bool = False


class Duet:
    """Who speaks in one sequence, and which words of the guide stand.

    The engine repeats, until `finish` is set: run the speaker's lane over what it has not stored yet; for the guide,
    draw a token and `take` it; for the base, `look` at its rows and, if told to, draw and `take`. Bytes of accepted
    tokens concatenate to the accepted text; earlier base tokens are never rewritten.

    Under a grammar, which has taken the accepted tokens, words of the guide stand as far as it allows them: the base
    writes from the first token that it forbids, and goes on where the guide ends a text that may not end yet.
    """

    def __init__(
        self,
        plan: GatePlan,
        base: Vocabulary,
        guide: Vocabulary,
        *,
        base_eos: frozenset[int],
        guide_eos: frozenset[int],
        guide_prompt: "array[int]",
        guide_context: int,
    ) -> None:
        self._plan = plan
        self._base, self._guide = base, guide
        self._base_eos, self._guide_eos = base_eos, guide_eos
        self._prompt = guide_prompt[:]
        self._context = guide_context
        self.speaker: Literal["base", "guide"] = "guide"
        """whose forward is due"""
        self.guide_tokens = self._prompt[:]
        """what the guide's lane must hold: its prompt, the accepted text, and its draft"""
        self.finish: FinishReason | None = None
        """why the answer is over, once it is; an EOS that the base may end with is accepted as a token instead"""
        self.draft: list[int] = []
        """base tokens to read after the accepted ones, not accepted yet"""
        self.nudged = 0
        """accepted tokens that the guide wrote"""
        self.spoken = 0
        """tokens that the base drew"""
        self._answer = ""  # accepted, but for `_tail`: the base may have stopped inside a character
        self._tail = b""
        self._lead = ""  # the space that a SentencePiece guide writes before a text and that nobody is shown
        self._alone = False  # the base has taken over for good
        self._must = False  # the base writes the next token, or ends the answer
        self.rereads = False
        """the base reads its last token again: the row after it judges the draft, or is drawn from"""
        self._window: list[float] = []  # wsd: the base's log-probabilities of the last accepted tokens
        self._turn = _Turn()
        self._words: list[str] = []  # those that `draft` spells
        self._pass_to_guide()

    def take(self, token: int, grammar: GrammarState | None = None) -> list[Spoken]:
        """Take the token drawn from the speaker's last row and return what it adds to the answer."""
        if self.speaker == "base":
            return self._speak(token)
        turn = self._turn
        turn.taken += 1
        if token in self._guide_eos:
            turn.ended = True
        else:
            self.guide_tokens.append(token)
            self._hear(_text_bytes(self._guide, token))
        self._words = self._ready_words(grammar)
        if self._words:
            self.draft = self._base.continuation("".join(self._words))
            self._pass_to_base()
        return []

    def look(self, rows: list[Look], grammar: GrammarState | None = None) -> Verdict:
        """Judge the draft, or decide whether the base goes on.

        `rows` are the last rows of the base's run, one per token of `draft` and at least one before them if there is
        no draft. The row of the last accepted token, run again, makes the first draft token's log-probability known
        and lets the base agree with a word whose end it had not seen.
        """
        self.rereads = False
        if self.draft:
            judge = self._judge_words if self._plan.kind == "nudging" else self._judge_window
            return judge(rows, grammar, len(self.draft) if grammar is None else grammar.fitting(self.draft))
        if self._alone or self._must or self._tail or self._sure(rows[-1]):
            return Verdict([], len(rows) - 1)
        self._ask()
        return Verdict([], None)

    def fork(self) -> "Duet":
        """Return an independent copy."""
        copy = Duet.__new__(Duet)
        copy.__dict__.update(self.__dict__)
        copy.guide_tokens = self.guide_tokens[:]
        copy._turn = replace(self._turn)
        return copy

    def _ask(self) -> None:
        """Begin a turn of the guide: it reads the whole text anew, spelled its own way."""
        self._turn = _Turn()
        self.guide_tokens = self._prompt + array("q", self._guide.continuation(self._lead + self._answer))
        self._pass_to_guide()

    def _pass_to_guide(self) -> None:
        self.speaker = "guide"
        if len(self.guide_tokens) > self._context:
            self.finish = "length"

    def _pass_to_base(self) -> None:
        self.speaker, self.rereads = "base", True

    def _end(self, grammar: GrammarState | None) -> None:
        """The guide has no more to say: the answer is over, unless the grammar wants more of it."""
        if grammar is None or grammar.may_end():
            self.finish = "stop"
        else:
            self._must = True
            self._pass_to_base()

    def _hear(self, data: bytes) -> None:
        turn = self._turn
        silent = not (self._answer or turn.text or turn.tail or self._lead)
        if silent and data.startswith(b" ") and self._guide.drops_first_space and not self._base.drops_first_space:
            self._lead, data = " ", data[1:]
        data = turn.tail + data
        text, used = utf_8_decode(data, "replace", False)
        turn.text += text
        turn.tail = data[used:]

    def _ready_words(self, grammar: GrammarState | None) -> list[str]:
        """Return the words to verify now; none while the guide has to say more, or when that was all."""
        turn = self._turn
        words = split_words(turn.text)
        if turn.ended:
            if not words:
                self._end(grammar)
            return words
        complete = words[:-1]  # the last one may grow
        enough = self._plan.kind == "nudging" and len(complete) >= turn.wanted
        full = len(self.guide_tokens) > self._context
        if not (enough or full or turn.taken >= self._plan.draft):
            return []
        if not words and (full or turn.taken >= self._plan.draft + LONGEST_CHARACTER):
            if full:
                self.finish = "length"
            else:
                self._end(grammar)  # special tokens alone would go on forever
        return words if full else complete or words

    def _judge_words(self, rows: list[Look], grammar: GrammarState | None, fitting: int) -> Verdict:
        """Let the base take over at the first word start where it is sure of itself or agrees with the guide.

        A start inside a base token is passed by; so is the first word of a turn, which always stands, as far as the
        first `fitting` tokens of the draft go.
        """
        turn = self._turn
        text = turn.text.encode()
        starts = set(accumulate((len(word.encode()) for word in self._words), initial=0))
        starts.discard(len(text))  # the answer ends here, or the word goes on
        if not turn.before or len(turn.before) not in word_starts(turn.before + turn.text):
            starts.discard(0)
        sizes = (len(self._base.token_bytes(id_)) for id_ in self.draft)
        row = len(rows) - len(self.draft) - 1  # of the last accepted token; -1 if it was not run again
        for count, at in enumerate(accumulate(sizes, initial=0)):
            if at in starts and row + count >= 0:
                look = rows[row + count]
                if self._sure(look) or self._agrees(look, text[at:]):
                    return self._take_over(rows, count)
            if count == fitting < len(self.draft):
                return self._forbid(rows, count)
        return self._let_stand(rows, grammar)

    def _judge_window(self, rows: list[Look], grammar: GrammarState | None, fitting: int) -> Verdict:
        """Let the base take over for good after the first tokens in a row that it would have written too."""
        plan = self._plan
        for count, token in enumerate(self._read(rows, fitting), start=1):
            known = [] if token.logprob is None else [*self._window, token.logprob]
            self._window = known[-plan.window :]
            if len(self._window) == plan.window and exp(fsum(self._window) / plan.window) >= plan.threshold:
                return self._take_over(rows, count)
        return self._let_stand(rows, grammar) if fitting == len(self.draft) else self._forbid(rows, fitting)

    def _sure(self, look: Look) -> bool:
        gamma = self._plan.gamma
        return look.top_p >= gamma and (gamma <= 0 or look.top_id not in self._base_eos)  # the guide decides to end

    def _agrees(self, look: Look, rest: bytes) -> bool:
        """Whether the base would begin what the guide says next."""
        said = b"" if look.top_id in self._base_eos else _text_bytes(self._base, look.top_id)
        return bool(said) and rest.startswith(said)

    def _read(self, rows: list[Look], count: int) -> list[Spoken]:
        """Return the first `count` tokens of the draft with what the base thinks of them."""
        source: Literal["nudge", "draft"] = "nudge" if self._plan.kind == "nudging" else "draft"
        before = [None, *rows][-len(self.draft) - 1 :]  # the row before each token
        looks = zip(self.draft[:count], before, strict=False)
        return [Spoken(id_, source, look.next_logprob if look else None) for id_, look in looks]

    def _accept(self, rows: list[Look], count: int) -> list[Spoken]:
        accepted = self._read(rows, count)
        for token in accepted:
            self._append(token.id)
        self.nudged += count
        self.draft = []
        return accepted

    def _take_over(self, rows: list[Look], count: int) -> Verdict:
        """Accept `count` tokens of the draft; the base speaks from there."""
        row = len(rows) - len(self.draft) + count - 1
        self._alone = self._plan.kind == "wsd" or self._plan.gamma <= 0
        return Verdict(self._accept(rows, count), row)

    def _forbid(self, rows: list[Look], count: int) -> Verdict:
        """Accept `count` tokens of the draft, after which the grammar wants others: the base writes one of them."""
        accepted, row = self._take_over(rows, count)
        self._must = True
        self.rereads = row == -1  # it was not run again
        return Verdict(accepted, None if self.rereads else row)

    def _let_stand(self, rows: list[Look], grammar: GrammarState | None) -> Verdict:
        """Accept the whole draft; the guide goes on where it stopped."""
        turn = self._turn
        if turn.ended and grammar is not None and not grammar.may_end(self.draft):
            return self._forbid(rows, len(self.draft))
        accepted = self._accept(rows, len(self.draft))
        turn.text = turn.text[sum(map(len, self._words)) :]
        turn.wanted = min(2 * turn.wanted, self._plan.draft)
        turn.taken, turn.before = 0, self._words[-1]
        if turn.ended:
            self.finish = "stop"
        else:
            self._pass_to_guide()
        return Verdict(accepted, None)

    def _speak(self, token: int) -> list[Spoken]:
        if token in self._base_eos and not (self._alone or self._must):
            self._ask()
            return []
        self._must = False
        self._append(token)
        self.spoken += 1
        return [Spoken(token, "base", None)]

    def _append(self, token: int) -> None:
        data = self._tail + _text_bytes(self._base, token)
        text, used = utf_8_decode(data, "replace", False)
        self._answer += text
        self._tail = data[used:]


def _text_bytes(vocabulary: Vocabulary, token: int) -> bytes:
    """Return what a token adds to the text that is passed on: nothing for a special one."""
    return b"" if token in vocabulary.special_ids else vocabulary.token_bytes(token)
