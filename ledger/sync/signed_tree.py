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
from dataclasses import dataclass
from itertools import islice

from artel.ledger.entries import Entry, Genesis, decode
from artel.ledger.entries import body as bodies
from artel.ledger.entries.documents import attached, document_of, path_of, require_named
from artel.ledger.fold.effects import Fold, checked
from artel.ledger.fold.shares import FoldState
from artel.ledger.store.published import run_of, term_of
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.source import Bringing, NotFound, TileSource, newest_heads
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
    decode_bundle,
    decode_tile,
    edge_of,
    encode_bundle,
    tile_at,
)
from artel.ledger.tlog.tree import CACHED_TILES, Tiles, TileTree
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import leaf_hash
from artel.protocol.telling import Tell, silent
from artel.protocol.terminal import printable

_LIES = "the server is broken or lies; ask another one"
_AT_ONCE = 8
"""Entries whose documents are asked for together: as many paths as one request may have."""


# --- whose log it is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignedHead:
    """A checkpoint whose signature was verified, the note around it, and the keys that it is by."""

    note: str
    checkpoint: Checkpoint
    keys: tuple[VerifierKey, ...]

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

    def keys_for(self, origin: str) -> tuple[VerifierKey, ...]:
        """The same keys as they sign another term of the run."""
        return tuple(VerifierKey(origin, key.public) for key in self.keys)


def verified_head(
    source: TileSource, data: str | bytes, vkeys: Sequence[VerifierKey] = (), run: str = ""
) -> SignedHead:
    """A log's checkpoint, verified.

    Without keys, the log has to be that of a run: its origin names the manifest by its hash, and
    the manifest, entry 0, names the keys.

    :param source: where entry 0 is read from
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
    keys = tuple(vkeys) or tuple(_run_keys(source, checkpoint, found))
    signed = note.open_note(parsed, keys)
    if checkpoint.origin not in {line.name for line in signed.signatures}:
        raise CheckFailed(f"the checkpoint is of another log: {checkpoint.origin[:120]!r}")
    # With the lines of witnesses, not verified: whoever reads it may know their keys.
    return SignedHead(parsed.encode(), checkpoint, keys)


def _run_keys(source: TileSource, checkpoint: Checkpoint, run: str) -> list[VerifierKey]:
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
    return verifier_keys(checkpoint.origin, genesis.coordinators)


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

        tiles = Tiles(lambda tile: b"".join(read_tile(source, tile)), _LIES, cached_tiles)
        super().__init__(Edge.of(size, hashes), tiles)
        self.root, self.source = root, source
        self._bundle: tuple[int, list[bytes]] = (-1, [])
        if self.edge.root() != root:
            paths = ", ".join(tile.path for tile in edge_of(size)) or "the empty tree"
            raise CheckFailed(f"the root of {size} entries is not that of {paths}", _LIES)

    def leaf(self, index: int) -> bytes:
        """The bytes of one entry.

        :raises UsageError: when there is no such entry
        """
        if not 0 <= index < self.size:
            raise UsageError(f"there is no entry {index}; the ledger has {self.size}")
        return next(self.leaves(index, index + 1))

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Entries ``start`` to ``stop`` (default: all), read bundle by bundle, with documents."""
        return with_documents(self.source, self._bare(start, stop))

    def _bare(self, start: int, stop: int | None) -> Iterator[bytes]:
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
                f"entry {index} in {path} does not have the hash in {tile.path}", _LIES
            )


def read_tile(source: TileSource, tile: Tile) -> list[bytes]:
    """The hashes of a tile, in the number that its width says; not verified.

    :raises CheckFailed: when it is missing or not a tile
    """
    return _read_wide(source, tile, decode_tile)


def read_bundle(source: TileSource, tile: Tile, known: Sequence[bytes] = ()) -> list[bytes]:
    """The entries of a bundle, in the number that its width says; not verified.

    :param known: the first ones, which are not asked for and not returned
    :raises CheckFailed: when it is missing or not a bundle
    """
    return _read_wide(source, tile, decode_bundle, len(known), len(encode_bundle(known)))


