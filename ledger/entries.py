"""The entries of the ledger: what each kind says, who signs it, and how its bytes are read.

A leaf is the canonical encoding of a DSSE envelope. Leaf 0, the **genesis**, is the organiser's
signed manifest; every other payload is canonical JSON of one of the bodies below, with integers and
strings only. The **entry id** is the SHA-256 of the leaf. Whether an entry *counts* depends on the
entries before it and is decided by :mod:`ledger.shares`, never here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic import ValidationError as PydanticError

from ledger import evidence
from protocol import canonical, dsse
from protocol.dsse import MAX_ENVELOPE_BYTES, Envelope
from protocol.errors import CheckFailed, DecodeError
from protocol.identity import Identity, public_of
from protocol.run_config import Ledger, Ownership

ENTRY_TYPE = "application/vnd.artel.entry+json"
MANIFEST_TYPE = "application/vnd.artel.manifest+json"
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


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _ascending(items: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [getattr(item, "node", item) for item in items]
    if any(left >= right for left, right in pairwise(names)):
        raise ValueError("nodes are not in ascending order, or one is named twice")
    return items


# JSON has lists where the bodies have tuples; only that one conversion is allowed.
_LIST = (Field(max_length=MAX_MEMBERS, strict=False), AfterValidator(_ascending))


class Body(_Record):
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

    ``seq`` is the account's next number; it counts rotations, addresses and transfers. An empty
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


class Address(Body):
    """The EVM address to which an export writes this account's share; signed by the account."""

    KIND = "address"
    kind: Literal["address"] = "address"
    account: Digest
    address: Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{40}$")]
    seq: Positive


class RoundOpened(Body):
    """Opens an attempt of a round for its members; signed by a coordinator.

    ``base`` is the root of the agreed state, ``cursor`` the first window that the round consumes.
    """

    KIND = "round_opened"
    kind: Literal["round_opened"] = "round_opened"
    round: Count
    attempt: Count
    base: Digest
    cursor: Count
    members: Annotated[tuple[PeerId, ...], Field(min_length=1), *_LIST]


class RoundCommitted(Body):
    """The commitments that came in time; signed by a coordinator."""

    KIND = "round_committed"
    kind: Literal["round_committed"] = "round_committed"
    round: Count
    attempt: Count
    commitments: Annotated[dict[PeerId, Digest], Field(max_length=MAX_MEMBERS)]


