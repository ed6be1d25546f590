"""A reward that another server judges: trimtab's, vLLM's or SGLang's."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Generic, TypeVar

from trimtab.engine.errors import GuideError, ModelLoadError, RemoteError, RemoteUnavailable
from trimtab.engine.guides.config import RemoteRewardConfig
from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.rewards.base import Judgement, Pair
from trimtab.engine.rewards.contract import PAIRS
from trimtab.engine.rewards.routes import ROUTES, Route, Told, Unreadable
from trimtab.engine.rewards.transports import connect

log = logging.getLogger(__name__)

T = TypeVar("T")
LEAST = 1e-30
"""what a probability of 0 counts as, where its logarithm is taken"""


class FarReward:
    """A reward whose model runs behind another server.

    One value is the score. Of two classes it is the log-odds of the second, or of `label`; of more the logit of
    `label`. Servers that tell probabilities alone are taken by their logarithms.
    """

    def __init__(self, name: str, config: RemoteRewardConfig) -> None:
        """Find the route that answers; ModelLoadError, which says what to change, where none does."""
        self.name = name
        self.connections = config.connections
        self.stats = RemoteStats()
        self._model = config.guide
        self._transport = connect(config, self.stats)
        self._threads = ThreadPoolExecutor(config.connections, thread_name_prefix=f"trimtab-{name}")
        self._calls: set[Future[list[Told]]] = set()
        try:
            self._find(config)
        except BaseException:
            self.close()
            raise
        log.info("guide %r: %s answers by %s", name, config.place, self.route.told)

    def close(self) -> None:
        """End all calls; those under way fail with RemoteUnavailable."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._transport.close()

    def room(self, pairs: int) -> int:
        """How many of `pairs` answers can be asked about now without waiting for a connection."""
        free = max(0, self.connections - len(self._calls))
        return min(pairs, free) if self.route.one_each else pairs * (free > 0)

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the scores of `judge`."""
        return [judgement.score for judgement in self.judge(pairs)]

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Return one judgement per pair, once the server has answered.

        Raises RemoteUnavailable, RemoteError, or GuideError for an answer that cannot be understood.
        """
        return self.ask(pairs).result()

    def ask(self, pairs: Sequence[Pair]) -> "Future[list[Judgement]]":
        """Do what `judge` does without waiting; one thread calls it at a time."""
        return self._gather(self.route, pairs, self._judged)

    def _find(self, config: RemoteRewardConfig) -> None:
        """Try the routes, and keep to the first that judges seven answers."""
        refusals = []
        for route in ROUTES:
            if config.route not in ("auto", route.kind) or (config.label is not None and route.kind == "score"):
                continue
            try:
                self._gather(route, PAIRS[:1], list).result()
                told = self._gather(route, PAIRS, list).result()
                self._learn(route, told, config.label)
                return
            except RemoteUnavailable as error:
                raise ModelLoadError(f"{error}") from error
            except (RemoteError, GuideError, ModelLoadError) as error:
                refusals.append(f"{route.told}: {error}")
        named = f"model {config.guide!r}" if config.guide else "the model that it serves"
        raise ModelLoadError(
            f"{config.place} judges no answers as {named}: name it in `guide`, and see that it is a reward there "
            f"(vLLM: --runner pooling; SGLang: --is-embedding; llama.cpp has no such route). "
            f"Tried: {'; '.join(refusals)}"
        )

    def _learn(self, route: Route, told: list[Told], label: str | int | None) -> None:
        """What the numbers of a route are, from what it said of several answers."""
        width = len(told[0].values)
        labels = [f"LABEL_{index}" for index in range(width)]
        for each in told:
            if each.label is not None and len(each.values) == width:
                labels[each.values.index(max(each.values))] = each.label
        self.route, self.labels = route, tuple(labels)
        own = route.kind == "classify" and route.form == "conversations"
        self._probabilities = own or (width > 1 and all(_is_distribution(each.values) for each in told))
        self._chosen = _choose(label, self.labels)

    def _gather(
        self, route: Route, pairs: Sequence[Pair], finish: Callable[[list[Told]], list[T]]
    ) -> "Future[list[T]]":
        """Start the calls for `pairs`; the future gets what all of them told, as `finish` makes it."""
        gathered = _Gathered(finish)
        calls = []
        try:
            for body, count in route.calls(pairs, self._model):
                calls.append(self._threads.submit(self._call, route, body, count))
        except RuntimeError:  # closed meanwhile
            gathered.future.set_exception(self._gone("its connection is closed"))
            return gathered.future
        self._calls.update(calls)
        for call in calls:
            call.add_done_callback(self._calls.discard)
        gathered.wait(calls)
        return gathered.future

    def _call(self, route: Route, body: Mapping[str, Any], count: int) -> list[Told]:
        """Ask once; runs in a thread of its own."""
        try:
            answer = self._transport.post(route.path, body)
            self.stats.lost = False
            return route.read(answer, count)
        except RemoteUnavailable as error:
            self.stats.lost = True
            raise self._gone(str(error), error.retry_after) from error
        except CancelledError:
            raise self._gone("its connection is closed") from None
        except RemoteError as error:
            raise RemoteError(f"guide {self.name!r}: {error}", refused=error.refused, guide=self.name) from error
        except Unreadable as error:
            raise GuideError(self.name, f"its server's answer to {route.path} cannot be used: {error}") from error

    def _gone(self, why: str, retry_after: float = 1.0) -> RemoteUnavailable:
        return RemoteUnavailable(f"guide {self.name!r}: {why}", retry_after=retry_after, guide=self.name)

    def _judged(self, told: list[Told]) -> list[Judgement]:
        return [self._judgement(each) for each in told]

    def _judgement(self, told: Told) -> Judgement:
        values = told.values
        if len(values) != len(self.labels):
            raise GuideError(
                self.name,
                f"its server tells {len(values)} numbers of an answer and told {len(self.labels)} when the guide was "
                "loaded: load it again",
            )
        if self._probabilities:
            logs = tuple(math.log(max(each, LEAST)) for each in values)
            values = logs if len(logs) > 1 else (logs[0] - math.log(max(1.0 - values[0], LEAST)),)
        score = values[self._chosen]
        if len(values) == 2:
            score -= values[1 - self._chosen]
        return Judgement(score, values, told.tokens, told.cached)