def read_document(source: TileSource, name: str) -> bytes:
    """The document with this SHA-256 (hex).

    :raises CheckFailed: when the source does not have it, or has another one
    """
    try:
        return require_named(name, source.get(path_of(name)))
    except NotFound:
        raise CheckFailed(
            f"{source.name} lacks {path_of(name)}, which an entry names",
            "ask another holder of the ledger",
        ) from None


def with_documents(source: TileSource, leaves: Iterable[bytes]) -> Iterator[bytes]:
    """The same leaves of a run with what they name; raises as :func:`read_document`."""
    rest, known = iter(leaves), dict[str, bytes]()
    while some := list(islice(rest, _AT_ONCE)):
        names = dict.fromkeys(filter(None, map(document_of, some)))
        new = [path_of(name) for name in names if name not in known]
        if new and isinstance(source, Bringing):
            source.bring(*new)
        # Rounds with the same members name the same document, one after the other.
        known = {name: known.get(name) or read_document(source, name) for name in names}
        yield from attached(some, known.__getitem__)


def _read_wide(
    source: TileSource,
    tile: Tile,
    decode: Callable[[bytes, int], list[bytes]],
    known: int = 0,
    skip: int = 0,
) -> list[bytes]:
    try:
        found = tile
        try:
            data = source.get(tile.path, skip)
        except NotFound:
            # SPEC: Logs MAY delete any partial tile once the corresponding full tile is available.
            # Clients MAY fetch the full tile as a fallback in case the partial tile is not
            # available anymore.
            if tile == tile.full:
                raise
            found = tile.full
            try:
                data = source.get(found.path, skip)
            except NotFound:
                raise NotFound(
                    f"the log has neither {tile.path} nor {found.path}",
                    "a log serves the tiles of its checkpoint: tell its operator",
                ) from None
        return decode(data, found.width - known)[: tile.width - known]
    except DecodeError as error:
        raise CheckFailed(f"{found.path}: {error.message}", _LIES) from None


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
) -> None:
    """Append what a source has beyond a store, up to a signed head; all of it or nothing.

    :param fold: over the store; whoever owns it settles what is new
    :param tree: of the head, where it is known already
    :param most: bytes that the new entries and their documents may have
    :param instead: it takes the place of what is other in the store, also in the same term
    :param processes: as in :func:`ledger.fold.replay.decoded`
    :param progress: called with the number of entries that were read and the number of all
    :raises CheckFailed: the tree of the head does not begin with what the store holds, or is not
        what the source serves
    :raises TooMuch: it has more than ``most``
    :raises Unreachable: when the source does not answer
    """
    start, keep = store.size, None
    if start and (instead or (term_of(head.origin, head.run) or 0) > store.term):
        # What was never final may have been given up with the term before.
        tree = tree or SignedTree(source, head.size, head.root)
        start = common_size(store, tree)
        keep = start if start < store.size else None
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

    try:
        if keep is None:
            store.append_replica(read(), head.own_note(), fold.beside)
        else:
            before, anew = store.latest_note, Fold(FoldState())
            try:
                store.append_replica(read(), head.own_note(), anew.beside, keep=keep)
            finally:
                if store.latest_note != before:  # it can fail after the commit, too
                    fold.begin_anew(anew)
    except DecodeError as error:
        raise CheckFailed(f"{source.name} serves what is no entry: {error.message}") from None


def common_size(store: LedgerStore, tree: SignedTree) -> int:
    """The size of the largest of a store's own checkpoints that a tree begins with; 0 for none."""
    sizes = [size for size in store.sizes() if size <= tree.size]
    differ = bisect_left(sizes, True, key=lambda size: root_at(tree, size) != store.root_at(size))
    return sizes[differ - 1] if differ else 0


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
        keys = tuple(verifier_keys(log.origin, log.genesis.coordinators))
        head = SignedHead(log.latest_note, Checkpoint(log.origin, log.size, log.root), keys)
        return cls(name, head, log)

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
    known: Callable[[str], Sequence[VerifierKey]] = lambda _origin: (),
) -> Offer:
    """What a source holds, verified down from the run id.

    :param known: keys for an origin that were looked up before; may refuse it
    :raises CheckFailed: when what is served does not hold
    :raises Unreachable: when the source does not answer
    """
    newest, certified = newest_heads(source)
    head = verified_head(source, newest, known(parse_checkpoint(newest).origin), run)
    return Offer(source, head, SignedTree(source, head.size, head.root), certified)
