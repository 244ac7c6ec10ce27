"""``handover``: a coordinator begins a term, since electors have sealed the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import reasons
from artel.ledger.entries.body import (
    LISTED,
    Body,
    Count,
    Digest,
    Entry,
    OptionalDigest,
    PeerId,
    Positive,
    Record,
    Signature,
    signed,
)
from artel.ledger.entries.fold_state import FoldState, key_of, peer_of
from artel.ledger.entries.records import RECORDED, Effect, Outcome, Term
from artel.ledger.entries.story import Fact, Story
from artel.ledger.entries.words import plural, short_key
from artel.protocol import canonical, dsse, schema
from artel.protocol.dsse import Envelope, Signing
from artel.protocol.errors import DecodeError
from artel.protocol.identity import Identity, short_peer

SEAL_TYPE = "application/vnd.artel.seal+json"


class SealSaid(Record):
    """What an elector signs, as a statement of type :data:`SEAL_TYPE`: it signs nothing more of
    ``term`` or the terms before, ``next`` (the key of :func:`candidate`) may begin the one after,
    and the newest certified head that it has seen is of the term ``of`` and has ``size`` entries
    and this root (0, 0 and "" for none). Of two the one of the later term is newer, then the larger
    one: what was certified in a term that was sealed with less is given up."""

    run: Digest
    term: Count
    next: OptionalDigest
    of: Count
    size: Count
    root: OptionalDigest


class Sealed(Record):
    """A node's signature under :class:`SealSaid`."""

    node: PeerId
    of: Count
    size: Count
    root: OptionalDigest
    signature: Signature


class Handover(Body):
    """``coordinator`` leads from here on; signed by its key. Where members had to choose one of
    themselves, it is the one that this node's registration names.

    ``seals`` holds what a quorum of electors signed of the term before. The tree goes on from the
    newest head that they know to be certified, or behind it.
    """

    KIND: ClassVar = "handover"
    TITLE: ClassVar = "Handover"
    DOCUMENT: ClassVar = ("seals",)
    kind: Literal["handover"] = "handover"
    term: Positive
    coordinator: Digest
    seals: Annotated[tuple[Sealed, ...], Field(min_length=1), *LISTED]

    def signings(self) -> Iterator[Signing]:
        for seal in self.seals:
            known = {"of": seal.of, "size": seal.size, "root": seal.root}
            # Whoever leads has to be whom they are for: one elector seals a term for one alone, so
            # no two can begin the next, however far the copies are in which each has the turn.
            known |= {"run": self.run, "term": self.term - 1, "next": self.coordinator}
            said = SealSaid.model_validate(known)
            message = dsse.pae(SEAL_TYPE, canonical.dumps(said.model_dump(mode="json")))
            yield key_of(seal.node), bytes.fromhex(seal.signature), message

    def heads(self) -> Iterator[tuple[int, str]]:
        return ((seal.size, seal.root) for seal in self.seals if seal.size)

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        of, size = max((seal.of, seal.size) for seal in self.seals)
        if not of <= state.term.number < self.term or size > state.size:
            return reasons.OUT_OF_ORDER
        chosen, signers = candidate(state, self.term), set(entry.envelope.signers)
        if self.coordinator != chosen or signers != {chosen} or chosen in state.convicted:
            return reasons.WRONG_SIGNERS
        sealed = state.trusted(seal.node for seal in self.seals)
        if not state.electors.sets or not state.electors.quorum(sealed):
            return reasons.NOT_SEALED

        def effect() -> Outcome:
            state.terms.append(Term(self.term, state.size, self.coordinator))
            return RECORDED

        return effect

    def says(self) -> str:
        return f"term {self.term} is led by {short_key(self.coordinator)}"

    def explain(self, story: Story) -> Iterator[Fact]:
        _, known = max((seal.of, seal.size) for seal in self.seals)
        yield Fact(
            f"sealed by {plural(len(self.seals), 'elector')}: they sign nothing more of the terms "
            "before"
        )
        yield Fact(
            f"the newest certified tree head that they knew has "
            f"{plural(known, 'entry', 'entries')}; the log goes on from entry {story.index}"
        )
        node = story.state.starts(self.coordinator)
        if node:
            yield Fact(f"no coordinator was left: node {short_peer(node)} starts this one")


def candidate(state: FoldState, term: int) -> str:
    """Who may begin a term: the key (hex) of a coordinator of the manifest, in order; once each of
    them had its turn and no state came of it, that of an elector whose word counts, the heaviest
    first; then they begin again."""
    named, weights = state.coordinators, state.electors.present
    order = sorted(state.trusted(weights), key=lambda node: (-weights[node], node))
    place = (term - state.worked - 1) % (len(named) + len(order))
    if place < len(named):
        return named[term % len(named)]
    return state.coordinator_of[order[place - len(named)]]


def handover(coordinator: Identity, run: str, *, term: int, seals: Iterable[Sealed]) -> Envelope:
    """Begin a term."""
    items = tuple(sorted(seals, key=lambda seal: seal.node))
    body = {"run": run, "term": term, "coordinator": coordinator.key, "seals": items}
    return signed(Handover, body, coordinator)


def seal(
    node: Identity, run: str, *, term: int, next: str, of: int = 0, size: int = 0, root: str = ""
) -> Envelope:
    """A node's statement that it signs nothing more of ``term``; no entry by itself.

    :param next: who may begin the next one, as of :func:`candidate`
    """
    said = SealSaid(run=run, term=term, next=next, of=of, size=size, root=root)
    return dsse.sign(SEAL_TYPE, said.model_dump(mode="json"), node)


def open_seal(data: bytes) -> tuple[SealSaid, Sealed]:
    """Read what :func:`seal` made: what it says, and the part that a handover lists. The signature
    is checked.

    :raises DecodeError: it is something else
    :raises CheckFailed: the signature does not verify
    """
    envelope = dsse.decode(data)
    if envelope.payload_type != SEAL_TYPE or len(envelope.signatures) != 1:
        raise DecodeError("not a seal of one node")
    said = schema.checked(SealSaid, canonical.loads(envelope.payload), "seal")
    envelope.verify()
    ((key, signature),) = envelope.signatures
    part = {"node": peer_of(key), "of": said.of, "size": said.size, "root": said.root}
    return said, schema.checked(Sealed, part | {"signature": signature.hex()}, "seal")
