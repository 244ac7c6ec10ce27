"""What a coordinator tells the world, as plain JSON values, and as numbers for ``/metrics``.

The API serves these documents as they are, and the page shows nothing else, so the two never
disagree. Losses, speeds and byte counts are what nodes report of themselves; rounds, credit and
shares come from the ledger. What takes longer with nodes or rounds is for a thread of the site's:
it changes nothing, and copies what the event loop may change meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from prometheus_client.core import Metric
from pydantic import Field

from artel.coordinator.metrics import MemberMetrics, RoundMetrics, RoundSums
from artel.coordinator.peer import Peer
from artel.coordinator.releasing import ReleaseFacts
from artel.coordinator.service import Coordinator
from artel.coordinator.wording import exchange_words
from artel.ledger.store import finality
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.web.exposition import metric
from artel.protocol import members
from artel.protocol.manifest import Manifest
from artel.protocol.messages import Count, Loss, Report, Seconds
from artel.protocol.schema import Record


def run_facts(core: Coordinator, invite: str) -> dict[str, Any]:
    """What the run is; never changes. ``exchange`` says in words how it exchanges."""
    manifest = core.manifest
    return {
        "run": core.run,
        "name": manifest.config.run.name,
        "description": manifest.config.run.description,
        "organiser": manifest.organiser,
        "parameters": manifest.model.parameters,
        "tokens_per_step": core.work.tokens(1),
        "tokens_per_node_and_round": core.work.tokens(core.work.inner_steps),
        "exchange": exchange_words(manifest.config),
        "invite": invite,
        "manifest": manifest.model_dump(mode="json"),
    }


def status_facts(core: Coordinator, release: ReleaseFacts | None = None) -> dict[str, Any]:
    """How the run goes now.

    :param release: the model that is offered
    """
    state, rules = core.state, core.rules
    ready = len(members.ready(state))
    return {
        "run": core.run,
        "name": core.manifest.config.run.name,
        "role": "leader",
        "term": core.ledger.store.term,
        "leader": core.identity.key,
        "ending": core.ending,
        "not_ending": core.not_ending,
        "phase": state.phase.value,
        "round": state.round,
        "total": rules.total,
        "paused": rules.paused,
        "stuck": core.ledger.state.stuck,
        "setbacks": core.ledger.state.kinds.get("diverged", 0),
        "amendments": [
            {"entry": one.index, "round": one.round, "changes": one.changes}
            for one in core.ledger.state.amendments
        ],
        "attempt": state.attempt,
        "state_root": state.base,
        "members": len(state.members),
        "committed": len(state.commitments),
        "revealed": len(state.revealed),
        "waiting_for": max(0, rules.min_nodes - ready) if state.phase.value == "waiting" else 0,
        "validation": _validation(core),
        "nodes": _nodes(core),
        "last_round": _last_round(core),
        "ledger": _ledger(core),
        "release": release and release.model_dump(),
    }


def rounds_facts(core: Coordinator, last: int) -> dict[str, Any]:
    """The newest ``last`` rounds that have numbers (0: all), oldest first: each summed over its
    members."""
    return {"total": core.rules.total, "rounds": core.metrics.table(last)}


def gauges(status: dict[str, Any]) -> Iterator[Metric]:
    """Families of :func:`status_facts`; a node's have the same names.

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
    yield metric("artel_setbacks_total", "How often training diverged.", status["setbacks"])
    yield metric("artel_round_seconds", "Of the last round.", last["seconds"], "phase")
    yield metric("artel_round_tokens", "Accepted in the last round.", last["tokens"])
    yield metric("artel_computing_ratio", "Of the nodes' time in it.", last["computing"])
    yield metric("artel_loss", "Training, nats per token.", of_nodes("loss"), "node")
    yield metric("artel_tokens_per_second", "Trained on.", of_nodes("tokens_per_second"), "node")
    yield metric("artel_credit", "Ever granted for compute.", of_nodes("credit"), "node")
    yield metric("artel_heard_seconds", "Since the last report.", of_nodes("heard_s"), "node")
    yield metric("artel_sent_bytes_total", "By each node.", of_nodes("bytes_up"), "node")
    yield metric("artel_received_bytes_total", "By each node.", of_nodes("bytes_down"), "node")


def _nodes(core: Coordinator) -> list[dict[str, Any]]:
    """The connected nodes, members first: a page has room for so many, which strangers are not to
    fill."""
    now, peers, members = core.clock(), dict(core.peers), frozenset(core.state.members)
    order = sorted(peers, key=lambda peer: (peer not in members, peer))
    return [_node(core, peer, peers[peer], peer in members, now) for peer in order]


def _node(core: Coordinator, peer: str, known: Peer, member: bool, now: float) -> dict[str, Any]:
    """What a node says of itself, and what is known of it.

    ``credit`` is all compute that was ever granted for its work, ``assigned`` are its inner steps
    in the round under way; ``round_up`` and ``round_down`` what it sent and received in the last
    round, and ``computing`` how much of its time it computed.
    """
    fold, report = core.ledger.state, known.report
    tokens = fold.node_tokens.get(peer, 0)
    last = _newest(core).by_member.traffic.get(peer)
    return report.model_dump(mode="json", exclude={"validation"}) | {
        "node": peer,
        "account": fold.account_of(peer),
        "tokens": tokens,
        "credit": tokens * (fold.rules.rates["compute"] if fold.rules is not None else 0),
        "member": member,
        "assigned": core.assigned(peer),
        "round_up": sum(last["up"].values()) if last else None,
        "round_down": sum(last["down"].values()) if last else None,
        "computing": report.computing,
        "heard_s": round(max(0.0, now - known.heard), 1),
    }


