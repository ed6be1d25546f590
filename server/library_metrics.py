"""The store of norms as Prometheus families, read when they are asked for."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from trimtab.decoders.library.errors import LibraryError
from trimtab.server.engine_metrics import add

if TYPE_CHECKING:
    from trimtab.decoders.library import Norms

log = logging.getLogger("trimtab.server")


class LibraryCollector(Collector):
    """Reads the numbers of the store when they are asked for."""

    def __init__(self, norms: "Norms") -> None:
        self._norms = norms

    def collect(self) -> Iterator[Metric]:
        """How many norms there are, how many were given, and how long finding them took.

        Where the store cannot be read, the first is left out.
        """
        try:
            stored = len(self._norms)
        except LibraryError as error:
            log.warning("metrics leave out trimtab:norms: %s", error)
        else:
            norms = GaugeMetricFamily("trimtab:norms", "Norms that are stored", labels=[])
            add(norms, [], stored)
            yield norms
        retrieved = CounterMetricFamily("trimtab:norms_retrieved", "Norms found for queries", labels=[])
        add(retrieved, [], self._norms.retrieved)
        yield retrieved
        seconds = HistogramMetricFamily(
            "trimtab:norms_retrieval_seconds", "Seconds to find the norms of a query", labels=[]
        )
        add(seconds, [], self._norms.retrieval)
        yield seconds
