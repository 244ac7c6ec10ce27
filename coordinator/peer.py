"""What a coordinator knows of a node that is connected to it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from artel.protocol import messages

REPLACED = 8
"""Processes of one node that are remembered."""


@dataclass
class Peer:
    """What a connected node last said of itself; owned by the coordinator."""

    report: messages.Report
    addresses: list[str]
    """That others are told: as many as fit, in the right form."""
    heard: float
    duty: tuple[object, ...] = ()
    version: int = 0
    beats: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its duty may be another one; wakes its heartbeats that wait."""
    evaluates: set[int] = field(default_factory=set)
    """The states that it was asked to evaluate."""
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
