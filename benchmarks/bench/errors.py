"""What stops a benchmark, in words for the person who started it."""


class BenchError(Exception):
    """The run cannot begin or go on; the message says what to change."""


class ServerGone(BenchError):
    """The server stayed away for longer than the run waits; what was measured is kept."""
