"""The invite: one line that a volunteer pastes to join a run.

``artel1.`` + base64url of canonical JSON ``{"peers": [multiaddr...], "run": run id}`` + ``.`` + the
first 8 hex digits of the SHA-256 of the part before, so that a line that was cut off or mistyped is
noticed before anything is dialled. An invite holds no secret: the run id names the manifest by its
hash, so whoever answers can only be right or be caught.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from protocol import canonical
from protocol.errors import DecodeError, UsageError

PREFIX = "artel1."
MAX_CHARACTERS = 4096
MAX_PEERS = 8
_HINT = "ask the organiser for the whole line: it starts with artel1. and has no spaces"


@dataclass(frozen=True)
class Invite:
    """A run and full multiaddrs of peers that know it, coordinators first."""

    run: str
    peers: tuple[str, ...]

    def encode(self) -> str:
        """The line to paste."""
        body = canonical.dumps({"peers": list(self.peers), "run": self.run})
        text = PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")
        return f"{text}.{_checksum(text)}"

    @classmethod
    def decode(cls, text: str) -> Invite:
        """Read a pasted line; white space that a terminal or mail added is ignored.

        :raises UsageError: the line is no invite, or only a part of one
        """
        line = "".join(text.split())
        if not line.startswith(PREFIX) or len(line) > MAX_CHARACTERS:
            raise UsageError("this is not an Artel invite", _HINT)
        body, _, checksum = line.rpartition(".")
        if checksum != _checksum(body):
            raise UsageError("the invite is incomplete or was changed on the way", _HINT)
        try:
            encoded = body[len(PREFIX) :]
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
            value = canonical.loads(data)
        except (binascii.Error, ValueError, DecodeError):
            raise UsageError("the invite cannot be read", _HINT) from None
        if not isinstance(value, dict) or set(value) != {"peers", "run"}:
            raise UsageError("the invite is of another version", "update this program")
        run, peers = value["run"], value["peers"]
        if (
            not isinstance(run, str)
            or not re.fullmatch("[0-9a-f]{64}", run)
            or not isinstance(peers, list)
            or not 1 <= len(peers) <= MAX_PEERS
            or not all(isinstance(peer, str) and "/p2p/" in peer for peer in peers)
        ):
            raise UsageError("the invite cannot be read", _HINT)
        return cls(run, tuple(peers))


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
