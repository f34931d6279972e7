"""Families of samples, and their text for Prometheus, which may ask for that of OpenMetrics.

Pure but for `Exposition.scrape`, which asks for the families and for what the kernel says of the
process; it blocks on nothing and never fails. For the Trio thread.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics

from primeflowd.histogram import Histogram

Family: TypeAlias = Metric
Samples: TypeAlias = Iterable[tuple[tuple[str, ...], float]]

_OPENMETRICS: Final = "application/openmetrics-text"


class Exposition:
    """Answers scrapes, each with what `families()` gives then."""

    def __init__(self, families: Callable[[], Iterator[Family]]) -> None:
        self._families = families
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Family]:
        """What the library asks for."""
        return self._families()

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, for the header `Accept` of the request."""
        if _OPENMETRICS in accept.lower():
            body: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]  # has no hints
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4


def info(name: str, meaning: str, of: Mapping[str, str]) -> Family:
    return InfoMetricFamily(f"primeflowd_{name}", meaning, dict(of))


def gauge(name: str, meaning: str, value: float) -> Family:
    return GaugeMetricFamily(f"primeflowd_{name}", meaning, float(value))


def labelled_gauge(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Family:
    family = GaugeMetricFamily(f"primeflowd_{name}", meaning, labels=(label,))
    for labelled, value in values.items():
        family.add_metric((labelled,), float(value))
    return family


def counter(name: str, meaning: str, labels: tuple[str, ...], samples: Samples) -> Family:
    family = CounterMetricFamily(f"primeflowd_{name}", meaning, labels=labels)
    for values, count in samples:
        family.add_metric(values, count)
    return family


def histogram(name: str, meaning: str, of: Histogram) -> Family:
    bounds = [*(repr(bound / of.unit) for bound in of.bounds), "+Inf"]
    family = HistogramMetricFamily(f"primeflowd_{name}", meaning)
    family.add_metric((), list(zip(bounds, accumulate(of.counts), strict=True)), of.total / of.unit)
    return family
