"""A node of an account whose key is on another machine, and stays there.

The node's machine *asks* by a line that names the node, its run and the key that it would lead
with. The account's machine answers with a line that holds the entries ``account`` and ``node`` of
the ledger, signed by the account alone. The node's machine keeps them in HOME/account.link, and
adds its own signatures when it joins. Neither line is a secret: the first says nothing that the
ledger will not, and the second counts for that node in that run, and with its signatures only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from artel.ledger import entries
from artel.ledger.entries.body import PeerId, Positive, signed
from artel.protocol import canonical, dsse, files
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError, DecodeError, UsageError
from artel.protocol.identity import Identity
from artel.protocol.pasted import MAX_CHARACTERS, Line
from artel.protocol.schema import Digest, Record, parsed

FILE = "account.link"
_AGAIN = "begin again on the node's machine: artel account link --home HOME"
ASK = Line("artelask1.", "request for an account", _AGAIN)
ANSWER = Line("artelyes1.", "answer of an account", _AGAIN)
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class LinkRequest(Record):
    """Which node asks: its run, its id, the key that it would lead with, and the number above that
    of its earlier bindings."""

    run: Digest
    node: PeerId
    coordinator: Digest
    seq: Positive


class _Said(Record):
    account: Text
    node: Text


@dataclass(frozen=True)
class Linked:
    """The owner of a node, by what its account has signed for it."""

    key: str
    """The account's present key (hex)."""
    account: Envelope
    node: Envelope
    asked: LinkRequest

    @classmethod
    def read(cls, said: _Said) -> Linked:
        """Of two entries; what they say and who signed it is checked.

        :raises ArtelError: they are not what an account's machine answers
        """
        account, node = (dsse.decode(text.encode()) for text in (said.account, said.node))
        (key,) = {*account.verify(), *node.verify()}
        registered, bound = (entries.decode(each.encode()).body for each in (account, node))
        kinds = isinstance(registered, entries.AccountBody) and isinstance(bound, entries.Node)
        if not kinds or registered.run != bound.run:
            raise ValueError
        names = {name: getattr(bound, name) for name in LinkRequest.model_fields}
        return cls(key, account, node, LinkRequest(**names))

    @classmethod
    def decode(cls, line: str) -> Linked:
        """Of the line that the account's machine gave.

        :raises UsageError: it is none
        """
        return _read(ANSWER.decode(line, _Said))

    @classmethod
    def load(cls, home: Path) -> Linked | None:
        """What a home has got; None where it has nothing.

        :raises UsageError: the file is damaged
        """
        with files.told(home / FILE):
            if not (home / FILE).exists():
                return None
            data = (home / FILE).read_bytes()
        try:
            return _read(parsed(_Said, data, FILE, 2 * MAX_CHARACTERS))
        except DecodeError:
            raise UsageError(f"{home / FILE} is damaged", _AGAIN) from None

    def save(self, home: Path) -> None:
        """Keep it in the home of its node.

        :raises ResourceError: it cannot be written
        """
        said = {"account": self.account.encode().decode(), "node": self.node.encode().decode()}
        with files.told(home / FILE):
            files.write(home / FILE, canonical.dumps(said), mode=0o600)

    def bound(self, node: Identity) -> Envelope:
        """The entry with which this node is one of the account, signed by all whom it takes.

        :raises UsageError: it was made for another node
        """
        keys = (node.peer_id, node.elected.key)
        if keys != (self.asked.node, self.asked.coordinator):
            raise UsageError("the account has answered another node than this one", _AGAIN)
        said = json.loads(self.node.payload)
        return self.node.merged(dsse.sign(self.node.payload_type, said, node, node.elected))


Owner = Identity | Linked
"""Whoever a node works for: by the key itself, or by what was signed with it elsewhere."""


def ask(node: Identity, run: str, seq: int) -> str:
    """The line with which a node asks to be one of an account.

    :param seq: above that of its earlier bindings in the run
    """
    named = {"run": run, "node": node.peer_id, "coordinator": node.elected.key, "seq": seq}
    return ASK.encode(named)


def answer(asked: LinkRequest, owner: Identity, recovery: str, name: str) -> str:
    """The line by which an account takes a node on.

    :param recovery: digest of its recovery key, for its registration; "" for none
    :param name: of the account, where it is no longer its key
    """
    body = asked.model_dump() | {"account": name or owner.key}
    account = entries.account(owner, asked.run, recovery)
    node = signed(entries.Node, body, owner)
    said = {"account": account.encode().decode(), "node": node.encode().decode()}
    return ANSWER.encode(said)


def _read(said: _Said) -> Linked:
    try:
        return Linked.read(said)
    except (ArtelError, ValueError):
        raise UsageError("the answer of an account does not hold what it should", _AGAIN) from None