class Contribution(Body):
    """A node's claim: from ``base``, with ``tokens`` assigned tokens, it made ``blob``.

    ``blob`` is a content id, ``size`` its bytes, ``salt`` opens the commitment. Signed by the node.
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


class Accepted(_Record):
    """An accepted contribution: its entry id, and its weight (= tokens)."""

    node: PeerId
    entry: Digest
    weight: Positive


class Rejected(_Record):
    """A member whose work does not count, and why (see :mod:`ledger.reasons`)."""

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


class StateAgreed(Body):
    """State number ``round`` has this root; signed by a coordinator and the nodes that agree."""

    KIND = "state_agreed"
    kind: Literal["state_agreed"] = "state_agreed"
    round: Positive
    root: Digest


class RunClosed(Body):
    """After the last round: what is pending and not disputed vests; signed by a coordinator.

    The first ``closing`` is 1; closing 2 ends the disputes that nobody ruled on.
    """

    KIND = "run_closed"
    kind: Literal["run_closed"] = "run_closed"
    round: Positive
    closing: Annotated[int, Field(ge=1, le=2)]


class Cosignature(_Record):
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
    """Proof that one key signed two histories (:mod:`ledger.evidence`); by any account."""

    KIND = "split_seen"
    kind: Literal["split_seen"] = "split_seen"
    account: Digest
    evidence: Annotated[dict[str, Any], AfterValidator(_evidence)]


_BODIES = (
    *(Account, KeyRotated, Node, Address, RoundOpened, RoundCommitted, Contribution, RoundClosed),
    *(StateAgreed, RunClosed, Witnessed, Verdict, Dispute, Ruling, Transfer, SplitSeen),
)
BODIES: dict[str, type[Body]] = {body.KIND: body for body in _BODIES}


@dataclass(frozen=True)
class DataUse:
    """What is needed to say whose text a round trains on."""

    seed: int
    tokens: int
    shard_tokens: int
    seq_len: int
    span_windows: int
    windows: int  # of each member in each round
    contributed: tuple[tuple[str, int], ...]  # (account or "", tokens), from the first token on


@dataclass(frozen=True)
class Rules:
    """The constants of the manifest by which credit is counted; see ``docs/manifest.md``."""

    total: int
    tokens: int  # assigned to each member in each round
    ownership: Ownership
    witnesses: int
    arbiters: frozenset[str]
    data: DataUse | None = None

    @cached_property
    def rates(self) -> dict[str, int]:
        """Credit per unit, by kind of work."""
        return self.ownership.rates.model_dump()


@dataclass(frozen=True)
class Genesis:
    """Leaf 0: the manifest, of which the ledger reads only what its own rules need.

    The rest of the manifest may change with the protocol without changing how credit is counted.
    """

    KIND: ClassVar[str] = "genesis"
    run: str  # SHA-256 of the payload
    manifest: dict[str, Any]
    organiser: str  # hex key
    coordinators: tuple[str, ...]  # hex keys
    initial_state: str  # state root
    rules: Rules

    @property
    def kind(self) -> str:
        return self.KIND

    @property
    def name(self) -> str:
        """The run's name for people; empty when the manifest has none."""
        name = _at(self.manifest, "config", "run", "name")
        return name if isinstance(name, str) else ""

    def to_dict(self) -> dict[str, Any]:
        return self.manifest


class _Owners(BaseModel):
    model_config = ConfigDict(strict=True)
    organiser: Digest
    coordinators: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=8, strict=False)]
    initial_state: Digest


class _Part(_Record):
    account: OptionalDigest
    tokens: Positive


class _Contributed(_Record):
    parts: Annotated[tuple[_Part, ...], Field(max_length=17, strict=False)]


_S = TypeVar("_S", Ownership, Ledger)


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
        return Entry(entry_id(leaf), _genesis(envelope.payload), envelope)
    if envelope.payload_type != ENTRY_TYPE:
        raise DecodeError(f"{envelope.payload_type[:80]!r} is not a type of ledger entry")
    value = canonical.loads(envelope.payload)
    kind = value.get("kind") if isinstance(value, dict) else None
    schema = BODIES.get(kind) if isinstance(kind, str) else None
    if schema is None:
        raise DecodeError(f"there is no ledger entry of kind {str(kind)[:40]!r}")
    return Entry(entry_id(leaf), _validated(schema, value), envelope)


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
    members: Iterable[str],
) -> Envelope:
    """Open an attempt of a round. ``members`` are peer ids in any order."""
    body = {"round": round, "attempt": attempt, "base": base, "cursor": cursor}
    return _signed(RoundOpened, body | {"run": run, "members": tuple(sorted(members))}, coordinator)


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
) -> Envelope:
    """Claim a contribution of the node ``identity``. ``salt`` has 32 bytes."""
    body = {"run": run, "round": round, "attempt": attempt, "node": identity.peer_id, "base": base}
    body |= {"blob": blob, "size": size, "salt": salt.hex(), "tokens": tokens}
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


def state_agreed(signer: Identity, run: str, *, round: int, root: str) -> Envelope:
    """One signer's agreement; combine the coordinator's and the nodes' with ``merged``."""
    return _signed(StateAgreed, {"run": run, "round": round, "root": root}, signer)


def _signed(schema: type[Body], fields: dict[str, Any], *signers: Identity) -> Envelope:
    """Validate as strictly as :func:`decode` does, sign, and refuse what would not be a leaf."""
    envelope = dsse.sign(ENTRY_TYPE, _validated(schema, fields).to_dict(), *signers)
    size = len(envelope.encode())
    if size > MAX_ENVELOPE_BYTES:
        raise DecodeError(f"a {schema.KIND} entry of {size} bytes exceeds {MAX_ENVELOPE_BYTES}")
    return envelope