def _validation(core: Coordinator) -> dict[str, Any]:
    """First and newest evaluation: the loss of the state that a round starts from."""
    known = [
        {"round": number, "loss": metrics.validation}
        for number, metrics in sorted(dict(core.metrics.rounds).items())
        if metrics.validation is not None
    ]
    return {"first": known[0], "last": known[-1]} if known else {"first": None, "last": None}


def _last_round(core: Coordinator) -> dict[str, Any]:
    """The newest round whose state is agreed; ``overhead_s`` is its time that is not training.

    ``up`` and ``down`` are the bytes of all its nodes together, by kind; ``computing`` is the mean
    share of their time that went into inner steps, None when no node said.
    """
    metrics = _newest(core)
    seconds = metrics.seconds
    rest = sum(s for phase, s in seconds.items() if phase != "training")
    return {
        "round": metrics.round if seconds else None,
        "seconds": seconds,
        "overhead_s": round(rest, 3),
        "accepted": metrics.accepted,
        "rejected": metrics.by_member.rejected,
        "by_member": _members(metrics.by_member),
        "tokens": metrics.tokens,
        "up": metrics.up,
        "down": metrics.down,
        "computing": metrics.computing,
    }


def _members(done: MemberMetrics) -> list[dict[str, Any]]:
    """What each member did in a round: bytes that it sent and received, the part of its time that
    it computed, and why it was left out, "" when it was not."""
    return [
        {
            "node": peer,
            "steps": steps,
            "computing": done.computing.get(peer),
            "up": sum(done.traffic.get(peer, {}).get("up", {}).values()),
            "down": sum(done.traffic.get(peer, {}).get("down", {}).values()),
            "left_out": done.rejected.get(peer, ""),
        }
        for peer, steps in sorted(done.steps.items())
    ]


def _newest(core: Coordinator) -> RoundMetrics:
    """The numbers of the newest round whose state is agreed."""
    return core.metrics.rounds.get(core.state.round - 1, RoundMetrics(-1))


def _ledger(core: Coordinator) -> dict[str, Any]:
    """``final`` is how many entries are; ``witnesses`` how many accounts say so."""
    head = parse_checkpoint(core.ledger.store.latest_note)
    state = core.ledger.state
    found = finality.of_heads(core.heads, state)
    seen = found.facts(state)
    return {
        "size": head.size,
        "root": head.root.hex(),
        "origin": head.origin,
        **seen,
        "certified_head": found.head,
        "witnesses": len(seen["witnesses"]),
        "closed": state.closed,
    }


# --- what these documents are, for /api/v1/openapi.json -------------------------------------------


class RunFacts(Record):
    """:func:`run_facts`"""

    run: str
    name: str
    description: str
    organiser: str
    parameters: Count
    tokens_per_step: Count
    tokens_per_node_and_round: Count
    exchange: dict[str, str]
    invite: str
    manifest: Manifest


class NodeFacts(Report):
    """What a node reports of itself, and what is known of it."""

    node: str
    account: str | None
    tokens: Count
    credit: Count
    member: bool
    assigned: Count
    round_up: Count | None
    round_down: Count | None
    computed: Annotated[float | None, Field(alias="computing")]
    heard_s: float


class EvaluationFacts(Record):
    """The loss of the state that a round starts from, nats per token."""

    round: Count
    loss: Loss


class EvaluationsFacts(Record):
    """The first one and the newest."""

    first: EvaluationFacts | None
    last: EvaluationFacts | None


class MemberFacts(Record):
    """What a member did in the last round."""

    node: str
    steps: Count
    computing: float | None
    up: Count
    down: Count
    left_out: str


class LastRoundFacts(Record):
    """The newest round whose state is agreed."""

    round: Count | None
    seconds: dict[str, Seconds]
    overhead_s: float
    accepted: Count
    rejected: dict[str, str]
    by_member: list[MemberFacts]
    tokens: Count
    up: dict[str, Count]
    down: dict[str, Count]
    computing: float | None


class LedgerFacts(Record):
    """The newest tree head, and how much is final."""

    size: Count
    root: str
    origin: str
    final: Count
    witnesses: Count
    witnesses_wanted: int
    label: str
    certified_head: Count
    closed: Count


class AmendmentFacts(Record):
    """What the organiser changed, from a round on."""

    entry: Count
    round: Count
    changes: dict[str, str]


class StatusFacts(Record):
    """:func:`status_facts`"""

    run: str
    name: str
    role: Literal["leader"]
    term: Count
    leader: str
    ending: bool
    not_ending: str
    phase: str
    round: Count
    total: Count
    paused: bool
    stuck: bool
    setbacks: Count
    amendments: list[AmendmentFacts]
    attempt: Count
    state_root: str
    members: Count
    committed: Count
    revealed: Count
    waiting_for: Count
    validation: EvaluationsFacts
    nodes: list[NodeFacts]
    last_round: LastRoundFacts
    ledger: LedgerFacts
    release: ReleaseFacts | None


class RoundsFacts(Record):
    """:func:`rounds_facts`"""

    total: Count
    rounds: list[RoundSums]
