"""Numbers of a process at ``/metrics``, in the text format that Prometheus and its kin read.

The numbers are those that the pages and the API show, as of the moment of asking; nothing is kept
between two questions and nothing is global.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from artel.ledger.web.server import Gate

Values = float | Mapping[str, float | None] | None
"""A number, or numbers by the value of a label; None is not known and not shown."""


def metric(name: str, help: str, values: Values, label: str = "") -> Metric:
    """A counter (what only grows) where the name ends with ``_total``, or else a gauge."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family = kind(name, help, labels=[label] if label else [])
    for value, number in (values if isinstance(values, Mapping) else {"": values}).items():
        if number is not None:
            family.add_metric([value] if label else [], number)
    return family


def exposed(gate: Gate, families: Iterable[Metric]) -> web.Response:
    """The answer of ``/metrics``: these numbers, those of the web server, and of the process."""
    answers = metric("artel_http_answers_total", "Answers by HTTP status.", gate.answers, "status")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Now([*families, answers]))
    ProcessCollector(registry=registry)
    headers = {"Content-Type": CONTENT_TYPE_LATEST}
    return web.Response(body=generate_latest(registry), headers=headers)


class _Now(Collector):
    """Families as they are now."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
