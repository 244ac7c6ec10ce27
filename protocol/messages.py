"""Every message that crosses the network: its schema, its kind and its size limit; but for those of
:mod:`protocol.repeated_work`.

Bodies are strict pydantic models: unknown fields, wrong types and values out of bounds are refused.
Who sent a message is known from the Noise handshake of its connection, never from its body; what
must outlive the connection is a signed statement (:mod:`protocol.dsse`) inside a ``bytes`` field.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, StringConstraints

from artel.protocol.assignment import MAX_SLICES
from artel.protocol.dsse import MAX_ENVELOPE_BYTES
from artel.protocol.schema import Digest, OptionalDigest, Record

KIB = 1024
MAX_LIMIT = 64 * KIB
"""Largest message of any kind. Bulk data follows messages as raw chunks and is not counted."""

PeerId = Annotated[str, StringConstraints(pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$")]
Address = Annotated[str, StringConstraints(max_length=200, pattern=r"^/[!-~]+$")]
Addresses = Annotated[list[Address], Field(max_length=8)]
Text = Annotated[str, StringConstraints(max_length=300)]
Instance = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
ChunkRun = Annotated[int, Field(ge=0, le=64)]
Bits = Annotated[bytes, Field(min_length=1, max_length=8 * KIB)]
LogPath = Annotated[str, StringConstraints(max_length=100, pattern=r"^[a-z0-9/.]+$")]
PhaseName = Annotated[str, StringConstraints(max_length=20)]
SliceNumber = Annotated[int, Field(ge=0, lt=MAX_SLICES)]
SliceNumbers = Annotated[list[SliceNumber], Field(max_length=MAX_SLICES)]
MAX_ITEMS = 64
"""Of an index, that are asked for at once."""
ProvenItem = Annotated[
    bytes, Field(min_length=72, max_length=72 + 32 * (MAX_SLICES - 1).bit_length())
]
Statement = Annotated[bytes, Field(max_length=MAX_ENVELOPE_BYTES)]
NOT_LEADING, NOT_COORDINATOR = "not_leading", "not_coordinator"
"""Codes of refusals: this coordinator stands by; only whoever leads takes this."""

Kind = Literal[
    "control", "ledger", "contribution", "slice", "state", "data", "fingerprints", "other"
]
"""What a stream carries, for the accounts of traffic."""
Kinds = dict[Annotated[str, StringConstraints(pattern=f"^({'|'.join(get_args(Kind))})$")], Count]
"""Bytes by kind of traffic."""

MAX_LOSS = 1e6
"""Nats per token. The logarithm of a vocabulary is some 10; whoever is here has diverged."""
Loss = Annotated[float, Field(ge=0, le=MAX_LOSS)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]

COMPUTING = ("train", "tail")
TRAINER = (*COMPUTING, "encode", "merge", "idle")
"""Phases of a trainer in which it makes inner steps; and all, from one round to the next."""

PATIENCE_S, MOST_PATIENCE_S = 3.0, 30.0
"""How long a heartbeat's reply is kept back in a small run; and in any."""
BEATS_S = 20
"""Heartbeats in a second, of all nodes together, that are answered without news; the more nodes,
the longer each one's is kept back. As often do those look into the ledger who wait for slices."""
TOLD = 64
"""Nodes of which one message says where they are."""

Task = Literal["wait", "sync", "train", "reveal", "apply", "stop"]
"""What the coordinator wants a node to do; see ``docs/protocol.md``."""


class Message(Record):
    """Base of all messages."""

    KIND: ClassVar[str] = ""
    LIMIT: ClassVar[int] = 4 * KIB


class SignedMessage(Message):
    """Base of those that carry a signed entry; its kind says what it is."""

    LIMIT = 10 * KIB
    run: Digest
    statement: Statement


class Ok(Message):
    """It is done."""

    KIND = "ok"


class Refusal(Message):
    """The request was understood, or not even that, and nothing was done."""

    KIND = "refusal"
    code: Annotated[str, StringConstraints(max_length=40)]
    message: Text
    hint: Text = ""

    @classmethod
    def of(cls, code: str, message: str, hint: str = "") -> Refusal:
        """A refusal whose texts are cut to what a message may hold."""
        return cls(code=code[:40], message=message[:300], hint=hint[:300])


# --- control: node to coordinator ---------------------------------------------------------------


class Hello(Message):
    """Ask to be admitted, with the entries that bind this node to its account; answered with
    :class:`Welcome`, or with a :class:`~protocol.repeated_work.Trial` that comes first.

    ``statements`` are those of (account, node) that the ledger does not have yet, in this order.
    """

    KIND = "hello"
    LIMIT = 20 * KIB
    run: Digest
    statements: Annotated[list[Statement], Field(max_length=2)]
    addresses: Addresses


