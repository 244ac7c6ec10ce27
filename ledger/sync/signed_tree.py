"""The tree behind a signed head, as a source shows it: every byte tied to the signed root.

Spec: https://c2sp.org/tlog-tiles@v0.1.0, any log, not only Artel's. The partial tiles on the right
edge give the root; the hash of every full tile is in the tile above it, and that of an entry in
the level-0 tile beside its bundle. So nothing is used before it is known to be what was signed, and
memory does not grow with the log.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from sqlite3 import Connection

from artel.ledger.entries import Entry, Genesis, decode
from artel.ledger.entries import body as bodies
from artel.ledger.entries.records import Term, signers_in
from artel.ledger.fold.effects import Fold, checked
from artel.ledger.fold.shares import FoldState
from artel.ledger.store.published import run_of, term_of
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.handing_out import LIES, read_bundle, read_tile, with_documents
from artel.ledger.sync.leadership import first_term, terms_shown
from artel.ledger.sync.source import TileSource, newest_heads
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, parse_checkpoint, verifier_keys
from artel.ledger.tlog.edge import Edge, perfect
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import (
    ENTRIES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    decode_tile,
    edge_of,
    tile_at,
)
from artel.ledger.tlog.tree import CACHED_TILES, Tiles, TileTree
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import leaf_hash
from artel.protocol.telling import Tell, silent
from artel.protocol.terminal import printable

# --- whose log it is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignedHead:
    """A checkpoint whose signature was verified, the note around it, and the keys that it is by."""

    note: str
    checkpoint: Checkpoint
    keys: tuple[VerifierKey, ...]
    terms: tuple[Term, ...] = ()
    """Who has led the run, as far as its tree shows it; none where the keys were given."""

    @property
    def origin(self) -> str:
        return self.checkpoint.origin

    @property
    def size(self) -> int:
        return self.checkpoint.size

    @property
    def root(self) -> bytes:
        return self.checkpoint.root

    @property
    def run(self) -> str:
        """The run whose log it is; "" for a log that is no run's."""
        return run_of(self.origin)

    def own_note(self) -> str:
        """The note without the lines of others, such as witnesses."""
        return note.open_note(self.note, self.keys).encode()

    def keys_for(self, origin: str) -> list[VerifierKey]:
        """By which keys a head of this log counts, as far as is known here: those of its own term,
        or of another term of the run its leader's."""
        if origin == self.origin:
            return list(self.keys)
        return verifier_keys(origin, signers_in(term_of(origin, self.run), self.terms))

    @property
    def term(self) -> int:
        """Its term; 0 of a log that is no run's."""
        return term_of(self.origin, self.run) or 0

    @property
    def place(self) -> tuple[int, int]:
        """Term and size: of two heads of a run the greater one is the newer."""
        return self.term, self.size


def verified_head(
    source: TileSource, data: str | bytes, vkeys: Sequence[VerifierKey] = (), run: str = ""
) -> SignedHead:
    """A log's checkpoint, verified.

    Without keys, the log has to be that of a run: its origin names the manifest by its hash, the
    manifest, entry 0, names who leads in term 0, and a ``handover`` in the tree who does later.

    :param source: where these entries are read from
    :param run: the run that it must be; any, when empty
    :raises DecodeError: when the checkpoint is malformed
    :raises CheckFailed: when it is not signed by such a key, or of another run
    :raises Unreachable: when the source does not answer
    """
    parsed = note.parse(data)
    checkpoint = Checkpoint.parse(parsed.text)
    found = run_of(checkpoint.origin)
    if run and found and found != run:
        raise CheckFailed(f"{source.name} holds run {found[:12]}…, not {run[:12]}…")
    terms = () if vkeys else tuple(_run_terms(source, checkpoint, found))
    keys = tuple(vkeys) or tuple(verifier_keys(checkpoint.origin, [terms[-1].leader]))
    signed = note.open_note(parsed, keys)
    if checkpoint.origin not in {line.name for line in signed.signatures}:
        raise CheckFailed(f"the checkpoint is of another log: {checkpoint.origin[:120]!r}")
    # With the lines of witnesses, not verified: whoever reads it may know their keys.
    return SignedHead(parsed.encode(), checkpoint, keys, terms)


def _run_terms(source: TileSource, checkpoint: Checkpoint, run: str) -> list[Term]:
    if not run:
        raise CheckFailed(
            f"{source.name} holds a log that is no run of Artel: "
            f"{printable(checkpoint.origin[:120])!r}",
            "give the key to trust, as the log's operator publishes it: --vkey VKEY; any log can "
            "be checked with artel ledger audit TARGET --vkey VKEY",
        )
    if not checkpoint.size:
        raise CheckFailed("the log is still empty", "try again when the run has started")
    genesis, _ = manifest_of(source, run, checkpoint.size)
    last = term_of(checkpoint.origin, run) or 0
    if not last:
        return [first_term(genesis)]
    tree = SignedTree(source, checkpoint.size, checkpoint.root)
    return terms_shown(source, tree, genesis, last)


