"""A stand-in for CUDA graphs."""

from collections.abc import Callable


class Again:
    """Replays by calling the forward again; counts what happens."""

    def __init__(self) -> None:
        self.warmed = self.captured = self.replayed = self.settled = 0

    def warm(self, run: Callable[[], None]) -> None:
        self.warmed += 1
        run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay

    def settle(self) -> None:
        self.settled += 1
