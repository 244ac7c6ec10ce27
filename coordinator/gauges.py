"""Numbers of a run for ``/metrics``, from the document that the API serves as its status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import Metric

from artel.ledger.web.exposition import metric


def gauges(status: dict[str, Any]) -> Iterator[Metric]:
    """Families of :func:`coordinator.api.status_facts`; a node's have the same names.

    Losses, speeds and bytes are what nodes say of themselves.
    """
    last, ledger = status["last_round"], status["ledger"]
    newest = status["validation"]["last"]
    nodes = {node["node"]: node for node in status["nodes"]}

    def of_nodes(field: str) -> dict[str, float | None]:
        return {peer: node[field] for peer, node in nodes.items()}

    yield metric("artel_round", "The round under way.", status["round"])
    yield metric("artel_rounds", "Rounds of the run.", status["total"])
    yield metric("artel_phase", "1 for the present phase.", {status["phase"]: 1}, "phase")
    yield metric("artel_nodes", "Nodes that are connected.", len(nodes))
    yield metric("artel_members", "Members of the round under way.", status["members"])
    yield metric("artel_ledger_entries", "Entries of the ledger.", ledger["size"])
    yield metric("artel_ledger_final_entries", "Entries that are final.", ledger["final"])
    yield metric("artel_validation_loss", "Nats per token.", newest and newest["loss"])
    yield metric("artel_round_seconds", "Of the last round.", last["seconds"], "phase")
    yield metric("artel_round_tokens", "Accepted in the last round.", last["tokens"])
    yield metric("artel_computing_ratio", "Of the nodes' time in it.", last["computing"])
    yield metric("artel_loss", "Training, nats per token.", of_nodes("loss"), "node")
    yield metric("artel_tokens_per_second", "Trained on.", of_nodes("tokens_per_second"), "node")
    yield metric("artel_credit", "Ever granted for compute.", of_nodes("credit"), "node")
    yield metric("artel_heard_seconds", "Since the last report.", of_nodes("heard_s"), "node")
    yield metric("artel_sent_bytes_total", "By each node.", of_nodes("bytes_up"), "node")
    yield metric("artel_received_bytes_total", "By each node.", of_nodes("bytes_down"), "node")