class Welcome(Message):
    """Admitted. ``clock`` is the coordinator's time in seconds since 1970."""

    KIND = "welcome"
    clock: float
    reachable: bool
    payload_bytes: Count


class Probe(Message):
    """Followed by ``size`` raw bytes; answered with Ok when all arrived. Measures the uplink."""

    KIND = "probe"
    size: Annotated[int, Field(ge=1, le=4 * KIB * KIB)]


class Validation(Message):
    """Loss in nats per token on the validation split, of the state with this number; the largest
    one when it is not finite. Signed by the node (:mod:`ledger.entries.kinds.diverged`)."""

    KIND = "validation"
    round: Count
    loss: Loss
    signature: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{128})?$")] = ""


class Report(Message):
    """What a node is doing (also the body of its local status).

    ``bytes_up`` and ``bytes_down`` count what its streams carried since it was started,
    ``up_by_kind`` and ``down_by_kind`` say for what. ``seconds`` are those of its last finished
    round.
    """

    KIND = "report"
    state_round: Annotated[int, Field(ge=-1, lt=1 << 53)]
    state_root: OptionalDigest
    phase: PhaseName
    leaving: bool = False
    round: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: Loss | None = None
    tokens_per_second: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    bytes_up: Count = 0
    bytes_down: Count = 0
    up_by_kind: Kinds = Field(default_factory=dict)
    down_by_kind: Kinds = Field(default_factory=dict)
    validation: Validation | None = None
    seconds: dict[PhaseName, Seconds] = Field(default_factory=dict, max_length=24)

    @property
    def computing(self) -> float | None:
        """Part (0 to 1) of the trainer's time in that round that went into inner steps.

        None before there is one. With overlap it covers the tail of the round before as well.
        """
        spent = {name: self.seconds.get(name, 0.0) for name in TRAINER}
        whole = sum(spent.values())
        return round(sum(spent[name] for name in COMPUTING) / whole, 4) if whole else None


class Heartbeat(Message):
    """Say what I am doing; the reply says what I should be doing.

    The coordinator keeps the reply back for up to ``patience`` seconds while its directive for this
    node is still ``seen``, so that news arrives at once without a message a second. ``instance`` is
    drawn when the node's process starts: of two processes with one key the later one speaks.
    ``sealed`` is the latest term of which the node signs nothing more, -1 for none.
    """

    KIND = "heartbeat"
    LIMIT = 4 * KIB
    run: Digest
    instance: Instance
    seen: Count
    patience: Annotated[float, Field(ge=0, le=MOST_PATIENCE_S)]
    report: Report
    addresses: Addresses
    sealed: Annotated[int, Field(ge=-1, lt=1 << 53)] = -1


class Directive(Message):
    """What a node should be doing. The facts behind it are in the ledger up to ``ledger_size``.

    ``peers`` are where some others are, only in one that says something new; ``patience`` is for
    the next heartbeat. ``seal`` asks an elector to seal the present term: another is to lead.
    """

    KIND = "directive"
    LIMIT = 32 * KIB
    version: Count
    task: Task
    round: Count
    attempt: Count
    root: OptionalDigest
    remaining: float
    ledger_size: Count
    reason: Text
    evaluate: bool
    peers: dict[PeerId, Addresses] = Field(max_length=TOLD)
    patience: Annotated[float, Field(ge=0, le=MOST_PATIENCE_S)] = PATIENCE_S
    seal: bool = False


class Where(Message):
    """Ask where other nodes are; answered with :class:`There`."""

    KIND = "where"
    run: Digest
    peers: Annotated[list[PeerId], Field(min_length=1, max_length=TOLD)]


class There(Message):
    """Where those are of whom that is known; those that are missing may be asked for again."""

    KIND = "there"
    LIMIT = 32 * KIB
    peers: dict[PeerId, Addresses] = Field(max_length=TOLD)


class AttemptMessage(Message):
    """Base of what is about one attempt of a round."""

    run: Digest
    round: Count
    attempt: Count


class Commit(AttemptMessage):
    """The hash of a contribution, before anybody may see the contribution itself."""

    KIND = "commit"
    commitment: Digest


class Reveal(SignedMessage):
    """The signed contribution; its blobs were put before."""

    KIND = "reveal"


class Aggregated(SignedMessage):
    """The signed ``aggregate`` entry of a slice that this node combined; it put the blob before."""

    KIND = "aggregated"


