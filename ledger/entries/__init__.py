"""The entries of the ledger: how their bytes are read, and how they are made.

A leaf is the canonical encoding of a DSSE envelope, with a document beside it if its kind has
one (:mod:`ledger.entries.documents`). Leaf 0, the **genesis**, is the organiser's
signed manifest (:mod:`ledger.entries.genesis`); every other payload is canonical JSON of one of the
kinds (:mod:`ledger.entries.kinds`). The **entry id** is the SHA-256 of the leaf. Whether an entry
*counts* depends on the entries before it and is decided in :mod:`ledger.fold.shares`, never here.
"""

from __future__ import annotations

import hashlib
from typing import Any

from artel.ledger.entries.body import ENTRY_TYPE, MAX_MEMBERS, Body, Entry, opened, signed
from artel.ledger.entries.genesis import Genesis, read_genesis
from artel.ledger.entries.kinds import BODIES
from artel.ledger.entries.kinds.account import AccountBody, account, recovery_digest
from artel.ledger.entries.kinds.admitted import Admitted, admitted
from artel.ledger.entries.kinds.aggregate import Aggregate, aggregate
from artel.ledger.entries.kinds.amended import Amended, amended, earliest
from artel.ledger.entries.kinds.contribution import Contribution, contribution
from artel.ledger.entries.kinds.dispute import Dispute
from artel.ledger.entries.kinds.diverged import ToldLoss, TrainingDiverged, diverged
from artel.ledger.entries.kinds.handover import Handover, handover, open_seal, seal
from artel.ledger.entries.kinds.jury_answer import JuryAnswer, jury_answer
from artel.ledger.entries.kinds.key_rotated import KeyRotated, key_rotated
from artel.ledger.entries.kinds.node import Node, node
from artel.ledger.entries.kinds.rolled_back import RolledBack, credits_back, rolled_back
from artel.ledger.entries.kinds.round_closed import Accepted, Rejected, RoundClosed, round_closed
from artel.ledger.entries.kinds.round_committed import RoundCommitted, round_committed
from artel.ledger.entries.kinds.round_opened import RoundOpened, round_opened
from artel.ledger.entries.kinds.ruling import Ruling, ruling
from artel.ledger.entries.kinds.run_closed import RunClosed, credits_after, run_closed
from artel.ledger.entries.kinds.slice_wrong import SliceWrong, slice_wrong
from artel.ledger.entries.kinds.split_seen import SplitSeen
from artel.ledger.entries.kinds.state_agreed import (
    StateAgreed,
    StateVote,
    open_vote,
    state_agreed,
    state_vote,
)
from artel.ledger.entries.kinds.state_upheld import StateUpheld, state_upheld
from artel.ledger.entries.kinds.state_wrong import StateWrong, state_wrong
from artel.ledger.entries.kinds.transfer import Transfer
from artel.ledger.entries.kinds.verdict import Verdict, verdict
from artel.ledger.entries.kinds.verdict_committed import VerdictCommitted, verdict_committed
from artel.ledger.entries.kinds.witnessed import Cosignature, Witnessed, witnessed
from artel.ledger.entries.rules import DataUse, LedgerRules
from artel.protocol import canonical, dsse
from artel.protocol.dsse import Envelope
from artel.protocol.errors import DecodeError
from artel.protocol.identity import Identity

__all__ = [
    "BODIES",
    "ENTRY_TYPE",
    "KINDS",
    "MANIFEST_TYPE",
    "MAX_MEMBERS",
    "Accepted",
    "AccountBody",
    "Admitted",
    "Aggregate",
    "Amended",
    "Body",
    "Contribution",
    "Cosignature",
    "DataUse",
    "Dispute",
    "Entry",
    "Genesis",
    "Handover",
    "JuryAnswer",
    "KeyRotated",
    "LedgerRules",
    "Node",
    "Rejected",
    "RolledBack",
    "RoundClosed",
    "RoundCommitted",
    "RoundOpened",
    "Ruling",
    "RunClosed",
    "SliceWrong",
    "SplitSeen",
    "StateAgreed",
    "StateUpheld",
    "StateVote",
    "StateWrong",
    "ToldLoss",
    "TrainingDiverged",
    "Transfer",
    "Verdict",
    "VerdictCommitted",
    "Witnessed",
    "account",
    "admitted",
    "aggregate",
    "amended",
    "by_account",
    "contribution",
    "credits_after",
    "credits_back",
    "decode",
    "diverged",
    "earliest",
    "entry_id",
    "handover",
    "jury_answer",
    "key_rotated",
    "node",
    "open_seal",
    "open_vote",
    "recovery_digest",
    "rolled_back",
    "round_closed",
    "round_committed",
    "round_opened",
    "ruling",
    "run_closed",
    "seal",
    "slice_wrong",
    "state_agreed",
    "state_upheld",
    "state_vote",
    "state_wrong",
    "title",
    "verdict",
    "verdict_committed",
    "witnessed",
]

MANIFEST_TYPE = "application/vnd.artel.manifest+json"
KINDS = (Genesis.KIND, *BODIES)


def entry_id(leaf: bytes) -> str:
    """Hex SHA-256 of a leaf."""
    return hashlib.sha256(leaf).hexdigest()


def decode(leaf: bytes) -> Entry:
    """Read a leaf; signatures are not checked until :attr:`Entry.signers` is asked for.

    :param leaf: with its document (:class:`protocol.dsse.Leaf`) if it names one
    :raises MissingDocument: without that
    :raises DecodeError: on anything but the one encoding of a valid entry of at most 8 KiB
    """
    envelope = dsse.decode(leaf)
    if envelope.payload_type == MANIFEST_TYPE:
        return Entry(entry_id(leaf), read_genesis(envelope.payload), envelope)
    if envelope.payload_type != ENTRY_TYPE:
        raise DecodeError(f"{envelope.payload_type[:80]!r} is not a type of ledger entry")
    value = canonical.loads(envelope.payload)
    kind = value.get("kind") if isinstance(value, dict) else None
    schema = BODIES.get(kind) if isinstance(kind, str) else None
    if schema is None:
        raise DecodeError(f"there is no ledger entry of kind {str(kind)[:40]!r}")
    return Entry(entry_id(leaf), opened(schema, value, envelope.document), envelope)


def title(kind: str) -> str:
    """What a kind of entry is called on its page."""
    return Genesis.TITLE if kind == Genesis.KIND else BODIES[kind].TITLE


def by_account(schema: type[Body], owner: Identity, run: str, **fields: Any) -> Envelope:
    """A statement of the account whose present key is ``owner``, such as a :class:`Dispute`."""
    return signed(schema, {"run": run, **fields}, owner)
