"""What a coordinator knows of a node that is connected to it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from artel.protocol import messages
from artel.protocol.events import emit
from artel.protocol.identity import short_peer
from artel.protocol.round_state import Phase, RoundRules, RunState

log = logging.getLogger("artel.coordinator")

REPLACED = 8
"""Processes of one node that are remembered."""


@dataclass
class Peer:
    """What a connected node last said of itself; owned by the coordinator."""

    report: messages.Report
    addresses: list[str]
    """That others are told: as many as fit, in the right form."""
    heard: float
    told: bool = True
    """Whether the log says that it has come."""
    duty: tuple[object, ...] = ()
    version: int = 0
    beats: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its duty may be another one; wakes its heartbeats that wait."""
    evaluates: set[int] = field(default_factory=set)
    """The states that it was asked to evaluate."""
    sealed: int = -1
    """The latest term of which it signs nothing more."""
    instance: str = ""
    """The newest process that spoke with this node's key."""
    replaced: deque[str] = field(default_factory=lambda: deque(maxlen=REPLACED))
    """Those before it, the newest few."""

    def speaks(self, instance: str) -> bool:
        """Whether this process speaks for the node: one that another has replaced does not."""
        if instance in self.replaced:
            return False
        if instance != self.instance:
            self.replaced.append(self.instance)
            self.instance = instance
        return True


def addresses_of(peers: Mapping[str, Peer]) -> dict[str, list[str]]:
    """Where nodes are."""
    return {name: peer.addresses for name, peer in peers.items()}


def holders_of(root: str, peers: Mapping[str, Peer]) -> list[str]:
    """Nodes that may give a state, the likely ones first: who is a state further holds the one
    before it as well, and where a round is being applied nobody may be at its base any more."""
    return sorted(peers, key=lambda name: peers[name].report.state_root != root)


def say_whether_it_goes_on(stood: bool, rules: RoundRules, state: RunState) -> bool:
    """Whether no round can be opened: the organiser paused the run, a state is called wrong, or too
    few are here. Logged when it is new.

    :param stood: what was said last
    """
    here = sum(not presence.leaving for presence in state.peers.values())
    stands = rules.paused or state.halted or here < rules.min_nodes
    if state.phase is Phase.FINISHED or stands == stood:
        return stood
    why = {"organiser": rules.paused, "halted": state.halted}
    name = "run.paused" if stands else "run.goes_on"
    emit(log, name, round=state.round, nodes=here, **why)
    return stands


def say_who_sits_out(before: RunState, after: RunState) -> None:
    """Log who has been in the way of others since."""
    for peer, pause in after.pauses.items():
        known = before.pauses.get(peer)
        if known is None or pause.until > known.until:
            said = {"reason": pause.reason, "times": pause.strikes, "back_after": pause.until}
            emit(log, "node.in_the_way", logging.INFO, node=short_peer(peer), **said)