def _validated(schema: type[Body], value: dict[str, Any]) -> Body:
    try:
        return schema.model_validate(value)
    except PydanticError as error:
        raise _decode_error(schema.KIND, error) from None


def _decode_error(kind: str, error: PydanticError) -> DecodeError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"]) or "body"
    return DecodeError(f"entry {kind}: {where}: {first['msg'][:200]}")


def _genesis(payload: bytes) -> Genesis:
    manifest = canonical.loads(payload, floats=True)
    if not isinstance(manifest, dict):
        raise DecodeError("the manifest is not a JSON object")
    keys = ("organiser", "coordinators", "initial_state")
    try:
        owners = _Owners.model_validate({key: manifest.get(key) for key in keys})
    except PydanticError as error:
        raise _decode_error("genesis", error) from None
    run = hashlib.sha256(payload).hexdigest()
    rules = _rules(manifest, owners.organiser)
    return Genesis(
        run, manifest, owners.organiser, owners.coordinators, owners.initial_state, rules
    )


def _rules(manifest: dict[str, Any], organiser: str) -> Rules:
    tokens = 1
    for path in (("rounds", "inner_steps"), ("optimizer", "batch_size"), ("data", "seq_len")):
        tokens *= _rule(manifest, "config", *path)
    if tokens >= 1 << 53:
        raise DecodeError("entry genesis: a round assigns 2^53 tokens or more")
    ownership = _section(manifest, Ownership, "ownership")
    return Rules(
        total=_rule(manifest, "config", "rounds", "total"),
        tokens=tokens,
        ownership=ownership,
        witnesses=_section(manifest, Ledger, "ledger").witnesses,
        arbiters=frozenset(ownership.arbiters or (organiser,)),
        data=_data_use(manifest),
    )


def _section(manifest: dict[str, Any], schema: type[_S], name: str) -> _S:
    """A section of the configuration; what it leaves out has the value of this version."""
    try:
        section = _at(manifest, "config", name)
        return schema.model_validate_json(canonical.dumps({} if section is None else section))
    except PydanticError as error:
        raise _decode_error("genesis", error) from None


def _data_use(manifest: dict[str, Any]) -> DataUse | None:
    contributed = _at(manifest, "data", "contributed")
    try:
        parts = _Contributed.model_validate({"parts": [] if contributed is None else contributed})
    except PydanticError as error:
        raise _decode_error("genesis", error) from None
    if not parts.parts:
        return None
    tokens = _rule(manifest, "data", "train", "tokens")
    if sum(part.tokens for part in parts.parts) != tokens:
        raise DecodeError("entry genesis: data.contributed is not the training split")
    seed = _at(manifest, "config", "run", "seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 53:
        raise DecodeError("entry genesis: config.run.seed is not a whole number")
    windows = 1
    for path in (("rounds", "inner_steps"), ("optimizer", "batch_size")):
        windows *= _rule(manifest, "config", *path)
    return DataUse(
        seed=seed,
        tokens=tokens,
        shard_tokens=_rule(manifest, "config", "data", "shard_tokens"),
        seq_len=_rule(manifest, "config", "data", "seq_len"),
        span_windows=_rule(manifest, "config", "data", "span_windows"),
        windows=windows,
        contributed=tuple((part.account, part.tokens) for part in parts.parts),
    )


def _rule(manifest: dict[str, Any], *path: str) -> int:
    """A positive whole number of the manifest."""
    value = _at(manifest, *path)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DecodeError(f"entry genesis: {'.'.join(path)} is not a positive whole number")
    return value


def _at(manifest: dict[str, Any], *path: str) -> Any:
    """The value at a path of keys; None where there is none."""
    value: Any = manifest
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
