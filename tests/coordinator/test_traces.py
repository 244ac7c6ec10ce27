"""Rounds as OpenTelemetry's spans, and where they are sent."""

from __future__ import annotations

import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from artel.coordinator import traces
from artel.protocol.events import emit

log = logging.getLogger("artel.coordinator")
RUN = "ab" * 32


def happened() -> None:
    """A round that comes to nothing, and again."""
    emit(log, "round.committed", round=3, commitments=2)  # opened before this process
    emit(log, "round.opened", round=4, members=3)
    emit(log, "round.committed", round=4, commitments=1)
    emit(log, "round.failed", round=4, accepted=0, rejected="-")
    emit(log, "round.opened", round=4, members=2)
    emit(log, "round.handed_back", node="…a", reason="stopped")  # by one node; the others go on
    emit(log, "head.cosigned", size=3)
    emit(log, "round.committed", round=4, commitments=2)
    emit(log, "round.closed", round=4, accepted=2, rejected="-")
    emit(log, "state.agreed", round=5, root="ab", signers=2)


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "artel")
    for name in traces.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)


def test_each_attempt_is_a_span_with_its_phases_below_it() -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    handler = traces.Traces(provider.get_tracer("test"), RUN)
    logging.getLogger("artel").addHandler(handler)
    try:
        happened()
    finally:
        logging.getLogger("artel").removeHandler(handler)
    spans = kept.get_finished_spans()
    failed, agreed = [span for span in spans if span.name == "round"]
    assert [span.name for span in spans if span.parent and span.parent == failed.context] == [
        "train",
        "reveal",
    ]
    phases = [span for span in spans if span.parent and span.parent == agreed.context]
    assert [span.name for span in phases] == ["train", "reveal", "apply"]
    assert len(spans) == 7
    assert (failed.status.is_ok, agreed.status.is_ok) == (False, True)
    assert agreed.attributes is not None
    assert dict(agreed.attributes) == {
        "artel.run": RUN,
        "artel.round": 4,
        "artel.members": 2,
    }
    # They follow each other without a gap, and fill the round.
    ends = [agreed.start_time, *(span.end_time for span in phases)]
    assert [span.start_time for span in phases] == ends[:-1]
    assert ends[-1] == agreed.end_time


def test_they_are_sent_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent.append((self.path, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    try:
        with traces.tracing(RUN):
            happened()
    finally:
        server.shutdown()
        server.server_close()
    assert {path for path, _ in sent} == {"/v1/traces"}
    names = [
        span.name
        for _, body in sent
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert sorted(names) == ["apply", "reveal", "reveal", "round", "round", "train", "train"]


def test_without_an_endpoint_or_the_extra_nothing_is_traced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("artel"), "propagate", True)
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.setitem(sys.modules, name, None)
    before = list(logging.getLogger("artel").handlers)
    with traces.tracing(RUN):
        assert logging.getLogger("artel").handlers == before
    assert not caplog.records
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with traces.tracing(RUN):
        happened()
    assert caplog.records[0].message == "traces.not_installed"
