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
import unicodedata
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from artel.protocol import canonical
from artel.protocol.errors import DecodeError, UsageError
from artel.protocol.schema import Digest, Record, parsed

PREFIX = "artel1."
MAX_CHARACTERS = 4096
MAX_PASTED = 4 * MAX_CHARACTERS
"""With the text around it and what mail adds to every line."""
MAX_PEERS = 8
_FOUND = re.compile(r"artel1\.[A-Za-z0-9_-]+\.[0-9a-f]{8}")
_HINT = "ask the organiser for the whole line: it starts with artel1. and has no spaces"


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
        body = canonical.dumps({"peers": list(self.peers), "run": self.run})
        text = PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")
        return f"{text}.{_checksum(text)}"

    @classmethod
    def decode(cls, text: str) -> Invite:
        """Read an invite as people paste it: with what a terminal, a mail or a chat put around it.

        White space, quoting and characters that nobody sees may stand anywhere in it.

        :raises UsageError: there is no invite in the text, or only a part of one
        """
        if len(text) > MAX_PASTED:
            raise UsageError("this is too long to be an Artel invite", _HINT)
        plain = "".join(filter(_counts, text))
        if PREFIX not in plain:
            raise UsageError("this is not an Artel invite", _HINT)
        found = _FOUND.findall(plain)
        if not found:
            raise UsageError("the invite is cut short, its end is missing", _HINT)
        lines = [line for line in found if line[-8:] == _checksum(line[:-9])]
        if not lines or len(lines[0]) > MAX_CHARACTERS:
            raise UsageError("a part of the invite is missing, or was changed on the way", _HINT)
        return cls._read(lines[0])

    @classmethod
    def _read(cls, line: str) -> Invite:
        try:
            encoded = line[len(PREFIX) : -9]
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
            body = parsed(_Body, data, "the invite", MAX_CHARACTERS)
        except (binascii.Error, ValueError, DecodeError):
            raise UsageError("the invite cannot be read", _HINT) from None
        return cls(body.run, body.peers)


def _counts(character: str) -> bool:
    """Whether it is no white space, no mail's quote, no mark without a width (Cf: BOM, hyphen)."""
    added = character.isspace() or character in ">|" or unicodedata.category(character) == "Cf"
    return not added


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
