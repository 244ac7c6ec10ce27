"""A round played at the coordinator's desk up to its end."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from artel.protocol import messages
from artel.protocol.net import wire
from artel.protocol.round_state import Phase
from desk_world import Line, Member, Office


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


async def refused(work: Any) -> str:
    with pytest.raises(wire.Refused) as error:
        await work
    return error.value.code


async def resource(office: Office, member: Member, path: str, run: str = "") -> bytes:
    """What the ledger service has at a path."""
    line = member.last = Line(wire.encode(messages.GetResource(run=run, path=path)))
    await wire.answer(member.peer, line, office.desk._ledger.answer)
    length = int.from_bytes(line.written[:4], "big")
    reply = wire.decode(line.written[4 : 4 + length])
    if isinstance(reply, messages.Refusal):
        raise wire.Refused(reply.message, reply.hint, reply.code)
    assert isinstance(reply, messages.Resource)
    data = line.written[4 + length :]
    assert len(data) == reply.size
    return data
