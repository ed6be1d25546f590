"""Text of a choice that the program declares final bit by bit, while the sequences behind it come and go."""

from array import array

from trimtab.engine.results import Delta, TokenTrace
from trimtab.engine.sequence import Sequence
from trimtab.engine.vocabulary import TextStream


class Outgoing:
    """What was sent of one choice; the deltas of a choice concatenate to its text."""

    def __init__(self, choice: int, text: TextStream) -> None:
        self.tokens: array[int] = array("q")
        """final ids so far"""
        self.trace: list[TokenTrace] = []
        """of these tokens, where the request asks for it"""
        self._choice = choice
        self._text = text

    def begins(self, sequence: Sequence) -> bool:
        """Whether the sequence says what was sent."""
        return sequence.answer[: len(self.tokens)] == self.tokens

    def send(self, sequence: Sequence, count: int, *, last: bool = False) -> Delta | None:
        """The delta that makes the first `count` tokens of the answer final; None: there is nothing new."""
        start, answer = len(self.tokens), sequence.answer
        if not self.begins(sequence):
            raise RuntimeError("a search went back on text that it had declared final")
        new = answer[start:count]
        if not new and not last:
            return None
        self.tokens.extend(new)
        # a token that ends the answer is no text
        spoken = new[:-1] if new and len(self.tokens) == len(answer) and sequence.silent_end else new
        text = "".join([self._text.push(token) for token in spoken])
        if last:
            text += self._text.flush()
        known = sequence.plan.sampling.logprobs is not None
        logprobs = tuple(sequence.logprobs[start : len(self.tokens)]) if known else None
        trace = tuple(sequence.trace[start : len(self.tokens)]) if sequence.plan.trace else None
        self.trace += trace or ()
        return Delta(self._choice, text, tuple(new), logprobs, trace=trace)