def manifest_of(source: TileSource, run: str, size: int = 1) -> tuple[Genesis, bytes]:
    """Entry 0 as a source with ``size`` entries has it, which must be the manifest of ``run``.

    :raises CheckFailed: when it is something else
    """
    leaf = read_bundle(source, Tile(ENTRIES, 0, min(TILE_WIDTH, size)))[0]
    try:
        body = decode(leaf).body
    except DecodeError as error:
        raise CheckFailed(f"entry 0 is no manifest: {error.message}") from None
    if not isinstance(body, Genesis) or body.run != run:
        raise CheckFailed(
            f"the manifest that {source.name} shows is of another run than {run[:12]}…"
        )
    return body, leaf


# --- what it holds --------------------------------------------------------------------------------


class SignedTree(TileTree):
    """The tree of ``size`` leaves in the tiles of a source, and its entries.

    :param root: from a checkpoint whose signature was verified
    :raises CheckFailed: when the right edge does not give the root
    :raises Unreachable: when the source does not answer
    """

    def __init__(
        self, source: TileSource, size: int, root: bytes, cached_tiles: int = CACHED_TILES
    ) -> None:
        def hashes(level: int, index: int, count: int) -> list[bytes]:
            place = index // TILE_WIDTH
            return read_tile(source, Tile(level, place, count)) if count else []

        tiles = Tiles(lambda tile: b"".join(read_tile(source, tile)), LIES, cached_tiles)
        super().__init__(Edge.of(size, hashes), tiles)
        self.root, self.source = root, source
        self._bundle: tuple[int, list[bytes]] = (-1, [])
        if self.edge.root() != root:
            paths = ", ".join(tile.path for tile in edge_of(size)) or "the empty tree"
            raise CheckFailed(f"the root of {size} entries is not that of {paths}", LIES)

    def leaf(self, index: int) -> bytes:
        """The bytes of one entry.

        :raises UsageError: when there is no such entry
        """
        if not 0 <= index < self.size:
            raise UsageError(f"there is no entry {index}; the ledger has {self.size}")
        return next(self.leaves(index, index + 1))

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Entries ``start`` to ``stop`` (default: all), read bundle by bundle, with documents."""
        return with_documents(self.source, self.bare(start, stop))

    def bare(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The same entries without their documents."""
        stop = self.size if stop is None else min(stop, self.size)
        while start < stop:
            bundle, place = divmod(start, TILE_WIDTH)
            if self._bundle[0] != bundle:
                self._bundle = (bundle, self.entries(bundle)[0])
            leaves = self._bundle[1][place : place + stop - start]
            yield from leaves
            start += len(leaves)

    def entries(self, index: int) -> tuple[list[bytes], list[bytes]]:
        """The entries of a bundle, and their leaf hashes."""
        bundle = tile_at(ENTRIES, index, self.size)
        leaves = read_bundle(self.source, bundle)
        hashes = list(map(leaf_hash, leaves))
        whole = bundle.width == TILE_WIDTH
        if not whole or perfect(hashes) != self.subtree(TILE_HEIGHT, index):
            tile = Tile(0, index, bundle.width)
            require_same(tile, decode_tile(self.hashes(tile), tile.width), hashes)
        return leaves, hashes


def require_same(tile: Tile, hashes: Iterable[bytes], found: Iterable[bytes]) -> None:
    """Entries must have the hashes of their level-0 tile.

    :raises CheckFailed: naming the first that has not
    """
    for index, (ours, theirs) in enumerate(zip(hashes, found, strict=True), tile.start):
        if ours != theirs:
            path = Tile(ENTRIES, tile.index, tile.width).path
            raise CheckFailed(
                f"entry {index} in {path} does not have the hash in {tile.path}", LIES
            )


# --- taking it over -------------------------------------------------------------------------------

NEAR = 2 * TILE_WIDTH
"""So many new entries are read before they are known to be what was signed: that they are is seen
when they are appended, and no tile is needed for it."""


class TooMuch(CheckFailed):
    """A log has more beyond a copy than whoever keeps that wants to take over."""


