"""Numbers of a run for ``/metrics``, from the document that the API serves as its status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import Metric

from artel.ledger.web.exposition import counter, gauge


def gauges(status: dict[str, Any]) -> Iterator[Metric]:
    """Families of :func:`coordinator.api.status_facts`; a node's have the same names.

    Losses, speeds and bytes are what nodes say of themselves.
    """
    last, ledger = status["last_round"], status["ledger"]
    newest = status["validation"]["last"]
    nodes = {node["node"]: node for node in status["nodes"]}

    def of_nodes(field: str) -> dict[str, float | None]:
        return {peer: node[field] for peer, node in nodes.items()}

    yield gauge("artel_round", "The round under way.", status["round"])
    yield gauge("artel_rounds", "Rounds of the run.", status["total"])
    yield gauge("artel_phase", "1 for the present phase.", {status["phase"]: 1}, "phase")
    yield gauge("artel_nodes", "Nodes that are connected.", len(nodes))
    yield gauge("artel_members", "Members of the round under way.", status["members"])
    yield gauge("artel_ledger_entries", "Entries of the ledger.", ledger["size"])
    yield gauge("artel_ledger_final_entries", "Entries that are final.", ledger["final"])
    yield gauge("artel_validation_loss", "Nats per token.", newest and newest["loss"])
    yield gauge("artel_round_seconds", "Of the last round.", last["seconds"], "phase")
    yield gauge("artel_round_tokens", "Accepted in the last round.", last["tokens"])
    yield gauge("artel_computing_ratio", "Of the nodes' time in it.", last["computing"])
    yield gauge("artel_loss", "Training, nats per token.", of_nodes("loss"), "node")
    yield gauge("artel_tokens_per_second", "Trained on.", of_nodes("tokens_per_second"), "node")
    yield gauge("artel_credit", "Ever granted for compute.", of_nodes("credit"), "node")
    yield gauge("artel_heard_seconds", "Since the last report.", of_nodes("heard_s"), "node")
    yield counter("artel_sent_bytes", "By each node.", of_nodes("bytes_up"), "node")
    yield counter("artel_received_bytes", "By each node.", of_nodes("bytes_down"), "node")
