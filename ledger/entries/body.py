"""What every kind of entry is made of: strict fields, a rule, a summary and an explanation.

A kind is one class in one file (:mod:`ledger.entries.kinds`). Its fields are integers and strings;
what it *does* is decided by :meth:`Body.rule`, from the entries before it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

from artel.ledger.entries.documents import divide, join
from artel.protocol import dsse, schema
from artel.protocol.assignment import MAX_SLICES
from artel.protocol.dsse import MAX_ENVELOPE_BYTES, Envelope, Leaf, Signing
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import Identity, public_of
from artel.protocol.terms import MAX_NODES

if TYPE_CHECKING:
    from artel.ledger.entries.fold_state import FoldState
    from artel.ledger.entries.genesis import Genesis
    from artel.ledger.entries.records import Effect
    from artel.ledger.entries.story import Fact, Story

ENTRY_TYPE = "application/vnd.artel.entry+json"
MAX_MEMBERS = MAX_NODES
"""Bound of every list of members; such lists lie in documents (:mod:`.documents`)."""


def _peer_id(value: str) -> str:
    try:
        public_of(value)
    except DecodeError as error:
        raise ValueError(error.message) from None
    return value


Digest = schema.Digest
OptionalDigest = schema.OptionalDigest
Record = schema.Record
PeerId = Annotated[str, StringConstraints(max_length=64), AfterValidator(_peer_id)]
OptionalPeer = PeerId | Literal[""]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Positive = Annotated[int, Field(ge=1, lt=1 << 53)]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
ReasonCode = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Hardware = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,64}$")]
"""A class of machines (:func:`node.trainer.machine.hardware`), or empty."""
SliceNumber = Annotated[int, Field(ge=0, lt=MAX_SLICES)]


def ascending(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """A validator: the items (or their nodes) are in order, each once."""
    names = [getattr(item, "node", item) for item in items]
    if any(left >= right for left, right in pairwise(names)):
        raise ValueError("a list is not in ascending order, or names something twice")
    return items


# JSON has lists where the bodies have tuples; only that one conversion is allowed.
LISTED = (Field(max_length=MAX_MEMBERS, strict=False), AfterValidator(ascending))


class Body(Record):
    """What every body has: its kind, and the run (id) that it belongs to."""

    KIND: ClassVar[str]
    TITLE: ClassVar[str]
    """For people, as the heading of its page."""
    DOCUMENT: ClassVar[tuple[str, ...]] = ()
    """Fields that lie in a document, because they grow with the members of a round."""
    run: Digest

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value, its document included."""
        return self.model_dump(mode="json")

    def signings(self) -> Iterator[Signing]:
        """Signatures in its document, which have to verify as those of the envelope do."""
        return iter(())

    def heads(self) -> Iterator[tuple[int, str]]:
        """Size and root (hex) of each tree head that it says to be of the log that it is in."""
        return iter(())

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        """Why it changes nothing if it comes next, or the effect that changes the state.

        The run is the state's and the signatures hold. Nothing is changed before the effect is
        called.
        """
        raise NotImplementedError

    def says(self) -> str:
        """What it says, in a few words."""
        raise NotImplementedError

    def explain(self, story: Story) -> Iterator[Fact]:
        """What it did, sentence by sentence with the numbers; it counted."""
        raise NotImplementedError

    def place(self, state: FoldState) -> tuple[int, int]:
        """The round and attempt that it belongs to, by the state before it; -1 for none."""
        return -1, -1

    def concerns(self, state: FoldState) -> set[str]:
        """Names of accounts that it says something about."""
        return set()


class AttemptBody(Body):
    """A body that belongs to an attempt of a round."""

    round: Count
    attempt: Count

    def place(self, state: FoldState) -> tuple[int, int]:
        return self.round, self.attempt


