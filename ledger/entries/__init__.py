"""The entries of the ledger: how their bytes are read, and how they are made.

A leaf is the canonical encoding of a DSSE envelope. Leaf 0, the **genesis**, is the organiser's
signed manifest (:mod:`ledger.entries.genesis`); every other payload is canonical JSON of one of the
bodies (:mod:`ledger.entries.bodies`). The **entry id** is the SHA-256 of the leaf. Whether an entry
*counts* depends on the entries before it and is decided by :mod:`ledger.fold.shares`, never here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from artel.ledger.entries.bodies import (
    BODIES,
    MAX_COSIGNATURES,
    MAX_MEMBERS,
    Accepted,
    Account,
    Aggregate,
    Body,
    Contribution,
    Cosignature,
    Dispute,
    KeyRotated,
    Node,
    Rejected,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    Ruling,
    RunClosed,
    SliceWrong,
    SplitSeen,
    StateAgreed,
    Transfer,
    Verdict,
    Witnessed,
    validated,
)
from artel.ledger.entries.genesis import DataUse, Genesis, Rules, read_genesis
from artel.protocol import canonical, dsse
from artel.protocol.dsse import MAX_ENVELOPE_BYTES, Envelope
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import Identity

__all__ = [
    "BODIES",
    "ENTRY_TYPE",
    "MANIFEST_TYPE",
    "MAX_COSIGNATURES",
    "MAX_MEMBERS",
    "Accepted",
    "Account",
    "Aggregate",
    "Body",
    "Contribution",
    "Cosignature",
    "DataUse",
    "Dispute",
    "Entry",
    "Genesis",
    "KeyRotated",
    "Node",
    "Rejected",
    "RoundClosed",
    "RoundCommitted",
    "RoundOpened",
    "Rules",
    "Ruling",
    "RunClosed",
    "SliceWrong",
    "SplitSeen",
    "StateAgreed",
    "Transfer",
    "Verdict",
    "Witnessed",
    "account",
    "aggregate",
    "by_account",
    "contribution",
    "decode",
    "entry_id",
    "key_rotated",
    "node",
    "recovery_digest",
    "round_closed",
    "round_committed",
    "round_opened",
    "ruling",
    "run_closed",
    "slice_wrong",
    "state_agreed",
    "verdict",
    "witnessed",
]

ENTRY_TYPE = "application/vnd.artel.entry+json"
MANIFEST_TYPE = "application/vnd.artel.manifest+json"


@dataclass(frozen=True)
class Entry:
    """One decoded leaf."""

    id: str  # hex
    body: Genesis | Body
    envelope: Envelope

    @property
    def kind(self) -> str:
        return self.body.KIND

    @cached_property
    def signers(self) -> frozenset[str]:
        """Hex keys whose signatures verified; empty when any signature does not.

        The cost of an entry is here (about 0.2 ms a signature), so it is paid on first use.
        """
        try:
            return frozenset(self.envelope.verify())
        except CheckFailed:
            return frozenset()


def entry_id(leaf: bytes) -> str:
    """Hex SHA-256 of a leaf."""
    return hashlib.sha256(leaf).hexdigest()


def decode(leaf: bytes) -> Entry:
    """Read a leaf; signatures are not checked until :attr:`Entry.signers` is asked for.

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
    return Entry(entry_id(leaf), validated(schema, value), envelope)


# --- constructors -------------------------------------------------------------------------------


def account(owner: Identity, run: str, recovery: str = "") -> Envelope:
    """Register ``owner`` as an account; ``recovery`` as in :func:`recovery_digest`."""
    return _signed(Account, {"run": run, "account": owner.key, "recovery": recovery}, owner)


def recovery_digest(public: bytes) -> str:
    """What an account publishes of its recovery key (32 bytes): only the hash, in hex."""
    return hashlib.sha256(public).hexdigest()


def key_rotated(
    signer: Identity, new: Identity, run: str, *, account: str, seq: int, recovery: str = ""
) -> Envelope:
    """Give ``account`` the key ``new``. ``signer`` is its present key or its recovery key."""
    body = {"run": run, "account": account, "key": new.key, "recovery": recovery, "seq": seq}
    return _signed(KeyRotated, body, signer, new)


def node(
    identity: Identity, owner: Identity, run: str, *, account: str = "", seq: int = 1
) -> Envelope:
    """Bind the node ``identity`` to the account whose present key is ``owner``.

    :param account: the account's name, when it is no longer its key
    """
    body = {"run": run, "node": identity.peer_id, "account": account or owner.key, "seq": seq}
    return _signed(Node, body, identity, owner)


def by_account(schema: type[Body], owner: Identity, run: str, **fields: Any) -> Envelope:
    """A statement of the account whose present key is ``owner``, such as a :class:`Dispute`."""
    return _signed(schema, {"run": run, **fields}, owner)


def witnessed(
    coordinator: Identity,
    run: str,
    *,
    size: int,
    root: str,
    cosignatures: Iterable[Cosignature],
    term: int = 0,
) -> Envelope:
    """Record cosignatures of a tree head."""
    items = tuple(sorted(cosignatures, key=lambda item: item.node))
    body = {"run": run, "term": term, "size": size, "root": root, "cosignatures": items}
    return _signed(Witnessed, body, coordinator)


