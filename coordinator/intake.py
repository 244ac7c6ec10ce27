"""What comes in from outside: each statement is decoded and its signatures are checked here, once.

Everybody after that passes the checked :class:`~artel.ledger.entries.Entry` on. Whether it counts
is for the fold to say (:func:`artel.ledger.fold.shares.check`); what the fold cannot see, the blobs
that a statement names, is looked at here. Nothing here computes with tensors: the headers, sizes
and scales of blobs are looked at, no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from artel.coordinator.sequencer import AGAIN, Sequencer
from artel.ledger import entries
from artel.ledger.entries import Entry, StateVote, reasons
from artel.ledger.fold import shares
from artel.ledger.fold.shares import FoldState
from artel.protocol import round_state
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.pseudogradient import HEADER_BYTES, Header, IndexItem
from artel.protocol.exchange.shape import Shape
from artel.protocol.fingerprints import ROW_BYTES
from artel.protocol.identity import public_of
from artel.protocol.net import wire
from artel.protocol.net.blobs import BlobStore

Show = Callable[[entries.Contribution, Shape, Sequence[IndexItem]], Awaitable[None]]
"""Has some slices of a contribution shown by who holds them; raises :class:`NotCounted`."""


KEYS = {entries.AccountBody.KIND: 1, entries.Node.KIND: 3}
"""What a registration consists of, in this order, and how many keys sign each at most."""


class NotCounted(Exception):
    """Why a contribution, or the blob of a slice, does not count: a reason code, and words.

    The code is one of :data:`~artel.ledger.entries.reasons.REJECTIONS`; or ``duplicate``: the node
    has shown its contribution already.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


async def opened(data: bytes, by: str = "") -> Entry:
    """Decode a statement and check its signatures, in a thread.

    :param by: the peer that alone has to have signed it; "" for any keys
    :raises DecodeError: it is no ledger entry
    :raises CheckFailed: it is not signed by that peer alone
    """

    def work() -> Entry:
        entry = entries.decode(data)
        # Before any is verified: there may be many.
        if by and (entry.named_signers != {public_of(by).hex()} or not entry.signers):
            raise CheckFailed("the statement is not signed by this node alone")
        assert entry.signers is not None  # checked on first use, which is here
        return entry

    return await asyncio.to_thread(work)


def registration(peer: str, data: Sequence[bytes]) -> tuple[list[Entry], str]:
    """The statements with which a node registers, and their account. Their signatures are not
    checked yet, for anybody may send them: but they are no more than a registration has.

    :raises DecodeError: it is something else
    :raises CheckFailed: it is about another node, or two accounts
    :raises Refused: more keys have signed it
    """
    found, account = list(map(entries.decode, data)), ""
    kinds = [entry.kind for entry in found]
    if kinds != [kind for kind in KEYS if kind in kinds]:
        raise DecodeError("a registration is an account entry, a node entry, or both in order")
    for entry in found:
        body = entry.body
        assert isinstance(body, entries.AccountBody | entries.Node)
        if (account and body.account != account) or getattr(body, "node", peer) != peer:
            raise CheckFailed("the registration does not bind this node to that account")
        account = body.account
        if len(entry.signings) > KEYS[entry.kind]:
            raise _refused(entry, reasons.WRONG_SIGNERS)
    return found, account


async def vote(peer: str, data: bytes) -> tuple[StateVote, str]:
    """What a node signed of a new state, and its signature in hex; checked in a thread.

    :raises DecodeError: it is something else
    :raises CheckFailed: it is not signed by this node alone
    """

    def work() -> tuple[StateVote, str]:
        said, envelope = entries.open_vote(data)
        # Looked at before it is verified: there may be many signatures.
        if envelope.signers != (public_of(peer).hex(),) or not envelope.verify():
            raise CheckFailed("the state is not signed by this node alone")
        return said, envelope.signatures[0][1].hex()

    return await asyncio.to_thread(work)


def require(fold: FoldState, entry: Entry) -> None:
    """Refuse what would change nothing: only entries that count get into the ledger.

    :raises Refused: the code says why
    """
    reason = shares.check(fold, entry)
    if reason:
        raise _refused(entry, reason)


async def append(ledger: Sequencer, entry: Entry) -> None:
    """Put what somebody else signed into the ledger; :func:`require` has let it pass.

    :raises Refused: another one came first and it changed nothing, or too much is waiting
    :raises ResourceError: the disk is full or does not work; nothing was appended
    """
    (outcome,) = await ledger.append(entry)
    if outcome.status == "ignored" and outcome is not AGAIN:
        raise _refused(entry, outcome.reason)


def _refused(entry: Entry, reason: str) -> wire.Refused:
    said = reasons.explain(reason)
    if reason == reasons.NOT_ADMITTED and isinstance(entry.body, entries.AccountBody):
        how = f"ask the organiser to run: artel ledger admit {entry.body.account}"
        return wire.Refused(said, how, code=reason)
    return wire.Refused(f"this {entry.kind} entry would change nothing: {said}", code=reason)