class OfWork(Body):
    """A body that speaks of a contribution (entry id)."""

    contribution: Digest

    def event(self) -> str:
        """What happened to the contribution, in a word or two."""
        raise NotImplementedError

    def place(self, state: FoldState) -> tuple[int, int]:
        item = state.work_pending(self.contribution)
        return (item.credit.round, -1) if item is not None else (-1, -1)

    def concerns(self, state: FoldState) -> set[str]:
        item = state.work_pending(self.contribution)
        return {item.credit.account} if item is not None else set()


@dataclass(frozen=True)
class Entry:
    """One decoded leaf."""

    id: str  # hex
    body: Genesis | Body
    envelope: Envelope

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def kind(self) -> str:
        return self.body.KIND

    @cached_property
    def signers(self) -> frozenset[str]:
        """Hex keys whose signatures verified, in the envelope and in the document; empty when any
        does not.

        The cost of an entry is here (about 0.2 ms a signature), so it is paid on first use.
        """
        holds = dsse.hold(chain(self.envelope.signings(), self.body.signings()))
        return self.named_signers if holds else frozenset()

    @property
    def named_signers(self) -> frozenset[str]:
        """Hex keys of all signatures, verified or not; none without one in the envelope."""
        return frozenset(key for key, _, _ in self.signings if self.envelope.signatures)

    @property
    def signings(self) -> list[Signing]:
        """Every signature that has to verify: made anew, as they take more than the entry."""
        return [*self.envelope.signings(), *self.body.signings()]

    def require_of(self, size: int, root_at: Callable[[int], bytes]) -> None:
        """Refuse it if it names a head of another tree. A fold, which has no tree, sees sizes
        alone: whoever leads could make final, or begin a term on, another history than the one
        that the signatures in it are of.

        :param size: of a tree that holds it
        :param root_at: gives the root of its first so many entries
        :raises CheckFailed: one of the heads is not of this tree
        """
        for known, root in self.body.heads():
            if known > size or root_at(known).hex() != root:
                raise CheckFailed(
                    f"{self.kind}: the head of {known} entries that it names is not of this tree",
                    "whoever added it lies, and nothing of it counts: ask another holder of the "
                    "ledger, or wait for the next term",
                )

    def checked(self, holds: bool) -> Entry:
        """The entry itself, after somebody else has found out whether its signatures verify."""
        self.__dict__["signers"] = self.named_signers if holds else frozenset()
        return self


Item = TypeVar("Item", bound=bytes | Entry)


def size_of(item: bytes | Entry) -> int:
    """Bytes of a leaf (of an entry: of what it says) and of its document.

    They bound how many signatures it has, and how much memory it takes.
    """
    if isinstance(item, Entry):
        return len(item.envelope.payload) + len(item.envelope.document)
    return len(item) + (len(item.document) if isinstance(item, Leaf) else 0)


def portions(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists, each ended by the one with which it comes to ``size`` bytes."""
    some, total = list[Item](), 0
    for item in items:
        some.append(item)
        total += size_of(item)
        if total >= size:
            yield some
            some, total = [], 0
    if some:
        yield some


def opened(kind: type[Body], value: dict[str, Any], document: bytes) -> Body:
    """The body that a payload and its document hold.

    :raises DecodeError: as :func:`validated`, or because of the document
    """
    return validated(kind, join(kind.KIND, value, document, kind.DOCUMENT))


def validated(kind: type[Body], value: dict[str, Any]) -> Body:
    """The body that ``value`` holds.

    :raises DecodeError: naming the first field that is wrong
    """
    return schema.checked(kind, value, f"entry {kind.KIND}")


def signed(kind: type[Body], fields: dict[str, Any], *signers: Identity) -> Envelope:
    """Validate as strictly as ``decode`` does, sign, and refuse what would not be a leaf.

    :raises DecodeError: it would not be decoded, or is too large
    """
    payload, document = divide(validated(kind, fields).to_dict(), kind.DOCUMENT)
    envelope = replace(dsse.sign(ENTRY_TYPE, payload, *signers), document=document)
    size = len(envelope.encode())
    if size > MAX_ENVELOPE_BYTES:
        raise DecodeError(f"a {kind.KIND} entry of {size} bytes exceeds {MAX_ENVELOPE_BYTES}")
    return envelope