def run_closed(coordinator: Identity, run: str, *, round: int, closing: int = 1) -> Envelope:
    """Close the accounts after the last round; ``closing`` is 1, and 2 the second time."""
    return _signed(RunClosed, {"run": run, "round": round, "closing": closing}, coordinator)


def verdict(auditor: Identity, run: str, *, contribution: str, verdict: str) -> Envelope:
    """What the node ``auditor`` found when it repeated a contribution."""
    body = {"run": run, "node": auditor.peer_id, "contribution": contribution, "evidence": ""}
    return _signed(Verdict, body | {"verdict": verdict}, auditor)


def ruling(
    run: str, *arbiters: Identity, contribution: str, decision: str, evidence: str = ""
) -> Envelope:
    """Rule on a contribution."""
    body = {"run": run, "contribution": contribution, "decision": decision, "evidence": evidence}
    return _signed(Ruling, body, *arbiters)


def round_opened(
    coordinator: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    base: str,
    cursor: int,
    steps: Mapping[str, int],
) -> Envelope:
    """Open an attempt of a round. ``steps`` maps the members (peer ids) to their inner steps."""
    body = {"run": run, "round": round, "attempt": attempt, "base": base, "cursor": cursor}
    members = tuple(sorted(steps))
    body |= {"members": members, "steps": tuple(steps[peer] for peer in members)}
    return _signed(RoundOpened, body, coordinator)


def round_committed(
    coordinator: Identity, run: str, *, round: int, attempt: int, commitments: Mapping[str, str]
) -> Envelope:
    """Publish the commitments ``{peer id: hex}``."""
    body = {"run": run, "round": round, "attempt": attempt, "commitments": dict(commitments)}
    return _signed(RoundCommitted, body, coordinator)


def contribution(
    identity: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    base: str,
    blob: str,
    size: int,
    salt: bytes,
    tokens: int,
    head: int,
    tail: int = 0,
    up: int = 0,
    down: int = 0,
) -> Envelope:
    """Claim a contribution of the node ``identity``. ``salt`` has 32 bytes.

    :param head: steps of this round's assignment in it; ``tail``: of the round before
    :param up: bytes sent since the contribution before; ``down``: bytes received
    """
    body = {"run": run, "round": round, "attempt": attempt, "node": identity.peer_id, "base": base}
    body |= {"blob": blob, "size": size, "salt": salt.hex(), "tokens": tokens}
    body |= {"tail": tail, "head": head, "up": up, "down": down}
    return _signed(Contribution, body, identity)


def round_closed(
    coordinator: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    accepted: Iterable[Accepted] = (),
    rejected: Mapping[str, str] | None = None,
) -> Envelope:
    """Close an attempt. ``rejected`` maps peer ids to reason codes."""
    body = {
        "run": run,
        "round": round,
        "attempt": attempt,
        "accepted": tuple(sorted(accepted, key=lambda item: item.node)),
        "rejected": tuple(
            Rejected(node=peer, reason=reason) for peer, reason in sorted((rejected or {}).items())
        ),
    }
    return _signed(RoundClosed, body, coordinator)


def aggregate(
    identity: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    slice: int,
    slices: int,
    blob: str,
    size: int,
) -> Envelope:
    """Record what the node ``identity`` combined one slice of a sharded round into."""
    body = {"run": run, "round": round, "attempt": attempt, "slice": slice, "slices": slices}
    body |= {"node": identity.peer_id, "blob": blob, "size": size}
    return _signed(Aggregate, body, identity)


def slice_wrong(
    identity: Identity, run: str, *, round: int, attempt: int, slice: int, blob: str
) -> Envelope:
    """The node ``identity`` recomputed a slice and got ``blob``, not what is recorded."""
    body = {"run": run, "round": round, "attempt": attempt, "slice": slice}
    return _signed(SliceWrong, body | {"node": identity.peer_id, "blob": blob}, identity)


def state_agreed(
    signer: Identity, run: str, *, round: int, root: str, wrong: Iterable[int] = ()
) -> Envelope:
    """One signer's agreement; combine the coordinator's and the nodes' with ``merged``.

    :param wrong: slices whose recorded aggregate was wrong, in any order
    """
    body = {"run": run, "round": round, "root": root, "wrong": tuple(sorted(wrong))}
    return _signed(StateAgreed, body, signer)


def _signed(schema: type[Body], fields: dict[str, Any], *signers: Identity) -> Envelope:
    """Validate as strictly as :func:`decode` does, sign, and refuse what would not be a leaf."""
    envelope = dsse.sign(ENTRY_TYPE, validated(schema, fields).to_dict(), *signers)
    size = len(envelope.encode())
    if size > MAX_ENVELOPE_BYTES:
        raise DecodeError(f"a {schema.KIND} entry of {size} bytes exceeds {MAX_ENVELOPE_BYTES}")
    return envelope