async def contribution(
    fold: FoldState,
    node: str,
    statement: bytes,
    shape: Shape,
    store: BlobStore,
    fingerprints: BlobStore,
    show: Show | None = None,
) -> tuple[Entry, tuple[str, ...]]:
    """A revealed contribution, checked together with its blobs.

    :param node: the peer that shows it, as the connection's handshake says
    :param shape: what contributions to this round look like
    :param fingerprints: those that were put, of a run with audits
    :param show: of a round whose contributions members hold: has some of its slices shown
    :returns: the entry, and all blobs that it consists of
    :raises NotCounted: it does not count
    """
    try:
        entry = await opened(statement)
    except DecodeError as error:
        raise NotCounted(round_state.MALFORMED, error.message) from None
    body = entry.body
    if not isinstance(body, entries.Contribution) or body.node != node:
        raise NotCounted(round_state.MALFORMED, "not a contribution of this node")
    reason = shares.check(fold, entry)
    if reason:
        raise NotCounted(_rejection(reason), reasons.explain(reason))
    wanted = ROW_BYTES * (body.tail + body.head)
    if fold.founded.audits and fingerprints.size_of(body.chain) != wanted:
        raise NotCounted(
            round_state.NO_FINGERPRINTS,
            f"the coordinator has no {wanted} bytes of fingerprints of its steps: put them first",
        )
    if not shape.slices:
        await asyncio.to_thread(_check_whole, body, shape, store)
        return entry, (body.blob,)
    pieces = await asyncio.to_thread(_listed, body, shape, store)
    if show is not None:
        await show(body, shape, pieces)
    else:
        await asyncio.to_thread(_check_pieces, body, shape, pieces, store)
    if pseudogradient.joined_digest([piece.payload for piece in pieces]) != body.payload:
        raise NotCounted(round_state.MALFORMED, "its numbers are known by another digest")
    return entry, (body.blob, *(piece.blob for piece in pieces))


def require_first(fold: FoldState, contribution: Entry) -> None:
    """Refuse numbers that another node has shown while these were looked at.

    :raises NotCounted: it has
    """
    if shares.check(fold, contribution) == round_state.COPIED:
        raise NotCounted(round_state.COPIED, reasons.explain(round_state.COPIED))


def _rejection(reason: str) -> str:
    """What ``round_closed`` calls the reason why the fold would ignore a contribution."""
    if reason == reasons.WRONG_SIGNERS:
        return round_state.BAD_SIGNATURE
    if reason == reasons.DUPLICATE or reason in reasons.REJECTIONS:
        return reason
    return round_state.MALFORMED  # for another run, round or attempt


def _listed(body: entries.Contribution, shape: Shape, store: BlobStore) -> list[IndexItem]:
    """What the index of a contribution in slices says of each."""
    data = _read(store, body.blob, store.size_of(body.blob) or 0, shape.index_bytes)
    with _counted():
        pieces = pseudogradient.open_index(
            data,
            round=body.round,
            base=body.base,
            max_sizes=shape.sizes,
        )
    if body.size != len(data) + sum(piece.size for piece in pieces):
        raise NotCounted(round_state.MALFORMED, "its size is not that of its blobs")
    return pieces


def _check_whole(body: entries.Contribution, shape: Shape, store: BlobStore) -> None:
    """Check a contribution that is one blob."""
    data = _read(store, body.blob, body.size, shape.largest)
    with _counted():
        Header(body.round, body.base, shape.codec).check(data, shape.part.layout)
    _require_numbers(data, body.payload)


def _check_pieces(
    body: entries.Contribution, shape: Shape, pieces: Sequence[IndexItem], store: BlobStore
) -> None:
    """Check the blobs of all slices, one after the other."""
    for number, piece in enumerate(pieces):
        data = _read(store, piece.blob, piece.size, shape.sizes[number])
        check_piece(body, shape, number, piece, data)


def check_piece(
    body: entries.Contribution, shape: Shape, number: int, piece: IndexItem, data: bytes
) -> None:
    """Check the blob of a slice, or its first chunk, against what the index says of it.

    :raises NotCounted: it is something else
    """
    layout, header = shape.slices[number].layout, Header(body.round, body.base, shape.codec)
    with _counted():
        if len(data) < piece.size:
            header.begins(data, piece.size, layout)
            return
        header.check(data, layout)
    _require_numbers(data, piece.payload)


def _require_numbers(data: bytes, known_by: str) -> None:
    if pseudogradient.payload_digest(memoryview(data)[HEADER_BYTES:]) != known_by:
        raise NotCounted(round_state.MALFORMED, "its numbers are known by another digest")


def check_slice(
    shape: Shape, round: int, base: str, body: entries.Aggregate, store: BlobStore
) -> None:
    """Check the blob that an aggregate entry names: here, and a result for that slice.

    :raises NotCounted: it is not
    """
    data = _read(store, body.blob, body.size, shape.sizes[body.slice])
    layout = shape.slices[body.slice].layout
    with _counted():
        Header(round, base, shape.codec, pseudogradient.SLICE_MAGIC).check(data, layout)


def _read(store: BlobStore, blob: str, size: int, most: int) -> bytes:
    """Content of ``size`` bytes; what was not put by this node may be larger than it may be."""
    path = store.path(blob)
    if path is None or store.size_of(blob) != size:
        raise NotCounted(round_state.MISSING_REVEAL, "one of its blobs was not sent")
    if size > most:
        raise NotCounted(round_state.TOO_LARGE, f"a blob of {size} bytes, at most {most} allowed")
    return path.read_bytes()


@contextmanager
def _counted() -> Iterator[None]:
    """A blob that is refused is the reason why the contribution does not count."""
    try:
        yield
    except pseudogradient.BlobRefused as error:
        raise NotCounted(error.reason, error.message) from None
