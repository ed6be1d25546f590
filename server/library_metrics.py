"""The store of norms as Prometheus families, read when they are asked for."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from trimtab.engine.tally import Tally
from trimtab.server.engine_metrics import add


class Store(Protocol):
    """What is told of the norms that a server keeps."""

    @property
    def retrieval(self) -> Tally:
        """Seconds that each retrieval took."""
        ...

    @property
    def retrieved(self) -> int:
        """Norms that they gave, in all."""
        ...

    def __len__(self) -> int:
        """Norms that are stored."""
        ...


class LibraryCollector(Collector):
    """Reads the numbers of the store when they are asked for."""

    def __init__(self, norms: Store) -> None:
        self._norms = norms

    def collect(self) -> Iterator[Metric]:
        """How many norms there are, how many were given, and how long finding them took."""
        numbers: tuple[tuple[GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily, float | Tally], ...] = (
            (GaugeMetricFamily("trimtab:norms", "Norms that are stored", labels=[]), len(self._norms)),
            (
                CounterMetricFamily("trimtab:norms_retrieved", "Norms found for queries", labels=[]),
                self._norms.retrieved,
            ),
            (
                HistogramMetricFamily(
                    "trimtab:norms_retrieval_seconds", "Seconds to find the norms of a query", labels=[]
                ),
                self._norms.retrieval,
            ),
        )
        for family, number in numbers:
            add(family, [], number)
            yield family
