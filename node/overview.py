"""What a node shows its owner: its work, credit and traffic, in JSON, in words and as metrics."""

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

ONE_WAY = "by nobody: it opens all connections itself, and the coordinator passes its work on"
ALONE = "it does not answer, this node keeps trying"


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
        "rounds_total": session.rounds.total,
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


def words(now: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is shown to people, line by line: a name and what is so.

    :param now: :func:`overview`, with the address of its ``page``
    """
    step = f", step {now['step']}/{now['steps']}" if now["phase"] == "training" else ""
    loss = "unknown yet" if now["loss"] is None else f"{now['loss']:.3f} nats per token"
    seconds = "  ".join(f"{name} {value:.2f}" for name, value in now["seconds"].items())
    used = now["computing"]
    yield "run", f"{now['name']} ({now['run'][:12]}…)"
    yield "node", now["node"]
    yield "account", f"{now['account'][:16]}…"
    yield "doing", f"{now['phase']}{step} ({now['resting'] or now['reason']})"
    yield "limits", now["limits"]
    yield "round", f"{now['state_round']} of {now['rounds_total']} agreed"
    yield "loss", loss
    yield "speed", f"{now['tokens_per_second']:,.0f} tokens/s"
    yield "computing", "unknown yet" if used is None else f"{100 * used:.1f} % of the last round"
    yield "up", _traffic(now["up_by_kind"])
    yield "down", _traffic(now["down_by_kind"])
    yield "served", _peers(now["served"])
    yield "fetched", _peers(now["fetched"])
    yield (
        "credit",
        (
            f"{now['vested']:,} vested, {now['pending']:,} pending, {now['awaiting']:,} "
            f"awaiting agreement ({100 * now['share']:.1f} % of the model, with pending)"
        ),
    )
    yield "rejected", ", ".join(f"{n} × {why}" for why, n in now["rejected"].items()) or "none"
    held = f"{now['ledger_size']:,} entries, {now['cosigned_size']:,} of them cosigned"
    yield "ledger", f"{held}, {now['final_size']:,} final"
    yield "reached", "directly" if now["reachable"] else ONE_WAY
    yield "page", now["page"]
    yield (
        "memory",
        (
            f"daemon {now['memory_daemon'] / 1e6:.0f} MB, "
            f"trainer {now['memory_trainer'] / 1e6:.0f} MB"
        ),
    )
    yield "last round", f"{seconds} (seconds)" if seconds else "none yet"
    if now["coordinator_lost"] or now["waiting"]:
        waits = now["waiting"] or ALONE
        # One that has sealed the term, and is answered, waits alone: others make entries final.
        final = "nothing becomes final here, " if now["coordinator_lost"] else ""
        yield "coordinator", f"{waits}; {final}what is assigned is trained meanwhile"
    if now["last_error"]:
        yield "last error", now["last_error"]


def _traffic(by_kind: dict[str, int]) -> str:
    total = sum(by_kind.values())
    parts = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in sorted(by_kind.items()))
    return f"{total / 1e6:.2f} MB ({parts})" if parts else "0 MB"


def _peers(by_peer: dict[str, int]) -> str:
    """Who gave or got most; the others are summed up."""
    ranked = sorted(by_peer.items(), key=lambda item: -item[1])
    parts = [f"…{peer[-8:]} {size / 1e6:.2f} MB" for peer, size in ranked[:4]]
    if len(ranked) > 4:
        parts.append(f"{len(ranked) - 4} more {sum(s for _, s in ranked[4:]) / 1e6:.2f} MB")
    return ", ".join(parts) or "nobody yet"
