"""Whether this machine's clock is right, by what others' clocks say.

Nothing in the protocol orders anything by time. But records of the DHT end by the clock, and nodes
whose clocks differ refuse each other's there; and a node that compares its own with that of a
coordinator that is wrong is told that its own is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from artel.protocol.errors import ResourceError
from artel.protocol.events import emit
from artel.protocol.net.host import Host
from artel.protocol.tasks import end

log = logging.getLogger("artel.network")

MAX_OFFSET_S = 2.5
"""The DHT refuses peers whose clock is 3 s off."""
ASKED, PATIENCE_S = 8, 3.0


def is_off(seconds: float) -> bool:
    """Whether two clocks differ by more than a run can do with."""
    return abs(seconds) >= MAX_OFFSET_S


def words(seconds: float, other: str, others: str) -> tuple[str, str]:
    """What is wrong, and what to do about it.

    :param seconds: by which the clock here is ahead
    :param other: whom this machine was compared with
    :param others: their clock, as the end of the sentence needs it
    """
    return (
        f"this machine and {other} differ by {abs(seconds):.1f} s",
        f"turn on automatic time (NTP); if this machine has it, {others} is the wrong one",
    )


async def ahead(host: Host, peers: Iterable[str], patience: float = PATIENCE_S) -> float | None:
    """Seconds by which the clock here is ahead of those of some peers; None when nobody answers.

    The median of those that answer, of two the smaller difference: one that is wrong, or lies,
    convicts nobody while another one is right.

    :param patience: seconds after which nobody is waited for
    """
    chosen = [peer for peer in dict.fromkeys(peers) if peer != host.peer_id][:ASKED]
    asked = [asyncio.create_task(host.ahead_of(peer)) for peer in chosen]
    if not asked:
        return None
    try:
        done, _ = await asyncio.wait(asked, timeout=patience)
    finally:
        for task in asked:
            await end(task)
    differ = sorted((one for task in done if (one := task.result()) is not None), key=abs)
    return differ[(len(differ) - 1) // 2] if differ else None


async def right(
    host: Host, peers: Iterable[str], patience: float = PATIENCE_S, *, refuse: bool = False
) -> bool:
    """Whether the clock here is right, as far as peers answer; else it is said in the log.

    :param patience: as of :func:`ahead`
    :param refuse: raise instead
    :raises ResourceError: it is not
    """
    seconds = await ahead(host, peers, patience)
    if seconds is None or not is_off(seconds):
        return True
    reason, hint = words(seconds, "those who answer", "theirs")
    if refuse:
        raise ResourceError(f"{reason} in their clocks: a coordinator's has to be right", hint)
    emit(log, "clock.differs", logging.WARNING, reason=reason, hint=hint)
    return False
