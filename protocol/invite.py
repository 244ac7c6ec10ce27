"""The invite: one line that a volunteer pastes to join a run.

It says ``{"peers": [multiaddr...], "run": run id}`` (:mod:`.pasted`), and holds no secret: the run
id names the manifest by its hash, so whoever answers can only be right or be caught.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from artel.protocol.pasted import Line
from artel.protocol.schema import Digest, Record

PREFIX = "artel1."
MAX_PEERS = 8
_LINE = Line(
    PREFIX,
    "invite",
    "ask the organiser for the whole line: it starts with artel1. and has no spaces",
)


class _Body(Record):
    peers: Annotated[
        tuple[Annotated[str, Field(pattern="^/[!-~]*/p2p/[!-~]+$")], ...],
        Field(min_length=1, max_length=MAX_PEERS),
    ]
    run: Digest


@dataclass(frozen=True)
class Invite:
    """A run and full multiaddrs of peers that know it, coordinators first."""

    run: str
    peers: tuple[str, ...]

    def encode(self) -> str:
        """The line to paste."""
        return _LINE.encode({"peers": list(self.peers), "run": self.run})

    @classmethod
    def decode(cls, text: str) -> Invite:
        """Read an invite as people paste it.

        :raises UsageError: there is no invite in the text, or only a part of one
        """
        body = _LINE.decode(text, _Body)
        return cls(body.run, body.peers)
