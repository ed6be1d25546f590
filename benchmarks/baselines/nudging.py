"""Nudging by hand: where the base is unsure, an aligned model writes the next word (arXiv 2410.09300).

The base runs in `generate`, a token of every row at a step. What a row says next is decided by a coroutine that is
told what the base thinks, and asks for tokens of the aligned model when it needs them: rows that ask at the same time
share a forward.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from baselines.beside import Beside
from baselines.generation import extend
from baselines.models import Conversation, Language

WORD = re.compile(r"\s*\S+|\s+")
LONGEST = 4
"""tokens of a character at most"""


class Look(NamedTuple):
    """What the base would say next."""

    token: int
    p: float


Voice = Generator[int | None, Any, None]
"""gives the next token of the answer and is sent a `Look`, or gives None and is sent a token of the aligned model"""


@dataclass(frozen=True)
class Nudging:
    """Greedy, as in the paper. The two may have different byte-level vocabularies: only text passes between them.

    A word is what stands between spaces, with the space before it. The first word of a turn of the aligned model always
    stands; at each further one, the base takes over if its likeliest token has at least probability `gamma`, or begins
    the very word that the aligned model would say. It speaks until it is less sure. The aligned model decides to end.
    """

    base: Language
    aligned: Language
    gamma: float = 0.4
    draft: int = 16
    """tokens of the aligned model after which a word counts as whole"""

    def answer(
        self, conversations: Sequence[Conversation], tokens: int, *, ignore_eos: bool = False
    ) -> list[list[int]]:
        """Answers of at most `tokens`, as ids without EOS; all conversations in one batch."""
        prompts = [self.aligned.prompt(conversation) for conversation in conversations]
        processor = _Nudged(self, prompts, ignore_eos)
        answers = extend(
            self.base, conversations, tokens=tokens, sample=False, ignore_eos=ignore_eos, processor=processor
        )
        return [answer[: row.length] for answer, row in zip(answers, processor.rows, strict=True)]


@dataclass
class _Row:
    """The aligned model's side of one answer."""

    prompt: list[int]
    voice: Voice
    read: list[int] = field(default_factory=list)
    """what the aligned model's cache holds"""
    unread: list[int] = field(default_factory=list)
    length: int | None = None
    """tokens of the answer, once the aligned model has ended it"""


@dataclass
class _Turn:
    """What the aligned model has said since it was asked last."""

    said: list[int] = field(default_factory=list)
    ended: bool = False
    passed: int = 0
    """characters that stand already"""
    before: str = ""
    """the last word that stands, or a part of it"""
    taken: int = 0
    """tokens since then"""


class _Nudged(LogitsProcessor):
    """Lets nothing but the token that the rule says be drawn."""

    def __init__(self, rule: Nudging, prompts: list[list[int]], ignore_eos: bool) -> None:
        self._rule = rule
        self._base_ends = set(() if ignore_eos else rule.base.eos_ids)
        self._aligned_ends = set(() if ignore_eos else rule.aligned.eos_ids)
        self._beside = Beside(rule.aligned.model, len(prompts))
        self.rows = [_Row(prompt, self._voice(number)) for number, prompt in enumerate(prompts)]
        for row in self.rows:
            next(row.voice)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        top, tokens = scores.max(dim=1)
        looks = map(Look, tokens.tolist(), (top - scores.logsumexp(dim=1)).exp().tolist())
        said = [row.voice.send(look) for row, look in zip(self.rows, looks, strict=True)]
        while asking := [number for number, token in enumerate(said) if token is None]:
            for number, token in zip(asking, self._aligned(asking), strict=True):
                said[number] = self.rows[number].voice.send(token)
        return torch.full_like(scores, -torch.inf).scatter(1, torch.tensor(said)[:, None], 0.0)

    def _aligned(self, asking: Sequence[int]) -> list[int]:
        """The aligned model's next tokens in the rows that ask."""
        new = [row.unread if number in asking else [] for number, row in enumerate(self.rows)]
        logits = self._rule.aligned.model.lm_head(self._beside.read(new)[list(asking)])  # (A, V)
        tokens: list[int] = logits.argmax(1).tolist()
        for number, token in zip(asking, tokens, strict=True):
            row = self.rows[number]
            row.read, row.unread = row.read + row.unread, [token]
        return tokens

    def _ask(self, number: int, text: str) -> None:
        """Let the aligned model go on from the answer so far, of which it keeps what it has read already."""
        row = self.rows[number]
        wanted = row.prompt + self._rule.aligned.spell(text)
        same = 0
        while same < min(len(row.read), len(wanted) - 1) and row.read[same] == wanted[same]:
            same += 1
        self._beside.rewind(number, same)
        row.read, row.unread = wanted[:same], wanted[same:]

    def _voice(self, number: int) -> Voice:
        """One answer, token by token; when it is over, EOS for ever."""
        base, answer = self._rule.base, list[int]()
        look = yield None
        while True:
            self._ask(number, base.text(answer))
            turn = _Turn()
            while (word := (yield from self._word(turn, look))) is not None:
                if not word:
                    self.rows[number].length = len(answer)
                    while True:
                        yield base.eos_ids[0]
                for token in base.spell(word):
                    answer.append(token)
                    look = yield token
                turn.passed, turn.before, turn.taken = turn.passed + len(word), word, 0
            answer.append(look.token)
            look = yield look.token
            while self._sure(look) or (look.token not in self._base_ends and base.text(answer).endswith("\ufffd")):
                answer.append(look.token)
                look = yield look.token

    def _word(self, turn: _Turn, look: Look) -> Generator[None, int, str | None]:
        """The aligned model's next word, empty at its end; None where the base takes over."""
        while True:
            rest = self._rule.aligned.text(turn.said).rstrip("\ufffd")[turn.passed :]
            if _begins_word(turn.before, rest) and (self._sure(look) or self._agrees(look, rest)):
                return None
            words = WORD.findall(rest)
            patience = self._rule.draft + (0 if words else LONGEST)
            if len(words) > 1 or turn.ended or turn.taken >= patience:
                return words[0] if words else ""
            token = yield None
            turn.taken += 1
            if token in self._aligned_ends:
                turn.ended = True
            else:
                turn.said.append(token)

    def _sure(self, look: Look) -> bool:
        return look.p >= self._rule.gamma and look.token not in self._base_ends

    def _agrees(self, look: Look, rest: str) -> bool:
        """Whether the base would begin what the aligned model says next."""
        begun = self._rule.base.text([look.token])
        return bool(begun) and rest.startswith(begun)


def _begins_word(before: str, rest: str) -> bool:
    """Whether a word begins between the two."""
    return bool(before and rest) and any(word.start() == len(before) for word in WORD.finditer(before + rest))
