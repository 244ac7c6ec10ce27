"""What a node shows its owner: its work, its credit and its traffic, as plain JSON values."""

from __future__ import annotations

import time
from typing import Any

import psutil

from artel.ledger.fold.shares import share_of
from artel.node.daemon import Daemon


def overview(daemon: Daemon) -> dict[str, Any]:
    """Everything that ``artel node status`` shows.

    ``credit`` is vested and pending; ``awaiting`` is accepted, but its state is not agreed yet;
    ``served`` and ``fetched`` are the bytes of content by peer.
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
        "doubtful": daemon.watch.doubtful,
        "served": dict(traffic.served),
        "fetched": dict(traffic.fetched),
        "memory_daemon": psutil.Process().memory_info().rss,
        "memory_trainer": session.trainer.memory_bytes() or 0,
        "coordinator_lost": session.link.lost_since is not None,
        "uptime": time.time() - daemon.started,
        "last_error": daemon.last_error,
    }
