"""The bodies of ledger entries: what each kind says, and who signs it.

Strict schemas, integers and strings only. What an entry does is decided by ``ledger.rules_*``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic import ValidationError as PydanticError

from artel.ledger.entries import evidence
from artel.protocol.errors import DecodeError
from artel.protocol.identity import public_of

MAX_COSIGNATURES = 24
"""As many as fit into an entry with room to spare."""
MAX_MEMBERS = 64
"""Bound of every list in a body; what fits into 8 KiB is fewer (about 35 accepted members)."""


def _peer_id(value: str) -> str:
    try:
        public_of(value)
    except DecodeError as error:
        raise ValueError(error.message) from None
    return value


def _evidence(value: dict[str, Any]) -> dict[str, Any]:
    try:
        evidence.SplitView.from_dict(value)
    except DecodeError as error:
        raise ValueError(error.message) from None
    return value


Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
OptionalDigest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
PeerId = Annotated[str, StringConstraints(max_length=64), AfterValidator(_peer_id)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Positive = Annotated[int, Field(ge=1, lt=1 << 53)]
ReasonCode = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class Record(BaseModel):
    """Strict and frozen: no unknown fields, no conversion between types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _ascending(items: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [getattr(item, "node", item) for item in items]
    if any(left >= right for left, right in pairwise(names)):
        raise ValueError("a list is not in ascending order, or names something twice")
    return items


# JSON has lists where the bodies have tuples; only that one conversion is allowed.
_LIST = (Field(max_length=MAX_MEMBERS, strict=False), AfterValidator(_ascending))


class Body(Record):
    """What every body has: its kind and the run (id) that it belongs to."""

    KIND: ClassVar[str]
    run: Digest

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value: what is signed."""
        return self.model_dump(mode="json")


class Account(Body):
    """Registers an account, which is named by its first key for ever; signed by that key.

    ``recovery`` is the SHA-256 of a second public key that can replace a lost or stolen one.
    """

    KIND = "account"
    kind: Literal["account"] = "account"
    account: Digest
    recovery: OptionalDigest


class KeyRotated(Body):
    """Gives an account another key. Signed by the new key, and by the present or the recovery key.

    ``seq`` is the account's next number; it counts rotations and transfers. An empty
    ``recovery`` keeps the recovery key; once there is one, only itself can name another, so that
    whoever stole the present key cannot shut the owner out.
    """

    KIND = "key_rotated"
    kind: Literal["key_rotated"] = "key_rotated"
    account: Digest
    key: Digest
    recovery: OptionalDigest
    seq: Positive


class Node(Body):
    """Binds a node to an account; signed by both keys. A later one moves *future* credit.

    ``seq`` is above that of the node's earlier bindings, so that none can be played back.
    """

    KIND = "node"
    kind: Literal["node"] = "node"
    node: PeerId
    account: Digest
    seq: Positive


class RoundOpened(Body):
    """Opens an attempt of a round for its members; signed by a coordinator.

    ``base`` is the root of the agreed state, ``cursor`` the first window that the round consumes,
    ``steps`` what each member (same order) is assigned, in inner steps.
    """

    KIND = "round_opened"
    kind: Literal["round_opened"] = "round_opened"
    round: Count
    attempt: Count
    base: Digest
    cursor: Count
    members: Annotated[tuple[PeerId, ...], Field(min_length=1), *_LIST]
    steps: Annotated[tuple[Positive, ...], Field(max_length=MAX_MEMBERS, strict=False)]

    @model_validator(mode="after")
    def _as_many(self) -> RoundOpened:
        if len(self.steps) != len(self.members):
            raise ValueError("members and steps are not equally many")
        return self


class RoundCommitted(Body):
    """The commitments that came in time; signed by a coordinator."""

    KIND = "round_committed"
    kind: Literal["round_committed"] = "round_committed"
    round: Count
    attempt: Count
    commitments: Annotated[dict[PeerId, Digest], Field(max_length=MAX_MEMBERS)]


class Contribution(Body):
    """A node's claim: from ``base``, with ``tokens`` assigned tokens, it made ``blob``.

    ``blob`` is a content id, ``size`` all bytes of the contribution (in a sharded round the index
    that the id names and its parts), ``salt`` opens the commitment. ``tail`` and ``head`` are the
    steps in it: the last ones of the assignment of the round before, and the first ones of this
    one. ``up`` and ``down`` are the bytes that the node's streams carried since its contribution
    before; nobody can check them, and nothing is paid for them. Signed by the node.
    """

    KIND = "contribution"
    kind: Literal["contribution"] = "contribution"
    round: Count
    attempt: Count
    node: PeerId
    base: Digest
    blob: Digest
    size: Positive
    salt: Digest
    tokens: Positive
    tail: Count
    head: Positive
    up: Count
    down: Count


class Accepted(Record):
    """An accepted contribution: its entry id, and its weight (= tokens)."""

    node: PeerId
    entry: Digest
    weight: Positive


class Rejected(Record):
    """A member whose work does not count, and why (see :mod:`ledger.entries.reasons`)."""

    node: PeerId
    reason: ReasonCode


class RoundClosed(Body):
    """Ends an attempt; with nobody accepted it failed. Signed by a coordinator."""

    KIND = "round_closed"
    kind: Literal["round_closed"] = "round_closed"
    round: Count
    attempt: Count
    accepted: Annotated[tuple[Accepted, ...], *_LIST]
    rejected: Annotated[tuple[Rejected, ...], *_LIST]


class Aggregate(Body):
    """A node has combined ``slice`` of ``slices`` of a sharded round: ``blob``, of ``size`` bytes.

    Signed by the node.
    """

    KIND = "aggregate"
    kind: Literal["aggregate"] = "aggregate"
    round: Count
    attempt: Count
    slice: Annotated[int, Field(ge=0, lt=MAX_MEMBERS)]
    slices: Annotated[int, Field(ge=1, le=MAX_MEMBERS)]
    node: PeerId
    blob: Digest
    size: Positive


class SliceWrong(Body):
    """A node has recomputed a slice and got ``blob``, not what was recorded; signed by it."""

    KIND = "slice_wrong"
    kind: Literal["slice_wrong"] = "slice_wrong"
    round: Count
    attempt: Count
    slice: Annotated[int, Field(ge=0, lt=MAX_MEMBERS)]
    node: PeerId
    blob: Digest


class StateAgreed(Body):
    """State number ``round`` has this root; signed by a coordinator and the nodes that agree.

    ``wrong`` lists the slices whose recorded aggregate was wrong; the state is made without them.
    """

    KIND = "state_agreed"
    kind: Literal["state_agreed"] = "state_agreed"
    round: Positive
    root: Digest
    wrong: Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_MEMBERS)], ...], *_LIST]


class RunClosed(Body):
    """After the last round: what is pending and not disputed vests; signed by a coordinator.

    The first ``closing`` is 1; closing 2 ends the disputes that nobody ruled on.
    """

    KIND = "run_closed"
    kind: Literal["run_closed"] = "run_closed"
    round: Positive
    closing: Annotated[int, Field(ge=1, le=2)]


class Cosignature(Record):
    """A witness's cosignature (C2SP tlog-cosignature, Ed25519), made at ``time`` (seconds)."""

    node: PeerId
    time: Count
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]


