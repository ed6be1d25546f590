"""A receiver of the engine's events for tests that submit requests themselves."""

from threading import Event as Signal

from trimtab.engine.results import Event, Failure, Result


class Collector:
    """Receives events; `done` is set with the last one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.started, self.done = Signal(), Signal()

    def __call__(self, batch: list[tuple[object, Event]]) -> None:
        self.events += [event for _, event in batch]
        self.started.set()
        if isinstance(self.events[-1], Result | Failure):
            self.done.set()
