"""A small run with real keys, whose entries make a valid ledger; tests then break it in one way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ledger import entries
from ledger.checkpoint import origin_of, sign_checkpoint
from ledger.store import DATABASE_NAME, LedgerStore
from protocol import dsse
from protocol.dsse import Envelope
from protocol.identity import Identity
from protocol.rounds import commitment

INNER_STEPS, BATCH_SIZE, SEQ_LEN = 4, 2, 16
TOKENS = INNER_STEPS * BATCH_SIZE * SEQ_LEN


def digest(name: str) -> str:
    """A hex digest that stands for a blob, a state or a salt."""
    return hashlib.sha256(name.encode()).hexdigest()


def key(name: str) -> Identity:
    """A fixed identity."""
    return Identity.from_seed(hashlib.sha256(b"test key " + name.encode()).digest())


def manifest(organiser: Identity, coordinator: Identity, **changes: Any) -> dict[str, Any]:
    """The fields of a manifest that the ledger reads."""
    return {
        "config": {
            "run": {"name": "test-run"},
            "rounds": {"inner_steps": INNER_STEPS},
            "optimizer": {"batch_size": BATCH_SIZE, "lr": 0.003},
            "data": {"seq_len": SEQ_LEN},
        },
        "organiser": organiser.key,
        "coordinators": [coordinator.key],
        "initial_state": digest("state 0"),
        **changes,
    }


@dataclass
class World:
    """Keys of a run, and makers of its entries; ``leaves`` collects what :meth:`add` is given."""

    nodes: int = 3
    name: str = "world"
    leaves: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.organiser = key(f"{self.name} organiser")
        self.coordinator = key(f"{self.name} coordinator")
        self.owners = [key(f"{self.name} account {i}") for i in range(self.nodes)]
        self.members = [key(f"{self.name} node {i}") for i in range(self.nodes)]
        self.genesis = dsse.sign(
            entries.MANIFEST_TYPE, manifest(self.organiser, self.coordinator), self.organiser
        )
        self.run = hashlib.sha256(self.genesis.payload).hexdigest()
        self.origin = origin_of(self.run)
        self.sign = partial(sign_checkpoint, self.coordinator, self.origin)

    def add(self, *envelopes: Envelope) -> list[bytes]:
        """Encode, remember and return."""
        leaves = [envelope.encode() for envelope in envelopes]
        self.leaves += leaves
        return leaves

    def introductions(self) -> list[Envelope]:
        """Accounts, then the nodes that belong to them."""
        accounts = [entries.account(owner, self.run) for owner in self.owners]
        pairs = zip(self.members, self.owners, strict=True)
        return accounts + [entries.node(member, owner, self.run) for member, owner in pairs]

    def opened(self, round: int, attempt: int = 0, **changes: Any) -> Envelope:
        body = {
            "base": digest(f"state {round}"),
            "cursor": round * 24,
            "members": [member.peer_id for member in self.members],
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
        blob, salt = self.blob(round, attempt, member)
        body = {
            "base": digest(f"state {round}"),
            "blob": blob,
            "size": 1000,
            "salt": salt,
            "tokens": TOKENS,
        }
        return entries.contribution(
            member, self.run, round=round, attempt=attempt, **body | changes
        )

    def closed(
        self,
        round: int,
        attempt: int = 0,
        accepted: Sequence[Identity] | None = None,
        rejected: dict[str, str] | None = None,
    ) -> Envelope:
        members = self.members if accepted is None else accepted
        items = [
            entries.Accepted(
                node=member.peer_id,
                entry=entries.entry_id(self.contribution(member, round, attempt).encode()),
                weight=TOKENS,
            )
            for member in members
        ]
        return entries.round_closed(
            self.coordinator,
            self.run,
            round=round,
            attempt=attempt,
            accepted=items,
            rejected=rejected,
        )

    def agreed(
        self, round: int, nodes: Sequence[Identity] | None = None, root: str = ""
    ) -> Envelope:
        """Agreement on the state with number ``round``."""
        fields = {"round": round, "root": root or digest(f"state {round}")}
        envelope = entries.state_agreed(self.coordinator, self.run, **fields)
        for member in self.members if nodes is None else nodes:
            envelope = envelope.merged(entries.state_agreed(member, self.run, **fields))
        return envelope

    def round(self, round: int) -> list[Envelope]:
        """All entries of a round in which everything went well."""
        return [
            self.opened(round),
            self.committed(round),
            *(self.contribution(member, round) for member in self.members),
            self.closed(round),
            self.agreed(round + 1),
        ]

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
