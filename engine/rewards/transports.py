"""How the calls of far rewards travel: HTTP, or what a deployment registers for its own kind of address."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.remote.client import Connection
from trimtab.engine.remote.settings import ConnectionSettings
from trimtab.engine.remote.stats import RemoteStats


class Transport(Protocol):
    """The way to one server. Thread-safe."""

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that the server answers; blocks. Raises RemoteUnavailable or RemoteError."""
        ...

    def close(self) -> None:
        """End all calls."""
        ...


Factory = Callable[[ConnectionSettings, RemoteStats], Transport]
"""makes the transport to the server that the settings name, and lets it count its calls"""


class Http:
    """Calls over HTTP."""

    def __init__(self, settings: ConnectionSettings, stats: RemoteStats) -> None:
        self._connection = Connection(settings, stats)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that the server answers to a POST."""
        return self._connection.send("POST", path, body).result()

    def close(self) -> None:
        """Close the connections; calls under way are cancelled."""
        self._connection.close()


_FACTORIES: Final[dict[str, Factory]] = {"http": Http, "https": Http}


def register(scheme: str, factory: Factory) -> None:
    """Let addresses `scheme://...` be reached by what `factory` makes."""
    _FACTORIES[scheme] = factory


def connect(settings: ConnectionSettings, stats: RemoteStats) -> Transport:
    """The transport to a server; ModelLoadError for an address that nothing can reach."""
    scheme = settings.url.partition("://")[0]
    if scheme not in _FACTORIES:
        known = ", ".join(f"{each}://" for each in sorted(_FACTORIES))
        raise ModelLoadError(f"url: nothing here reaches {scheme}://; use one of {known}")
    return _FACTORIES[scheme](settings, stats)
