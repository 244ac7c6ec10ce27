"""Where the members of a run are, in the home of a coordinator: ``members.json``.

A coordinator that starts asks them what they have seen signed (:mod:`.recovery`), one that stands
by for seals (:mod:`.standby`). Nobody else is told; the file holds network addresses, which the
ledger never does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from artel.protocol import files, messages
from artel.protocol.errors import DecodeError
from artel.protocol.schema import Record, checked

MEMBERS_FILE = "members.json"
MOST_MEMBERS = 64
"""Whose addresses are kept."""
EVERY_S = 5.0


class Known(Record):
    """A member that this coordinator has heard, in ``members.json``."""

    peer: messages.PeerId
    addresses: messages.Addresses
    here: bool
    """Whether it was there when this was written."""


def read_members(home: Path) -> list[Known]:
    """Whom a home knows from before; nobody where the file cannot be read."""
    try:
        rows = json.loads((home / MEMBERS_FILE).read_bytes()[: 1 << 20])["members"]
        return [checked(Known, row, MEMBERS_FILE) for row in rows[:MOST_MEMBERS]]
    except (OSError, ValueError, LookupError, TypeError, DecodeError):
        return []


Where = Callable[[], Mapping[str, Sequence[str]]]
"""Peer id to addresses, as of now."""


async def keep_members(home: Path, present: Where, others: Where = dict) -> None:
    """Keep the addresses of the newest members on the disk, until cancelled.

    :param present: members that are there now
    :param others: whoever else may know of the run when this home is used again: its coordinators
    """
    written = read_members(home)
    while True:
        members = present()
        more = {peer: ways for peer, ways in others().items() if peer not in members}
        # Others first: they are few, and members may be more than are kept.
        here = [Known(peer=p, addresses=list(ways), here=False) for p, ways in more.items()]
        here += [Known(peer=p, addresses=list(ways), here=True) for p, ways in members.items()]
        names = {one.peer for one in here}
        gone = [one.model_copy(update={"here": False}) for one in written if one.peer not in names]
        now = [*here, *gone][:MOST_MEMBERS]
        if now != written:
            rows = {"members": [one.model_dump() for one in now]}
            path = home / MEMBERS_FILE
            with files.told(path):
                await asyncio.to_thread(files.write, path, json.dumps(rows).encode())
            written = now
        await asyncio.sleep(EVERY_S)
