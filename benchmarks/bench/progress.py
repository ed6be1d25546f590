"""How far a run is: a bar on a terminal, plain lines elsewhere; both on standard error."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts requests. Everything that is told goes through `say`, so that it does not tear the bar."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="request", file=sys.stderr, disable=not sys.stderr.isatty())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def begins(self, cell: str) -> None:
        """What is measured from now on."""
        self._bar.set_description(cell)

    def done(self, requests: int = 1) -> None:
        """So many requests are answered, or will not be asked."""
        self._bar.update(requests)

    def ends(self, told: str) -> None:
        """What a cell came to: a line where there is no bar."""
        if self._bar.disable:
            say(told)


def say(text: str) -> None:
    """Tell people something in passing."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
