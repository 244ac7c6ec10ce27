"""Spans of the rounds for OpenTelemetry, from the events that the coordinator logs anyhow.

Where they go is said by OpenTelemetry's own environment variables, and without an endpoint there
(``OTEL_EXPORTER_OTLP_ENDPOINT``) nothing of it is loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from artel import __version__
from artel.protocol.events import emit

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger("artel.coordinator")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
NEXT = {
    "round.opened": "train",
    "round.committed": "reveal",
    "round.closed": "apply",
    "state.agreed": "",
    "round.failed": "",
    "run.rolled_back": "",
}
"""Event to the phase that it begins; "" when the attempt is over."""


class Traces(logging.Handler):
    """A handler of the log that makes one span of each attempt, with one of each phase below it.

    :param run: the run's id
    """

    def __init__(self, tracer: Tracer, run: str) -> None:
        super().__init__()
        self._tracer, self._run = tracer, run
        self._attempt: Span | None = None
        self._phase: Span | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Begin and end spans at the time of the event."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        name = getattr(record, "event", "")
        if name not in NEXT:
            return
        when, fields = int(record.created * 1e9), getattr(record, "fields", {})
        if name == "round.opened":
            self._over(when)
            said = {"artel.run": self._run, "artel.members": fields["members"]}
            said["artel.round"] = fields["round"]
            self._attempt = self._tracer.start_span("round", start_time=when, attributes=said)
        if self._attempt is None:
            return  # it began before this process
        if self._phase is not None:
            self._phase.end(when)
        if phase := NEXT[name]:
            within = set_span_in_context(self._attempt)
            self._phase = self._tracer.start_span(phase, within, start_time=when)
            return
        if name != "state.agreed":
            self._attempt.set_status(StatusCode.ERROR, name)
        self._over(when)

    def _over(self, when: int) -> None:
        for span in (self._phase, self._attempt):
            if span is not None and span.is_recording():
                span.end(when)
        self._phase = self._attempt = None


@contextmanager
def tracing(run: str) -> Iterator[None]:
    """Send spans of this process's rounds while the block runs, where the environment says so."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        hint = "pip install 'artel-network[traces]'"
        emit(log, "traces.not_installed", logging.WARNING, hint=hint)
        yield
        return
    provider, root = TracerProvider(), logging.getLogger("artel")
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    handler = Traces(provider.get_tracer("artel", __version__), run)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        provider.shutdown()
