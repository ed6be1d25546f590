"""Best-of-N by hand: n sampled answers, and the one that the reward model likes best (arXiv 2009.01325)."""

from collections.abc import Sequence
from dataclasses import dataclass

from baselines.generation import extend
from baselines.models import Conversation, Language, Reward


@dataclass(frozen=True)
class BestOfN:
    """All answers to all conversations decode in one batch, and are scored in another."""

    base: Language
    reward: Reward
    n: int = 8
    sample: bool = True

    def answer(
        self, conversations: Sequence[Conversation], tokens: int, *, ignore_eos: bool = False
    ) -> list[list[int]]:
        """Answers of at most `tokens`, as ids without EOS; all conversations in one batch."""
        drawn = extend(
            self.base, conversations, tokens=tokens, sample=self.sample, ignore_eos=ignore_eos, copies=self.n
        )
        places = self.best(conversations, [self.base.text(each) for each in drawn])
        return [drawn[self.n * index + place] for index, place in enumerate(places)]

    def best(self, conversations: Sequence[Conversation], texts: Sequence[str]) -> list[int]:
        """Which of the `n` texts of each conversation has the highest reward; of equal ones the first."""
        repeated = [conversation for conversation in conversations for _ in range(self.n)]
        scores = self.reward.score(repeated, texts).view(-1, self.n)
        places: list[int] = scores.argmax(1).tolist()
        return places
