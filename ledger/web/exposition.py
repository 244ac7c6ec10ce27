"""What a daemon serves beside its ledger: its page, its documents, and numbers at ``/metrics``.

The numbers are those that the pages and the API show, as of the moment of asking, in the text
format that Prometheus and its kin read; nothing is kept between two questions.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from artel.ledger.web.server import Gate, Handler
from artel.ledger.web.site import LedgerSite

_DUMPS = partial(json.dumps, allow_nan=False)

Document = Callable[[web.Request], Awaitable[dict[str, Any]]]
"""An object of a daemon's API, as of now."""
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


def application(
    gate: Gate,
    site: LedgerSite,
    page: Handler,
    documents: Mapping[str, Document],
    numbers: Callable[[dict[str, Any]], Iterable[Metric]],
) -> web.Application:
    """All that a daemon serves behind a gate: its ledger, and what is its own.

    :param page: answers ``/``
    :param documents: name to the object at ``/api/v1/NAME``, the ``status`` among them
    :param numbers: families of ``/metrics``, from the status
    """

    async def metrics(request: web.Request) -> web.Response:
        return _exposed(gate, numbers(await documents["status"](request)))

    app = gate.application()
    app.router.add_get("/", page)
    app.router.add_get("/metrics", metrics)
    for name, document in documents.items():
        app.router.add_get(f"/api/v1/{name}", _json_of(document))
    site.add_routes(app)
    return app


def _json_of(document: Document) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(await document(request), dumps=_DUMPS)

    return answer


def _exposed(gate: Gate, families: Iterable[Metric]) -> web.Response:
    """These numbers, those of the web server, and of the process."""
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
