"""Numbers of a node for ``/metrics``, from the document that it shows its owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import Metric

from artel.ledger.web.exposition import metric


def gauges(now: dict[str, Any]) -> Iterator[Metric]:
    """Families of :func:`node.overview.overview`; the coordinator's have the same names."""
    credit = {state: now[state] for state in ("vested", "pending", "awaiting")}
    memory = {"daemon": now["memory_daemon"], "trainer": now["memory_trainer"]}
    yield metric("artel_round", "The round under way.", now["round"])
    yield metric("artel_rounds", "Rounds of the run.", now["rounds_total"])
    yield metric("artel_phase", "1 for the present phase.", {now["phase"]: 1}, "phase")
    yield metric("artel_step", "Inner steps done in it.", now["step"])
    yield metric("artel_loss", "Training, nats per token.", now["loss"])
    yield metric("artel_tokens_per_second", "Trained on.", now["tokens_per_second"])
    yield metric("artel_credit", "Of the account.", credit, "state")
    yield metric("artel_share_ratio", "If all that is pending vests.", now["share"])
    yield metric("artel_ledger_entries", "Entries held and checked.", now["ledger_size"])
    yield metric("artel_ledger_cosigned_entries", "Under own cosignature.", now["cosigned_size"])
    yield metric("artel_memory_bytes", "Of each process.", memory, "process")
    yield metric("artel_coordinator_lost", "1 while it does not answer.", now["coordinator_lost"])
    yield metric("artel_sent_bytes_total", "By kind of traffic.", now["up_by_kind"], "kind")
    yield metric("artel_received_bytes_total", "By kind of traffic.", now["down_by_kind"], "kind")
