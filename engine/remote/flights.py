"""Calls of one engine to its remote base that are under way, and what of them has come."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from trimtab.engine.job import Job
from trimtab.engine.remote.base import RemoteBase
from trimtab.engine.remote.wire import Ask, Reply, Token
from trimtab.engine.sequence import Sequence


@dataclass(eq=False, slots=True)
class Flight:
    """One call for some sequences of a request, which all begin alike."""

    job: Job
    sequences: list[Sequence]
    """one for each continuation, in order; or the one whose tokens are read"""
    length: int
    """tokens of each when the call left"""
    wanted: int
    """tokens asked for"""
    streamed: bool
    come: list[list[Token]] = field(init=False)
    """per continuation: tokens that have come"""
    taken: list[int] = field(init=False)
    """per continuation: how many of them its sequence has"""
    charged: int = -1
    """tokens written that the request was charged for; -1: nothing of the call was"""
    future: "Future[Reply] | None" = None
    reply: Reply | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.come = [[] for _ in self.sequences]
        self.taken = [0] * len(self.sequences)

    @property
    def landed(self) -> bool:
        """Whether nothing more will come."""
        return self.reply is not None or self.error is not None

    def next(self, index: int) -> Token | None:
        """The next token for a sequence; of a stream the last one waits for the end, which tells what was cached."""
        come, taken = self.come[index], self.taken[index]
        if taken == len(come):
            return None
        last = taken + 1 == self.wanted or come[taken].id in self.sequences[index].plan.ends
        return None if last and not self.landed else come[taken]

    def ready(self, sequence: Sequence) -> bool:
        """Whether there is something to do for a sequence."""
        return self.landed or self.next(self.sequences.index(sequence)) is not None

    def fits(self, index: int) -> bool:
        """Whether the sequence still stands where its next token goes on."""
        return len(self.sequences[index].tokens) == self.length + self.taken[index]


Arrival = tuple[Flight, int, Token] | Flight
"""a streamed token, or the end of a flight"""


class Flights:
    """Sends calls, and takes in what comes in the engine's thread. `wake` is called in the thread of the connection."""

    def __init__(self, base: RemoteBase, wake: Callable[[], None]) -> None:
        self._base = base
        self._wake = wake
        self._arrivals: deque[Arrival] = deque()
        self._of: dict[Sequence, Flight] = {}

    def get(self, sequence: Sequence) -> Flight | None:
        """The call that is for a sequence, under way or landed."""
        return self._of.get(sequence)

    def send(self, flight: Flight, ask: Ask) -> None:
        """Begin a call."""

        def told(index: int, token: Token) -> None:
            self._arrivals.append((flight, index, token))
            self._wake()

        def done(_: "Future[Reply]") -> None:
            self._arrivals.append(flight)
            self._wake()

        flight.future = self._base.ask(ask, told if flight.streamed else None)
        self._of.update(dict.fromkeys(flight.sequences, flight))
        flight.future.add_done_callback(done)

    def land(self) -> list[Flight]:
        """Take in what has come; the flights that have ended."""
        ended = []
        while self._arrivals:
            arrival = self._arrivals.popleft()
            if isinstance(arrival, Flight):
                self._end(arrival)
                ended.append(arrival)
            else:
                flight, index, token = arrival
                flight.come[index].append(token)
        return ended

    def drop(self, sequence: Sequence) -> None:
        """Nothing more is wanted for a sequence; the call is given up when that holds for all of its sequences."""
        flight = self._of.pop(sequence, None)
        if flight is not None and not any(self._of.get(each) is flight for each in flight.sequences):
            assert flight.future is not None
            flight.future.cancel()

    def of(self, job: Job) -> list[Flight]:
        """The calls of a request."""
        return list(dict.fromkeys(flight for flight in self._of.values() if flight.job is job))

    def forget(self, job: Job) -> None:
        """Give up every call of a request."""
        for sequence in [each for each, flight in self._of.items() if flight.job is job]:
            self.drop(sequence)

    def sweep(self, live: Iterable[Sequence]) -> None:
        """Give up the calls for all other sequences."""
        for sequence in self._of.keys() - set(live):
            self.drop(sequence)

    def _end(self, flight: Flight) -> None:
        assert flight.future is not None
        try:
            flight.reply = flight.future.result()
        except Exception as error:
            flight.error = error
            return
        for come, continuation in zip(flight.come, flight.reply.continuations, strict=False):
            come.extend(continuation.tokens[len(come) :])


def reading(job: Job, sequence: Sequence, top: int = 0) -> Ask:
    """A call for log-probabilities of a sequence's tokens as they stand, with the `top` best at each place."""
    request = job.request
    return Ask(
        prompt=sequence.tokens,
        max_tokens=0,
        sampling=request.plan.sampling,
        seed=0,
        prompt_logprobs=top,
        salt=request.salt.decode(),
        session=job.session,
        priority=request.priority,
    )