class Witnessed(Body):
    """Nodes replayed the first ``size`` entries and cosigned their tree head; by a coordinator."""

    KIND = "witnessed"
    kind: Literal["witnessed"] = "witnessed"
    term: Count
    size: Positive
    root: Digest
    cosignatures: Annotated[
        tuple[Cosignature, ...],
        Field(min_length=1, max_length=MAX_COSIGNATURES, strict=False),
        AfterValidator(_ascending),
    ]


class Verdict(Body):
    """An auditor drawn by lot has repeated a contribution; signed by the auditing node."""

    KIND = "verdict"
    kind: Literal["verdict"] = "verdict"
    contribution: Digest
    node: PeerId
    verdict: Literal["accept", "reject", "inconclusive"]
    evidence: OptionalDigest


class Dispute(Body):
    """Freezes a pending contribution until somebody rules on it; signed by any account."""

    KIND = "dispute"
    kind: Literal["dispute"] = "dispute"
    account: Digest
    contribution: Digest
    reason: ReasonCode
    evidence: OptionalDigest


class Ruling(Body):
    """Decides on a pending contribution; signed by as many arbiters as the manifest asks for.

    ``soft`` takes this contribution's credit away, ``hard`` all of the account that is pending.
    """

    KIND = "ruling"
    kind: Literal["ruling"] = "ruling"
    contribution: Digest
    decision: Literal["dismissed", "soft", "hard"]
    evidence: OptionalDigest


class Transfer(Body):
    """Gives vested credit to another account, where the manifest allows it; by the giver."""

    KIND = "transfer"
    kind: Literal["transfer"] = "transfer"
    account: Digest
    to: Digest
    amount: Positive
    seq: Positive


class SplitSeen(Body):
    """Proof that one key signed two histories (:mod:`ledger.entries.evidence`); by any account."""

    KIND = "split_seen"
    kind: Literal["split_seen"] = "split_seen"
    account: Digest
    evidence: Annotated[dict[str, Any], AfterValidator(_evidence)]


_BODIES = (
    *(Account, KeyRotated, Node, RoundOpened, RoundCommitted, Contribution, RoundClosed),
    *(Aggregate, SliceWrong, StateAgreed, RunClosed, Witnessed, Verdict, Dispute, Ruling, Transfer),
    SplitSeen,
)
BODIES: dict[str, type[Body]] = {body.KIND: body for body in _BODIES}


def validated(schema: type[Body], value: dict[str, Any]) -> Body:
    """The body that ``value`` holds.

    :raises DecodeError: naming the first field that is wrong
    """
    try:
        return schema.model_validate(value)
    except PydanticError as error:
        raise decode_error(schema.KIND, error) from None


def decode_error(kind: str, error: PydanticError) -> DecodeError:
    """What is wrong, in one sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"]) or "body"
    return DecodeError(f"entry {kind}: {where}: {first['msg'][:200]}")
