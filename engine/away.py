"""Batches that are judged elsewhere, while the engine goes on."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter

from trimtab.engine.job import Job
from trimtab.engine.program import Op
from trimtab.engine.rating import Rating
from trimtab.engine.rewards import Judgement, Pair
from trimtab.engine.rewards.far import FarReward

Asker = Job | Rating
Share = tuple[Asker, list[Pair]]


@dataclass(frozen=True, eq=False, slots=True)
class Sent:
    """One batch on its way, and for which ops of their jobs its answers are."""

    name: str
    reward: FarReward
    shares: list[Share]
    ops: list[Op | None]
    """one per share; None for ratings"""
    judged: Future[list[Judgement]]
    began: float
    """in seconds of time.perf_counter"""


class Away:
    """Everything that is under way. The engine's thread calls its methods."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called from any thread when a batch is back."""
        self._wake = wake
        self._back: deque[Sent] = deque()
        self._askers: dict[Asker, Op | None] = {}
        self._count = 0

    @property
    def waiting(self) -> bool:
        """Whether something is under way, or back and not taken yet."""
        return self._count > 0

    def holds(self, asked: Asker) -> bool:
        """Whether answers for what the asker wants now are under way."""
        return asked in self._askers and self._askers[asked] is _op(asked)

    def send(self, name: str, reward: FarReward, shares: list[Share]) -> None:
        """Ask for one batch, and return at once."""
        ops = [_op(asked) for asked, _ in shares]
        self._askers.update(zip((asked for asked, _ in shares), ops, strict=True))
        began = perf_counter()
        judged = reward.ask([pair for _, pairs in shares for pair in pairs])
        sent = Sent(name, reward, shares, ops, judged, began)
        self._count += 1
        judged.add_done_callback(lambda _: self._land(sent))

    def landed(self) -> Iterator[tuple[Sent, list[Share]]]:
        """What has come back since it was last asked for, with those shares whose askers still wait for them."""
        while self._back:
            sent = self._back.popleft()
            self._count -= 1
            wanted = []
            for share, op in zip(sent.shares, sent.ops, strict=True):
                asked = share[0]
                if asked in self._askers and self._askers[asked] is op:
                    del self._askers[asked]
                if _op(asked) is op and not (isinstance(asked, Rating) and asked.ended):
                    wanted.append(share)
            yield sent, wanted

    def _land(self, sent: Sent) -> None:
        self._back.append(sent)
        self._wake()


def _op(asked: Asker) -> Op | None:
    """What an asker waits for; a rating waits for one thing all its life."""
    return asked.op if isinstance(asked, Job) else None
