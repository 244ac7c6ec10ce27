"""A round played at the coordinator's desk up to its end."""

from __future__ import annotations

import hashlib

from artel.protocol import messages
from artel.protocol.net import wire
from artel.protocol.round_state import Phase
from desk_world import Member, Office


async def play_round(office: Office, members: list[Member]) -> None:
    """One round in which all goes well."""
    number = office.core.state.round
    for member in members:
        await member.beat()
    assert office.core.state.phase is Phase.TRAINING
    for member in members:
        await member.commit()
    for member in members:
        await member.show()
    root = hashlib.sha256(f"state {number + 1}".encode()).hexdigest()
    for member in members:
        await member.sign_state(root)
    assert office.core.state.round == number + 1


async def resource(office: Office, member: Member, path: str, run: str = "") -> bytes:
    """What the ledger service has at a path."""
    (data,) = await member.files(messages.Get(run=run, paths=[path]), path)
    if data is None:
        raise wire.Refused("there is none", code="not_here")
    return data