class Accuse(SignedMessage):
    """A signed ``slice_wrong``, ``state_wrong`` or ``jury_answer`` entry: this node recomputed a
    slice or an agreed state."""

    KIND = "accuse"


class Lacks(AttemptMessage):
    """A member's contribution to a slice cannot be had here; Ok: the coordinator has it now."""

    KIND = "lacks"
    node: PeerId
    slice: SliceNumber


class SignedState(Message):
    """A signature over the state that this node computed for the closed round.

    ``accused`` lists the slices that it knew to be called wrong: who did not know of one has to
    look again.
    """

    KIND = "state"
    LIMIT = 12 * KIB
    run: Digest
    statement: Statement
    accused: SliceNumbers


class HandBack(AttemptMessage):
    """This node cannot finish the round; do not wait for it."""

    KIND = "hand_back"
    reason: Text


class Leave(Message):
    """This node goes; what it contributed stays."""

    KIND = "leave"
    run: Digest


# --- content: any node to any holder --------------------------------------------------------------


class GetIndex(Message):
    """Ask for the chunk hashes of content, and for up to ``lead`` of its first chunks."""

    KIND = "get_index"
    id: Digest
    lead: ChunkRun = 0


class Index(Message):
    """Followed by 32 raw bytes for each chunk of ``size`` bytes of content, then ``lead`` chunks.

    ``size`` is bound by the content id up to the length of the last chunk only.
    """

    KIND = "index"
    size: Count
    lead: ChunkRun = 0


class GetHave(Message):
    """Ask which of this content a holder has, whole or in part."""

    KIND = "get_have"
    LIMIT = 6 * KIB
    ids: Annotated[list[Digest], Field(min_length=1, max_length=64)]


class Have(Message):
    """For each id 0 (nothing), 1 (some chunks) or 2 (all of it).

    ``parts`` holds a bit field for each 1 in turn: bit i mod 8 of byte i div 8 is chunk i.
    """

    KIND = "have"
    LIMIT = 64 * KIB
    held: Annotated[list[Annotated[int, Field(ge=0, le=2)]], Field(max_length=64)]
    parts: Annotated[list[Bits], Field(max_length=64)]


class GetChunks(Message):
    """Ask for ``count`` chunks from chunk ``first`` on."""

    KIND = "get_chunks"
    id: Digest
    first: Count
    count: Annotated[int, Field(ge=1, le=64)]


class Chunks(Message):
    """Followed by ``size`` raw bytes."""

    KIND = "chunks"
    size: Count


class GetItems(Message):
    """Ask what the index with this content id says of some slices of a contribution."""

    KIND = "get_items"
    id: Digest
    slices: Annotated[list[SliceNumber], Field(min_length=1, max_length=MAX_ITEMS)]


class Items(Message):
    """Of each of these slices its item of the index, and after it the RFC 6962 inclusion proof of
    the digest in it: the hashes, lowest first."""

    KIND = "items"
    LIMIT = 28 * KIB
    items: Annotated[list[ProvenItem], Field(max_length=MAX_ITEMS)]


class Put(Message):
    """Offer content; when the reply is Ok, ``size`` raw bytes follow and another Ok closes it.

    ``fingerprints``: of steps (:mod:`protocol.fingerprints`), which are given to nobody else.
    """

    KIND = "put"
    id: Digest
    size: Count
    fingerprints: bool = False


class Get(Message):
    """Ask for files of a log by their paths, as ``checkpoint`` or ``tile/0/000``.

    Each is answered in turn, by a :class:`File` or by a refusal. An empty ``run`` means whatever
    run the peer serves; ``skip`` bytes at the beginning of the last file need not be sent.
    """

    KIND = "get"
    run: OptionalDigest
    paths: Annotated[list[LogPath], Field(min_length=1, max_length=8)]
    skip: Count = 0


class File(Message):
    """Followed by ``size`` raw bytes."""

    KIND = "file"
    size: Annotated[int, Field(ge=0, le=256 * (MAX_ENVELOPE_BYTES + 2))]


class Cosigned(Message):
    """A witness's cosignature lines under a tree head (a whole note)."""

    KIND = "cosigned"
    LIMIT = 12 * KIB
    run: Digest
    note: Annotated[str, StringConstraints(max_length=10 * KIB)]


class Submit(SignedMessage):
    """A signed entry of a person's account for the ledger: a dispute, a key, a transfer, ..."""

    KIND = "submit"


class SetAlias(SignedMessage):
    """A signed wish to be shown under a name, or no longer; never part of the ledger."""

    KIND = "set_alias"
