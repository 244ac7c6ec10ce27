"""What a node shows its owner: its work, its credit and its traffic, in JSON and as metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil
from prometheus_client.core import Metric

from artel.ledger.fold.shares import share_of
from artel.ledger.web.exposition import metric

if TYPE_CHECKING:
    from artel.node.daemon import Daemon


def overview(daemon: Daemon) -> dict[str, Any]:
    """Everything that ``artel node status`` shows.

    ``credit`` is vested and pending; ``awaiting`` is accepted, but its state is not agreed yet;
    ``served`` and ``fetched`` are the bytes of content by peer.
    ``unsealed`` are the electors whose seals are missing while nobody leads.
    ``share`` is what it would be if everything that is pending vested.
    """
    session, fold = daemon.session, daemon.session.replica.state
    account, directive = session.account_name, daemon.directive
    owned = fold.accounts.get(account)
    traffic, report = session.host.traffic, daemon.report()
    return {
        **report.model_dump(exclude={"validation"}),
        "run": session.run,
        "name": session.manifest.config.run.name,
        "node": session.identity.peer_id,
        "account": account,
        "task": directive.task if directive else "",
        "reason": directive.reason if directive else "not connected yet",
        "rounds_total": session.manifest.config.rounds.total,
        "computing": report.computing,
        "credit": daemon.credit(),
        "vested": owned.vested if owned else 0,
        "pending": owned.pending if owned else 0,
        "awaiting": fold.awaiting().get(account, 0),
        "rejected": fold.rejected.get(session.identity.peer_id, {}),
        "share": share_of(fold, account, with_pending=True),
        "ledger_size": session.replica.store.size,
        "cosigned_size": daemon.cosigner.size,
        "final_size": fold.final,
        "reachable": daemon.reachable,
        "doubtful": daemon.watch.doubtful,
        "served": dict(traffic.served),
        "fetched": dict(traffic.fetched),
        "memory_daemon": psutil.Process().memory_info().rss,
        "memory_trainer": session.trainer.memory_bytes() or 0,
        "coordinator_lost": session.link.lost_since is not None,
        "term": fold.term.number,
        "sealed": session.sealing.term,
        "waiting": session.sealing.waiting(),
        "unsealed": session.sealing.unsealed(),
        "uptime": time.time() - daemon.started,
        "last_error": daemon.last_error,
    }


def gauges(now: dict[str, Any]) -> Iterator[Metric]:
    """Families of :func:`overview`; the coordinator's have the same names."""
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
    yield metric("artel_term", "In which one coordinator leads.", now["term"])
    yield metric("artel_coordinator_lost", "1 while it does not answer.", now["coordinator_lost"])
    yield metric("artel_sent_bytes_total", "By kind of traffic.", now["up_by_kind"], "kind")
    yield metric("artel_received_bytes_total", "By kind of traffic.", now["down_by_kind"], "kind")
