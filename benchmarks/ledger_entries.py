"""Entries for the ledger benchmark: a run of any length, signed or with signatures left out.

Where it says "left out", the signature bytes are a counter and the entry says that its signatures
have been checked: so a million entries are made in a minute instead of several, and what is
measured on them is never the checking of signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import Body, Entry
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Outcome
from artel.ledger.fold.shares import apply
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.protocol import canonical, dsse
from artel.protocol.content import commitment
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, peer_id_of

MEMBERS = 8
"""Of each round."""
NODES = 1000
"""Registered, each with an account of its own."""
PER_ROUND = MEMBERS + 4
STEPS, BATCH, WINDOW = 4, 2, 16
TOKENS = STEPS * BATCH * WINDOW
"""Of a contribution."""
_UNSIGNED = count()


def digest(name: str) -> str:
    """A hex digest that stands for a blob, a state or a salt."""
    return hashlib.sha256(name.encode()).hexdigest()


def key(name: str) -> Identity:
    """A fixed identity."""
    return Identity.from_seed(hashlib.sha256(b"benchmark key " + name.encode()).digest())


class Run:
    """A run of ``rounds`` rounds: its manifest, and makers of its entries.

    :param span: rounds of a span; 0 for none, and no audits
    """

    def __init__(self, rounds: int = 1_000_000, span: int = 0) -> None:
        self.organiser, self.coordinator = key("organiser"), key("coordinator")
        manifest = {
            "config": {
                "run": {"name": "benchmark", "seed": 7},
                "rounds": {"inner_steps": STEPS, "total": rounds, "min_nodes": MEMBERS}
                | {"span": span},
                "optimizer": {"batch_size": BATCH, "lr": 0.003},
                "data": {"seq_len": WINDOW, "shard_tokens": 1024, "span_windows": 4},
                "ownership": {},
                "ledger": {},
            },
            "data": {"train": {"tokens": 100_000}, "contributed": []},
            "organiser": self.organiser.key,
            "coordinators": [self.coordinator.key],
            "initial_state": digest("state 0"),
        }
        self.genesis = dsse.sign(entries.MANIFEST_TYPE, manifest, self.organiser)
        self.run = hashlib.sha256(self.genesis.payload).hexdigest()
        self._state, self._did = FoldState(), Outcome("recorded")
        self.sign = partial(sign_checkpoint, self.coordinator, origin_of(self.run))

    def accounts(self, number: int, first: int = 0) -> list[Envelope]:
        """New accounts, signed."""
        return [
            entries.account(key(f"account {at}"), self.run) for at in range(first, first + number)
        ]

    # --- signatures left out ----------------------------------------------------------------------

    def long(self, size: int) -> Iterator[Entry]:
        """A ledger of ``size`` entries in which everything counts: registrations, then rounds."""
        genesis = entries.decode(self.genesis.encode())
        made, self._state = 1, FoldState()
        apply(self._state, genesis)
        yield genesis
        publics = [bytes.fromhex(digest(f"node {at}")) for at in range(NODES)]
        nodes = [peer_id_of(public) for public in publics]
        keys = {node: public.hex() for node, public in zip(nodes, publics, strict=True)}
        accounts = [digest(f"account {at}") for at in range(NODES)]
        for node, account in zip(nodes, accounts, strict=True):
            if made + 2 > size:
                return
            yield self._entry(entries.AccountBody, {"account": account, "recovery": ""}, account)
            own = digest(f"coordinator of {node}")
            body = {"node": node, "account": account, "coordinator": own, "seq": 1}
            yield self._entry(entries.Node, body, account, keys[node], own)
            made += 2
        for number in count():
            for entry in self._round(number, nodes, keys):
                if made == size:
                    return
                yield entry
                made += 1

    def _round(self, number: int, nodes: list[str], keys: dict[str, str]) -> Iterator[Entry]:
        coordinator = self.coordinator.key
        start = number * MEMBERS % NODES
        members = sorted(nodes[start : start + MEMBERS])
        state, at = digest(f"state {number}"), {"round": number, "attempt": 0}
        body: dict[str, Any] = {"base": state, "cursor": number, "members": tuple(members)}
        body["steps"] = (STEPS,) * len(members)
        yield self._entry(entries.RoundOpened, at | body, coordinator)
        salt = hashlib.sha256(b"salt %d" % number).digest()
        blobs = {node: digest(f"{number} {node}") for node in members}
        commitments = {n: commitment(self.run, number, 0, n, blobs[n], salt) for n in members}
        yield self._entry(entries.RoundCommitted, at | {"commitments": commitments}, coordinator)
        accepted = []
        for node in members:
            body = {"node": node, "base": state, "blob": blobs[node], "size": 1000}
            body |= {"salt": salt.hex(), "tokens": TOKENS, "tail": 0, "head": STEPS}
            body |= {"span": 0, "up": 4000, "down": 9000, "payload": blobs[node]}
            body |= {"chain": digest(f"chain {blobs[node]}"), "hardware": "none"}
            entry = self._entry(entries.Contribution, at | body, keys[node])
            accepted.append(entries.Accepted(node=node, entry=entry.id, weight=TOKENS))
            yield entry
        body = {"accepted": tuple(accepted), "rejected": ()}
        yield self._entry(entries.RoundClosed, at | body, coordinator)
        attempt = self._state.attempt
        assert attempt is not None
        body = {"round": number + 1, "root": digest(f"state {number + 1}"), "wrong": ()}
        body |= {"credits": attempt.credits.root, "attempt": 0, "rests_on": attempt.rests_on}
        body |= {"signatures": dict.fromkeys(members, "00" * 64), "outside": ""}
        yield self._entry(entries.StateAgreed, body, coordinator)

    def _entry(self, schema: type[Body], fields: dict[str, Any], *signers: str) -> Entry:
        body = schema.model_validate(fields | {"run": self.run})
        number = next(_UNSIGNED)
        unsigned = tuple((signer, bytes(64)) for signer in sorted(signers))
        envelope = Envelope(entries.ENTRY_TYPE, b"{}", unsigned)
        entry = Entry(hashlib.sha256(b"%d" % number).hexdigest(), body, envelope)
        entry.__dict__["signers"] = frozenset(signers)
        self._did = apply(self._state, entry)
        return entry

    def leaves(self, number: int) -> Iterator[Entry]:
        """Well-formed account entries for a store, as ``decode`` would give them."""
        body = {"kind": "account", "run": self.run, "recovery": ""}
        for at in range(number):
            account = hashlib.sha256(b"leaf %d" % at).hexdigest()
            payload = canonical.dumps(body | {"account": account})
            signature = (account, at.to_bytes(64, "big"))
            envelope = Envelope(entries.ENTRY_TYPE, payload, (signature,))
            parsed = entries.AccountBody.model_construct(None, **body, account=account)
            yield Entry(entries.entry_id(envelope.encode()), parsed, envelope)
