"""Where the time of one request goes, one phase after the other."""

from time import monotonic

from trimtab.engine.results import Phase, PhaseName

MOST = 64
"""phases that are told apart; all later ones are counted to the last"""
MOMENT = 1e-3
"""seconds; a search's own code that took less is counted to what follows it"""


class Phases:
    """The phases of a request so far; neighbours of one name are one."""

    def __init__(self, began: float) -> None:
        self._ended: list[Phase] = []
        self._began = began

    @property
    def told(self) -> tuple[Phase, ...]:
        return tuple(self._ended)

    def end(self, name: PhaseName) -> None:
        """What ran since the last phase ended was `name`."""
        now = monotonic()
        if name == "select" and now - self._began < MOMENT:
            return
        last = self._ended[-1] if self._ended else None
        if last is not None and (last.name == name or len(self._ended) == MOST):
            self._ended[-1] = last._replace(ended=now)
        else:
            self._ended.append(Phase(name, self._began, now))
        self._began = now