class _Gathered(Generic[T]):
    """A future of what several calls told, once all of them have ended."""

    def __init__(self, finish: Callable[[list[Told]], list[T]]) -> None:
        self.future: Future[list[T]] = Future()
        self._finish = finish
        self._lock = Lock()

    def wait(self, calls: "Sequence[Future[list[Told]]]") -> None:
        """Settle the future when `calls` have ended."""
        self._calls, self._left = calls, len(calls)
        for call in calls:
            call.add_done_callback(self._ended)

    def _ended(self, _: "Future[list[Told]]") -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        try:
            made = self._finish([each for call in self._calls for each in call.result()])
        except CancelledError:
            self.future.set_exception(RemoteUnavailable("the guide was unloaded"))
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(made)


def _is_distribution(values: Sequence[float]) -> bool:
    return all(0.0 <= each <= 1.0 for each in values) and math.isclose(sum(values), 1.0, abs_tol=1e-3)


def _choose(label: str | int | None, labels: Sequence[str]) -> int:
    """The number of the class that is the score."""
    some = ", ".join(labels[:8]) + ", ..." * (len(labels) > 8)
    if label is None:
        if len(labels) > 2:
            raise ModelLoadError(f"tells {len(labels)} numbers: set `label` to the class that is the score, of {some}")
        return len(labels) - 1
    if isinstance(label, int):
        if not 0 <= label < len(labels):
            raise ModelLoadError(f"label: there is no class {label}: give one of 0 to {len(labels) - 1}")
        return label
    if label not in labels:
        last = len(labels) - 1
        raise ModelLoadError(f"label: none of seven answers was {label!r}: give its number, 0 to {last}, of {some}")
    return labels.index(label)
