"""A small run with real keys, whose entries make a valid ledger; tests then break it in one way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import evidence
from artel.ledger.entries.anchors import anchor_of
from artel.ledger.entries.genesis import read_genesis
from artel.ledger.entries.kinds.diverged import loss_message
from artel.ledger.entries.kinds.jury_answer import charged
from artel.ledger.fold.shares import FoldState, Outcome, apply, fold, shares
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.tlog.checkpoint import Checkpoint, origin_of, sign_checkpoint
from artel.ledger.tlog.cosignature import cosign, witness_name
from artel.ledger.tlog.note import Note
from artel.protocol import canonical, dsse
from artel.protocol.content import commitment
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.merkle import leaf_hash, root
from leaf_hashes import LeafHashes
from tests.independent_fold import SUMS, Fold

HARDWARE = "test/none/fp32/t1/torch2"
INNER_STEPS, BATCH_SIZE, SEQ_LEN = 4, 2, 16
WINDOWS = INNER_STEPS * BATCH_SIZE
TOKENS = WINDOWS * SEQ_LEN
RATE = 100
"""Credit for one token, see [ownership.rates] of a manifest."""
CREDIT = TOKENS * RATE
"""What one accepted contribution earns."""
TIME = 1_800_000_000
"""POSIX seconds at which the witnesses of a test sign."""


def digest(name: str) -> str:
    """A hex digest that stands for a blob, a state or a salt."""
    return hashlib.sha256(name.encode()).hexdigest()


def key(name: str) -> Identity:
    """A fixed identity."""
    return Identity.from_seed(hashlib.sha256(b"test key " + name.encode()).digest())


def manifest(
    organiser: Identity,
    coordinator: Identity,
    *,
    total: int = 60,
    ownership: dict[str, Any] | None = None,
    ledger: dict[str, Any] | None = None,
    rounds: dict[str, Any] | None = None,
    exchange: dict[str, Any] | None = None,
    trust: dict[str, Any] | None = None,
    contributed: Sequence[tuple[str, int]] = (),
    **changes: Any,
) -> dict[str, Any]:
    """The fields of a manifest that the ledger reads.

    :param contributed: (account, tokens) of the stretches of the training split
    """
    tokens = sum(length for _, length in contributed) or 100_000
    return {
        "config": {
            "run": {"name": "test-run", "seed": 7},
            "rounds": {"inner_steps": INNER_STEPS, "total": total} | (rounds or {}),
            "exchange": exchange or {},
            "optimizer": {"batch_size": BATCH_SIZE, "lr": 0.003},
            "data": {"seq_len": SEQ_LEN, "shard_tokens": 1024, "span_windows": 4},
            "ownership": ownership or {},
            "ledger": ledger or {},
            "trust": trust or {},
        },
        "data": {
            "train": {"tokens": tokens},
            "contributed": [{"account": name, "tokens": length} for name, length in contributed],
        },
        "organiser": organiser.key,
        "coordinators": [coordinator.key],
        "initial_state": digest("state 0"),
        **changes,
    }


@dataclass(frozen=True)
class Rooted(Envelope):
    """An entry whose credit root is not known yet: it follows from what comes before.

    ``by`` sign what :func:`complete` makes of it: an agreed state with the votes of ``nodes``, the
    closing of the run, or the going back to a state.
    """

    by: tuple[Identity, ...] = ()
    nodes: tuple[Identity, ...] = ()

    def encode(self) -> bytes:
        raise AssertionError("what comes before decides the credit root: see ledger_world.complete")


def agreed(said: dict[str, Any], nodes: Iterable[Identity], *signers: Identity) -> Envelope:
    """A ``state_agreed`` entry by ``signers`` that says so, with the votes of these nodes."""
    fields = {name: said[name] for name in ("round", "attempt", "root", "credits", "wrong")}
    signatures = {}
    for node in nodes:
        vote = entries.state_vote(node, said["run"], **fields)
        signatures[node.peer_id] = vote.signatures[0][1].hex()
    fields |= {"rests_on": said.get("rests_on", "coordinator"), "outside": said.get("outside", "")}
    made = entries.state_agreed(signers[0], said["run"], **fields, signatures=signatures)
    return forged(made, *signers)


def complete(envelopes: Iterable[Envelope], state: FoldState | None = None) -> list[Envelope]:
    """The same entries with the credit roots that the entries before them lead to.

    :param state: what the entries before amount to; it is changed
    """
    state = FoldState() if state is None else state
    found = []
    for envelope in envelopes:
        if isinstance(envelope, Rooted):
            envelope = rooted(envelope, state)
        # Whoever asks checks the signatures.
        apply(state, entries.decode(envelope.encode()).checked(True))
        found.append(envelope)
    return found


def rooted(envelope: Rooted, state: FoldState) -> Envelope:
    """The entry with the credit root that this state leads to."""
    said = json.loads(envelope.payload)
    if "closing" in said:
        credits = entries.credits_after(state, said["closing"]).root
        made = entries.run_closed(envelope.by[0], **said, credits=credits)
        return forged(made, *envelope.by)
    if "charge" in said:
        wrong = charged(state, said["charge"])
        credits = (
            entries.credits_back(state, said["state"], wrong).root
            if anchor_of(state, said["state"]) is not None and 0 <= said["state"] < wrong
            else digest("none")
        )
        made = entries.rolled_back(envelope.by[0], **said, credits=credits)
        return forged(made, *envelope.by)
    known: dict[str, Any] = {"credits": digest("none"), "attempt": 0}
    if (attempt := state.attempt) is not None:
        known = {"credits": attempt.credits.root, "attempt": attempt.attempt}
        known["rests_on"] = said.get("rests_on", attempt.rests_on)
    return agreed(said | known, envelope.nodes, *envelope.by)


def encoded(envelopes: Iterable[Envelope]) -> list[bytes]:
    """Leaves, see :func:`complete`."""
    return [envelope.encode() for envelope in complete(envelopes)]


def read(envelopes: Iterable[Envelope], state: FoldState | None = None) -> list[entries.Entry]:
    """Decoded leaves, see :func:`complete`."""
    return [entries.decode(envelope.encode()) for envelope in complete(envelopes, state)]


def outcomes(envelopes: Iterable[Envelope]) -> tuple[FoldState, list[Outcome]]:
    """What these entries amount to, and what each of them did."""
    seen: list[Outcome] = []
    found = read(envelopes)
    state = fold(found, observe=lambda _index, _entry, outcome: seen.append(outcome))
    require_same(found, state, [outcome.reason for outcome in seen])
    return state, seen


def folded(leaves: Iterable[bytes]) -> tuple[list[entries.Entry], FoldState]:
    """All entries of a ledger, and what they amount to."""
    found = [entries.decode(leaf) for leaf in leaves]
    reasons: list[str] = []
    state = fold(found, observe=lambda _index, _entry, outcome: reasons.append(outcome.reason))
    require_same(found, state, reasons)
    return found, state


def require_same(found: Iterable[entries.Entry], state: FoldState, reasons: list[str]) -> None:
    """Whoever has only ``docs/ledger.md`` comes to the same credit, shares and reasons."""
    envelopes = [entry.envelope for entry in found]
    documents = {hashlib.sha256(each.document).hexdigest(): each.document for each in envelopes}
    other = Fold((each.encode() for each in envelopes), documents)
    assert other.reasons == reasons
    assert other.totals() == {
        name: {field: getattr(owner, field) for field in SUMS}
        for name, owner in state.accounts.items()
    }
    assert other.standings() == state.standings()
    assert other.lot == state.lot
    assert (other.final, other.term) == (state.final, state.terms[-1].number if state.terms else 0)
    assert [one.weights for one in other.electors] == [each.weights for each in state.electors.sets]
    assert other.shares() == {share.account: share.units for share in shares(state)}


def forged(envelope: Envelope, *signers: Identity) -> Envelope:
    """The same statement, signed by these instead."""
    if isinstance(envelope, Rooted):
        return replace(envelope, by=signers)
    said = canonical.loads(envelope.payload, floats=True)
    made = dsse.sign(envelope.payload_type, said, *signers)
    return replace(made, document=envelope.document)


@dataclass(eq=False)
class World:
    """Keys of a run, and makers of its entries; ``leaves`` collects what :meth:`add` is given.

    ``ownership``, ``ledger``, ``exchange``, ``rounds`` and ``trust`` are sections of the manifest,
    ``total`` its number of rounds, ``contributed`` the (account, tokens) stretches of its text.
    """

    nodes: int = 3
    name: str = "world"
    leaves: list[bytes] = field(default_factory=list)
    total: int = 60
    ownership: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)
    contributed: Sequence[tuple[str, int]] = ()
    rounds: dict[str, Any] = field(default_factory=dict)
    exchange: dict[str, Any] = field(default_factory=dict)
    trust: dict[str, Any] = field(default_factory=dict)
    waiting: int = 0
    """Coordinators that the manifest names after the first one: :attr:`standbys`."""

    def __post_init__(self) -> None:
        self.state = FoldState()
        self.organiser = key(f"{self.name} organiser")
        self.coordinator = key(f"{self.name} coordinator")
        self.standbys = [key(f"{self.name} standby {i}") for i in range(self.waiting)]
        self.owners = [key(f"{self.name} account {i}") for i in range(self.nodes)]
        self.members = [key(f"{self.name} node {i}") for i in range(self.nodes)]
        fields = manifest(
            self.organiser,
            self.coordinator,
            total=self.total,
            ownership=self.ownership,
            ledger=self.ledger,
            rounds=self.rounds,
            exchange=self.exchange,
            trust=self.trust,
            contributed=self.contributed,
            coordinators=[each.key for each in (self.coordinator, *self.standbys)],
        )
        self.genesis = dsse.sign(entries.MANIFEST_TYPE, fields, self.organiser)
        rules = read_genesis(self.genesis.payload).rules
        self.work = rules.work
        self.classes = dict[str, str]()
        """Node to the class of machine that it names, if that is another one."""
        self.audited = rules.audits > 0
        self.began = dict[tuple[str, int], int]()
        """Node and round to where the span began in a run with audits, as far as :meth:`follow`
        was told; of others each round is a span of its own."""
        self.run = hashlib.sha256(self.genesis.payload).hexdigest()
        self.origin = origin_of(self.run)
        self.sign = partial(sign_checkpoint, self.coordinator, self.origin)

    def add(self, *envelopes: Envelope) -> list[bytes]:
        """Encode, remember and return."""
        leaves = [envelope.encode() for envelope in self.followed(*envelopes)]
        self.leaves += leaves
        return leaves

    def followed(self, *envelopes: Envelope) -> list[Envelope]:
        """What comes after all that :meth:`add` or this was given before, see :func:`complete`."""
        return complete(envelopes, self.state)

    @property
    def start(self) -> list[Envelope]:
        """The manifest, and who takes part."""
        return [self.genesis, *self.introductions()]

    def introductions(self) -> list[Envelope]:
        """Accounts, then the nodes that belong to them."""
        accounts = [entries.account(owner, self.run) for owner in self.owners]
        pairs = zip(self.members, self.owners, strict=True)
        return accounts + [entries.node(member, owner, self.run) for member, owner in pairs]

    def opened(
        self,
        round: int,
        attempt: int = 0,
        *,
        members: Iterable[str] | None = None,
        steps: Mapping[str, int] | None = None,
        **changes: Any,
    ) -> Envelope:
        """``members`` (peer ids) are assigned INNER_STEPS each, unless ``steps`` says otherwise."""
        peers = [member.peer_id for member in self.members] if members is None else members
        body = {
            "base": digest(f"state {round}"),
            "cursor": round * 24,
            "steps": dict.fromkeys(peers, INNER_STEPS) if steps is None else steps,
        }
        return entries.round_opened(
            self.coordinator, self.run, round=round, attempt=attempt, **body | changes
        )

    def blob(self, round: int, attempt: int, member: Identity) -> tuple[str, bytes]:
        """Content id and salt of a member's contribution."""
        name = f"{round} {attempt} {member.key}"
        return digest(f"blob {name}"), bytes.fromhex(digest(f"salt {name}"))

    def committed(
        self, round: int, attempt: int = 0, members: Iterable[Identity] | None = None
    ) -> Envelope:
        commitments = {}
        for member in self.members if members is None else members:
            blob, salt = self.blob(round, attempt, member)
            commitments[member.peer_id] = commitment(
                self.run, round, attempt, member.peer_id, blob, salt
            )
        return entries.round_committed(
            self.coordinator, self.run, round=round, attempt=attempt, commitments=commitments
        )

    def contribution(
        self, member: Identity, round: int, attempt: int = 0, **changes: Any
    ) -> Envelope:
        """All that a member with INNER_STEPS can show, unless ``head`` and ``tail`` say less."""
        blob, salt = self.blob(round, attempt, member)
        head = changes.get("head", self.work.head(round, INNER_STEPS))
        span = self.began.get((member.peer_id, round), round)
        if not (self.audited and self.work.span):
            span = self.span_of(round)
        goes_on = round and not (self.work.span and span == round)
        tail = changes.get("tail", self.work.tail(round - 1, INNER_STEPS) if goes_on else 0)
        body = {
            "base": digest(f"state {round}"),
            "blob": blob,
            "size": 1000,
            "payload": digest(f"payload {blob}"),
            "chain": digest(f"chain {blob}"),
            "hardware": self.classes.get(member.peer_id, HARDWARE),
            "salt": salt,
            "tokens": self.work.tokens(head + tail),
            "head": head,
            "tail": tail,
            "span": span,
            "up": 2000,
            "down": 3000,
        }
        return entries.contribution(
            member, self.run, round=round, attempt=attempt, **body | changes
        )

    def span_of(self, round: int) -> int:
        """Where the span began of who was accepted in all rounds."""
        every = self.work.span
        return round - round % every if every else 0

    def follow(self, state: FoldState) -> None:
        """A state was agreed on: who can go on with a span does so."""
        for member in self.members:
            before = self.work.goes_on(state.round, state.spans.get(member.peer_id))
            began = state.round if before is None else before
            self.began[member.peer_id, state.round] = began

    def closed(
        self,
        round: int,
        attempt: int = 0,
        accepted: Sequence[Identity] | None = None,
        rejected: dict[str, str] | None = None,
        shown: Mapping[str, Envelope] | None = None,
    ) -> Envelope:
        """``shown``: contributions (by peer id) that are not as :meth:`contribution` makes them."""
        items = []
        for member in self.members if accepted is None else accepted:
            made = (shown or {}).get(member.peer_id, self.contribution(member, round, attempt))
            entry = entries.decode(made.encode())
            assert isinstance(entry.body, entries.Contribution)
            items.append(
                entries.Accepted(node=member.peer_id, entry=entry.id, weight=entry.body.tokens)
            )
        return entries.round_closed(
            self.coordinator,
            self.run,
            round=round,
            attempt=attempt,
            accepted=items,
            rejected=rejected,
        )

    def agreed(
        self,
        round: int,
        nodes: Sequence[Identity] | None = None,
        root: str = "",
        wrong: Iterable[int] = (),
        credits: str = "",
        **grounds: str,
    ) -> Envelope:
        """Agreement on the state with number ``round``; ``credits`` and what it rests on follow
        unless given."""
        fields: dict[str, Any] = {"round": round, "root": root or digest(f"state {round}")}
        fields |= {"run": self.run, "attempt": 0, "credits": credits, "wrong": list(wrong)}
        fields |= grounds
        voters = tuple(self.members if nodes is None else nodes)
        if credits:
            return agreed(fields, voters, self.coordinator)
        body = canonical.dumps(fields)
        return Rooted(entries.ENTRY_TYPE, body, (), by=(self.coordinator,), nodes=voters)

    def aggregator(
        self, round: int, slice: int, accepted: Sequence[Identity] | None = None
    ) -> Identity:
        """The member that combines a slice, by the text of the protocol."""
        members = self.members if accepted is None else accepted
        ordered = sorted(members, key=lambda member: member.peer_id)
        return ordered[(slice + round) % len(ordered)]

    def aggregate(
        self,
        round: int,
        slice: int,
        attempt: int = 0,
        *,
        by: Identity | None = None,
        **changes: Any,
    ) -> Envelope:
        """A recorded slice; ``by`` its aggregator unless somebody else is named."""
        blob = digest(f"slice {round} {attempt} {slice}")
        body = {"slices": len(self.members), "blob": blob, "size": 500} | changes
        signer = by or self.aggregator(round, slice)
        return entries.aggregate(
            signer, self.run, round=round, attempt=attempt, slice=slice, **body
        )

    def slice_wrong(
        self, member: Identity, round: int, slice: int, attempt: int = 0, blob: str = ""
    ) -> Envelope:
        return entries.slice_wrong(
            member,
            self.run,
            round=round,
            attempt=attempt,
            slice=slice,
            blob=blob or digest(f"right slice {round} {slice}"),
        )

    def state_wrong(
        self, member: Identity, number: int, root: str = "", recorded: str = "", attempt: int = 0
    ) -> Envelope:
        """A member says that the state with this number is wrong."""
        recorded, root = recorded or digest(f"state {number}"), root or digest(f"right {number}")
        fields = {"state": number, "attempt": attempt, "recorded": recorded, "root": root}
        return entries.state_wrong(member, self.run, **fields)

    def jury_answer(self, member: Identity, charge: Envelope, root: str) -> Envelope:
        """A member computed the state that ``charge`` calls wrong."""
        name = entries.entry_id(charge.encode())
        return entries.jury_answer(member, self.run, charge=name, root=root)

    def amended(
        self, number: int, round: int, by: Identity | None = None, why: str = "", **changes: str
    ) -> Envelope:
        """The organiser, or whoever signs, changes settings; "__" stands for the dot in a name."""
        named = {name.replace("__", "."): text for name, text in changes.items()}
        said: dict[str, Any] = {"number": number, "round": round, "changes": named, "why": why}
        return entries.amended(by or self.organiser, self.run, **said)

    def rolled_back(self, charge: Envelope, number: int, root: str = "") -> Envelope:
        """The run goes back to the state with this number; the credit root follows."""
        fields = {"run": self.run, "charge": entries.entry_id(charge.encode()), "state": number}
        body = canonical.dumps(fields | {"root": root or digest(f"state {number}")})
        return Rooted(entries.ENTRY_TYPE, body, (), by=(self.coordinator,))

    def again(self, first: int, end: int, attempt: int) -> list[Envelope]:
        """These rounds, made once more, behind all data that was used."""
        behind = (end - 1) * 24
        made: list[Envelope] = []
        for round in range(first, end):
            shown = [self.contribution(member, round, attempt) for member in self.members]
            made += [self.opened(round, attempt, cursor=behind)]
            made += [self.committed(round, attempt), *shown]
            made += [self.closed(round, attempt), self.agreed(round + 1)]
        return made

    def diverged(
        self,
        number: int,
        better: int,
        told: Mapping[Identity, tuple[int, int]],
        root: str = "",
        better_root: str = "",
    ) -> Envelope:
        """Members say what they measured of a state, and of a better one before it."""
        root, other = root or digest(f"state {number}"), better_root or digest(f"state {better}")

        def signed(node: Identity, *said: Any) -> str:
            return node.sign(loss_message(self.run, *said)).hex()

        losses = [
            entries.ToldLoss(
                node=node.peer_id,
                loss=loss,
                better=then,
                signature=signed(node, number, root, loss),
                better_signature=signed(node, better, other, then),
            )
            for node, (loss, then) in told.items()
        ]
        said: dict[str, Any] = {"state": number, "root": root, "better": better}
        said |= {"better_root": other, "losses": losses}
        return entries.diverged(self.coordinator, self.run, **said)

    def state_upheld(self, charge: Envelope, root: str) -> Envelope:
        """The coordinator computed the root that is recorded."""
        name = entries.entry_id(charge.encode())
        return entries.state_upheld(self.coordinator, self.run, charge=name, root=root)

    def until_closed(self, round: int) -> list[Envelope]:
        """A round in which everything goes well, up to its closing."""
        return [
            self.opened(round),
            self.committed(round),
            *(self.contribution(member, round) for member in self.members),
            self.closed(round),
        ]

    def round(self, round: int) -> list[Envelope]:
        """All entries of a round in which everything went well."""
        sharded = self.work.topology_of(len(self.members)) == "sharded"
        slices = range(len(self.members)) if sharded else ()
        recorded = [self.aggregate(round, number) for number in slices]
        return [*self.until_closed(round), *recorded, self.agreed(round + 1)]

    def earned(self, member: Identity, round: int, attempt: int = 0) -> str:
        """Entry id of a member's contribution: the source of its credit."""
        return entries.entry_id(self.contribution(member, round, attempt).encode())

    # --- people -----------------------------------------------------------------------------------

    def rotated(
        self, signer: Identity, new: Identity, owner: Identity, seq: int = 1, recovery: str = ""
    ) -> Envelope:
        """``owner``'s account gets the key ``new``; by its present or its recovery key."""
        return entries.key_rotated(
            signer, new, self.run, account=owner.key, seq=seq, recovery=recovery
        )

    def transfer(self, owner: Identity, to: str, amount: int, seq: int = 1) -> Envelope:
        fields = {"account": owner.key, "to": to, "amount": amount, "seq": seq}
        return entries.by_account(entries.Transfer, owner, self.run, **fields)

    def dispute(self, owner: Identity, contribution: str, reason: str = "doubt") -> Envelope:
        fields = {"account": owner.key, "contribution": contribution, "reason": reason}
        return entries.by_account(entries.Dispute, owner, self.run, **fields, evidence="")

    def verdict(
        self, auditor: Identity, contribution: str, verdict: str = "accept", **changes: Any
    ) -> Envelope:
        salt = bytes.fromhex(digest(f"verdict {auditor.key}"))
        body = {"salt": salt, "round": 0, "error": 0.0 if verdict == "accept" else 0.7}
        fields = body | {"hardware": "x86-64", "verdict": verdict} | changes
        return entries.verdict(auditor, self.run, contribution=contribution, **fields)

    def verdict_committed(self, auditor: Identity, verdict: Envelope) -> Envelope:
        source = json.loads(verdict.payload)["contribution"]
        return entries.verdict_committed(auditor, self.run, contribution=source, verdict=verdict)

    def verdicts(
        self, auditor: Identity, contribution: str, verdict: str = "accept"
    ) -> list[Envelope]:
        """A verdict, committed and shown."""
        made = self.verdict(auditor, contribution, verdict)
        return [self.verdict_committed(auditor, made), made]

    def ruling(self, contribution: str, decision: str, *arbiters: Identity) -> Envelope:
        """By the organiser, unless arbiters are named."""
        signers = arbiters or (self.organiser,)
        return entries.ruling(self.run, *signers, contribution=contribution, decision=decision)

    def run_closed(self, round: int, closing: int = 1, credits: str = "") -> Envelope:
        """``credits`` follow unless given."""
        fields: dict[str, Any] = {"run": self.run, "round": round, "closing": closing}
        if credits:
            return entries.run_closed(self.coordinator, **fields, credits=credits)
        body = canonical.dumps(fields)
        return Rooted(entries.ENTRY_TYPE, body, (), by=(self.coordinator,))

    # --- tree heads -------------------------------------------------------------------------------

    def head(self, leaves: Sequence[bytes], term: int = 0) -> Checkpoint:
        """What a log that holds these leaves says about itself."""
        hashes = [leaf_hash(leaf) for leaf in leaves]
        return Checkpoint(origin_of(self.run, term), len(leaves), root(hashes))

    def cosigned(self, member: Identity, head: Checkpoint, time: int = TIME) -> str:
        """A note that carries nothing but a member's cosignature."""
        text = head.encode()
        line = cosign(member, witness_name(member.peer_id), text, time)
        return Note(text, (line,)).encode()

    def witnessed(
        self,
        leaves: Sequence[bytes],
        by: Iterable[Identity] | None = None,
        *,
        size: int | None = None,
        term: int = 0,
        time: int = TIME,
    ) -> Envelope:
        """The members ``by`` cosigned the tree over (the first ``size`` of) these leaves."""
        head = self.head(leaves[:size], term)
        cosignatures = []
        for member in self.members if by is None else by:
            line = cosign(member, witness_name(member.peer_id), head.encode(), time)
            cosignatures.append(
                entries.Cosignature(
                    node=member.peer_id, time=time, signature=line.signature[8:].hex()
                )
            )
        return entries.witnessed(
            self.coordinator,
            self.run,
            size=head.size,
            root=head.root.hex(),
            cosignatures=cosignatures,
            term=term,
        )

    def split_view(
        self, one: Sequence[bytes], other: Sequence[bytes], signer: Identity | None = None
    ) -> dict[str, Any]:
        """Evidence that the log (or the witness ``signer``) signed the trees over both."""
        notes, trees = [], []
        for leaves in (one, other):
            head = self.head(leaves)
            if signer is None:
                notes.append(self.sign(head.size, head.root))
            else:
                notes.append(self.cosigned(signer, head))
            trees.append(LeafHashes([leaf_hash(leaf) for leaf in leaves]))
        return evidence.build(notes[0], trees[0], notes[1], trees[1]).to_dict()

    def split_seen(self, owner: Identity, proof: dict[str, Any]) -> Envelope:
        fields = {"account": owner.key, "evidence": proof}
        return entries.by_account(entries.SplitSeen, owner, self.run, **fields)

    # --- whole ledgers ----------------------------------------------------------------------------

    def batches(self, rounds: int) -> list[list[bytes]]:
        """The appends of a whole run, as a coordinator would make them."""
        batches = [self.add(self.genesis), self.add(*self.introductions())]
        for number in range(rounds):
            batch = self.round(number)
            batches += [self.add(batch[0]), self.add(*batch[1:-1]), self.add(batch[-1])]
        return batches

    def write(self, home: Path, rounds: int = 2) -> Path:
        """A cleanly closed ledger in ``home``; returns the database's path."""
        with LedgerStore.open(home / DATABASE_NAME, create=True, run=self.run) as store:
            for batch in self.batches(rounds):
                store.append(batch, self.sign)
        return home / DATABASE_NAME