def take_over(
    store: LedgerStore,
    source: TileSource,
    head: SignedHead,
    fold: Fold,
    tree: SignedTree | None = None,
    *,
    most: float = math.inf,
    instead: bool = False,
    processes: bool = False,
    progress: Tell = silent,
    folded: Callable[[FoldState], None] = lambda state: None,
) -> None:
    """Append what a source has beyond a store, up to a signed head; all of it or nothing.

    :param fold: over the store; whoever owns it settles what is new
    :param tree: of the head, where it is known already
    :param most: bytes that the new entries and their documents may have
    :param instead: it takes the place of what is other in the store, also in the same term
    :param processes: as in :func:`ledger.fold.replay.decoded`
    :param progress: called with the number of entries that were read and the number of all
    :param folded: called with what the fold has come to, after every few entries
    :raises CheckFailed: the tree of the head does not begin with what the store holds, or is not
        what the source serves
    :raises TooMuch: it has more than ``most``
    :raises Unreachable: when the source does not answer
    """
    start, keep = store.size, None
    if start and (instead or (term_of(head.origin, head.run) or 0) > store.term):
        # What was never final may have been given up with the term before.
        tree = tree or SignedTree(source, head.size, head.root)
        common, final = common_size(store, tree), fold.state.final
        if common < final:
            raise CheckFailed(
                f"{source.name} shows a history that goes another way after {common} entries, and "
                f"{final} are final here",
                "too many electors have signed both: keep this home, and tell the organiser",
            )
        if common < start:
            # From one of the own heads on: what both have behind that comes in once more.
            start = keep = max((size for size in store.sizes() if size <= common), default=0)
    if tree is None and head.size - start > NEAR:
        tree = SignedTree(source, head.size, head.root)
    near = with_documents(source, _near(store, source, head.size))
    leaves = near if tree is None else tree.leaves(start)

    def read() -> Iterator[Entry]:
        left = most
        for done, entry in enumerate(checked(leaves, start, processes=processes), start + 1):
            if (left := left - bodies.size_of(entry)) < 0:
                raise TooMuch(
                    f"{source.name} has more than {most:,} bytes of entries beyond {start:,}",
                    "read its pages; the copy of a node that takes part has no such limit",
                )
            yield entry
            progress(done, head.size)

    anew = fold if keep is None else Fold(FoldState())

    def beside(connection: Connection, new: Sequence[Entry], first: int) -> None:
        anew.beside(connection, new, first)
        anew.require_terms(head.terms)
        folded(anew.begun)

    try:
        if keep is None:
            store.append_replica(read(), head.own_note(), beside)
        else:
            before = store.latest_note
            try:
                store.append_replica(read(), head.own_note(), beside, keep=keep)
            finally:
                if store.latest_note != before:  # it can fail after the commit, too
                    fold.begin_anew(anew)
    except DecodeError as error:
        raise CheckFailed(f"{source.name} serves what is no entry: {error.message}") from None


def common_size(store: LedgerReader, tree: SignedTree) -> int:
    """How many entries a ledger and a tree begin with both; they need not be those of any head."""

    def differ(size: int) -> bool:
        return root_at(tree, size) != store.root_at(size)

    most = min(store.size, tree.size)
    return bisect_left(range(1, most + 1), True, key=differ) if differ(most) else most


def _near(store: LedgerStore, source: TileSource, size: int) -> Iterator[bytes]:
    start = store.size
    while start < size:
        bundle, known = next_bundle(store, start, size)
        yield from read_bundle(source, bundle, known)
        start = bundle.end


def next_bundle(store: LedgerReader, start: int, size: int) -> tuple[Tile, list[bytes]]:
    """The bundle of a tree of ``size`` entries that holds entry ``start``, and those before it."""
    bundle = tile_at(ENTRIES, start // TILE_WIDTH, size)
    return bundle, list(store.bare(bundle.start, start))


# --- both -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A signed tree head that somebody shows, and the tree behind it if they show that, too."""

    name: str
    head: SignedHead
    tree: LedgerReader | SignedTree | None
    """None: its signature verifies, and that is all."""

    @classmethod
    def of(cls, log: LedgerReader, name: str) -> Shown:
        """What a ledger that lies here shows."""
        terms = tuple(log.terms()) or (first_term(log.genesis),)
        keys = tuple(verifier_keys(log.origin, log.signers(log.term)))
        head = Checkpoint(log.origin, log.size, log.root)
        return cls(name, SignedHead(log.latest_note, head, keys, terms), log)

    @property
    def size(self) -> int:
        return self.head.size


@dataclass(frozen=True)
class Offer:
    """A tree that somebody holds, and its signed head: what there is to take over."""

    source: TileSource
    head: SignedHead
    tree: SignedTree
    certified: str
    """The newest certified head that came with it, not verified; "" for none."""

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def shown(self) -> Shown:
        """The same, to be held against another one."""
        return Shown(self.name, self.head, self.tree)


def offered(
    source: TileSource,
    run: str = "",
    known: Callable[[str], Sequence[Term]] = lambda _origin: (),
) -> Offer:
    """What a source holds, verified down from the run id.

    :param known: who has led up to the term of an origin, where that was looked up before
    :raises CheckFailed: when what is served does not hold
    :raises Unreachable: when the source does not answer
    """
    newest, certified = newest_heads(source)
    origin = parse_checkpoint(newest).origin
    terms = tuple(known(origin))
    head = verified_head(
        source, newest, verifier_keys(origin, [term.leader for term in terms[-1:]]), run
    )
    head = replace(head, terms=terms or head.terms)
    return Offer(source, head, SignedTree(source, head.size, head.root), certified)
