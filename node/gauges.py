"""Numbers of a node for ``/metrics``, from the document that it shows its owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import Metric

from artel.ledger.web.exposition import counter, gauge


def gauges(now: dict[str, Any]) -> Iterator[Metric]:
    """Families of :func:`node.overview.overview`; the coordinator's have the same names."""
    credit = {state: now[state] for state in ("vested", "pending", "awaiting")}
    memory = {"daemon": now["memory_daemon"], "trainer": now["memory_trainer"]}
    yield gauge("artel_round", "The round under way.", now["round"])
    yield gauge("artel_rounds", "Rounds of the run.", now["rounds_total"])
    yield gauge("artel_phase", "1 for the present phase.", {now["phase"]: 1}, "phase")
    yield gauge("artel_step", "Inner steps done in it.", now["step"])
    yield gauge("artel_loss", "Training, nats per token.", now["loss"])
    yield gauge("artel_tokens_per_second", "Trained on.", now["tokens_per_second"])
    yield gauge("artel_credit", "Of the account.", credit, "state")
    yield gauge("artel_share_ratio", "If all that is pending vests.", now["share"])
    yield gauge("artel_ledger_entries", "Entries held and checked.", now["ledger_size"])
    yield gauge("artel_ledger_cosigned_entries", "Under own cosignature.", now["cosigned_size"])
    yield gauge("artel_memory_bytes", "Of each process.", memory, "process")
    yield gauge("artel_coordinator_lost", "1 while it does not answer.", now["coordinator_lost"])
    yield counter("artel_sent_bytes", "By kind of traffic.", now["bytes_up"], "kind")
    yield counter("artel_received_bytes", "By kind of traffic.", now["bytes_down"], "kind")
