"""Server-sent events of a completion stream: bytes in, the data of each event out. Touches no network."""

from collections.abc import Iterator

from trimtab.engine.remote.failures import garbage

LONGEST = 64 * 1024 * 1024
"""bytes of one event"""


class Events:
    """Cuts a stream into the data of its events, until `[DONE]`; comments and other fields are passed over.

    Lines may end with LF or CRLF. Events of several data lines are joined by line breaks (HTML standard, 9.2.6).
    """

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of each event that is complete now; Failed for one that is too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line:
                if line.startswith(b"data:"):
                    self._data.append(line[5:].removeprefix(b" "))
                continue
            whole, self._data = b"\n".join(self._data), []
            if whole == b"[DONE]":
                self.ended = True
                return
            if whole:
                yield whole
        if len(self._rest) + sum(map(len, self._data)) > LONGEST:
            raise garbage("streamed an event without an end")
