"""Small transparency logs with real keys, written as tiles or held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from artel.ledger.entries.documents import document_of, path_of
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint
from artel.ledger.tlog.cosignature import add_lines, cosign
from artel.ledger.tlog.note import SignatureLine, VerifierKey
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import ENTRIES, encode_bundle, level_tiles, tiles_of
from artel.protocol.dsse import Leaf
from artel.protocol.identity import Identity
from artel.protocol.merkle import leaf_hash
from leaf_hashes import LeafHashes

ORIGIN = "example.com/test-log"


def key(name: str) -> Identity:
    """A fixed identity."""
    return Identity.from_seed(hashlib.sha256(b"test key " + name.encode()).digest())


LOG = key("log")
LOG_KEY = VerifierKey(ORIGIN, LOG.public)


def leaves_of(count: int, name: str = "entry") -> list[bytes]:
    return [f"{name} {number}".encode() for number in range(count)]


def tree_of(leaves: Iterable[bytes]) -> LeafHashes:
    return LeafHashes([leaf_hash(leaf) for leaf in leaves])


def naive_root(hashes: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, word by word, over leaf hashes."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    left, right = naive_root(hashes[:split]), naive_root(hashes[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def signed(tree: LeafHashes, size: int, origin: str = ORIGIN, signer: Identity = LOG) -> str:
    """The checkpoint of the first ``size`` leaves."""
    text = Checkpoint(origin, size, root_at(tree, size)).encode()
    return note.sign(text, origin, signer).encode()


def cosigned(text: str, *witnesses: tuple[Identity, str], time: int = 1_700_000_000) -> str:
    """The note with a cosignature by each of the witnesses."""
    parsed = note.parse(text)
    lines: list[SignatureLine] = [
        cosign(identity, name, parsed.text, time) for identity, name in witnesses
    ]
    return add_lines(parsed, lines).encode()


def write_file(folder: Path, path: str, data: bytes) -> None:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


def write_log(folder: Path, leaves: Sequence[bytes], checkpoint: str = "") -> LeafHashes:
    """All tiles and bundles of a tree over ``leaves``, and its checkpoint."""
    tree = tree_of(leaves)
    for tile in tiles_of(len(leaves)):
        first = tile.index * 256
        hashes = [tree.subtree(8 * tile.level, first + i) for i in range(tile.width)]
        write_file(folder, tile.path, b"".join(hashes))
    for bundle in level_tiles(ENTRIES, len(leaves)):
        part = leaves[bundle.start : bundle.start + bundle.width]
        write_file(folder, bundle.path, encode_bundle(part))
    for leaf in leaves:
        if isinstance(leaf, Leaf):
            write_file(folder, path_of(document_of(leaf)), leaf.document)
    write_file(folder, "checkpoint", (checkpoint or signed(tree, len(leaves))).encode())
    return tree
