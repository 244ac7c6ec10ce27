"""What a source hands out for a tile, a bundle or a document; only a document is verified, by its
name. :mod:`.signed_tree` ties the rest to a signed root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from artel.ledger.entries.documents import attached, document_of, path_of, require_named
from artel.ledger.sync.source import Bringing, NotFound, TileSource
from artel.ledger.tlog.tiles import Tile, decode_bundle, decode_tile, encode_bundle
from artel.protocol.errors import CheckFailed, DecodeError

LIES = "the server is broken or lies; ask another one"
_AT_ONCE = 8
"""Entries whose documents are asked for together: as many paths as one request may have."""


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
        # It may only be of another version.
        raise CheckFailed(f"{found.path}: {error.message}", error.hint or LIES) from None
