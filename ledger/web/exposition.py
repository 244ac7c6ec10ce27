"""What a daemon serves beside its ledger: its page, its documents, and numbers at ``/metrics``.

The numbers are those that the pages and the API show, as of the moment of asking, in the text
format that Prometheus and its kin read; nothing is kept between two questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
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

from artel.ledger.web.directory import add_directory
from artel.ledger.web.live import LivePage
from artel.ledger.web.openapi import NOTE, PLAIN, SILENT, says
from artel.ledger.web.server import Gate, Handler
from artel.ledger.web.site import LedgerSite
from artel.protocol.net.doors import Directory

LIVE_PATH = "/live"
_DUMPS = partial(json.dumps, allow_nan=False)

Document = Callable[[], dict[str, Any]]
"""An object of a daemon's API, as of now; called in a thread, as it may take a while."""
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
    live: LivePage,
    documents: Mapping[str, Document],
    numbers: Callable[[dict[str, Any]], Iterable[Metric]],
    directory: Directory,
) -> web.Application:
    """All that a daemon serves behind a gate: its ledger, and what is its own.

    :param page: answers ``/``
    :param live: what changes on it, at ``/live``
    :param documents: name to the object at ``/api/v1/NAME``, the ``status`` among them; each says
        of itself what it is
    :param numbers: families of ``/metrics``, from the status
    :param directory: the public runs that it knows of
    """

    @says("The numbers of the status, for Prometheus.", None, PLAIN)
    async def metrics(request: web.Request) -> web.Response:
        status = documents["status"]
        data = await site.made("metrics", lambda: _exposed(gate, numbers(status())))
        return web.Response(body=data, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = gate.application()
    app.router.add_get("/", page)
    app.router.add_get(LIVE_PATH, gate.streaming(live.stream), allow_head=False)
    app.on_shutdown.append(live.close)
    app.router.add_get("/metrics", metrics)
    for name, document in documents.items():
        app.router.add_get(f"/api/v1/{name}", _json_of(site, name, document))
    site.add_routes(app)
    add_directory(app, site, directory)
    return app


def _json_of(site: LedgerSite, name: str, document: Document) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return await object_of(site, name, document)

    setattr(answer, NOTE, getattr(document, NOTE, SILENT))
    return answer


async def object_of(site: LedgerSite, key: Hashable, document: Document) -> web.Response:
    """The answer with an object; ``key`` says which (:meth:`ledger.web.site.LedgerSite.made`)."""
    data = await site.made(key, lambda: _encoded(document()))
    return web.Response(body=data, content_type="application/json", charset="utf-8")


def _encoded(facts: dict[str, Any]) -> bytes:
    """JSON; lists item by item, as one call of the encoder lets no other thread run."""
    parts = (f"{_DUMPS(name)}: {_text(value)}" for name, value in facts.items())
    return f"{{{', '.join(parts)}}}".encode()


def _text(value: object) -> str:
    return f"[{', '.join(map(_DUMPS, value))}]" if isinstance(value, list) else _DUMPS(value)


def _exposed(gate: Gate, families: Iterable[Metric]) -> bytes:
    """These numbers, those of the web server, and of the process."""
    counted = dict(gate.answers)  # it goes on counting
    answers = metric("artel_http_answers_total", "Answers by HTTP status.", counted, "status")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Now([*families, answers]))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Now(Collector):
    """Families as they are now."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
