"""Audit of a transparency log: is what is served the tree that was signed?

Spec: https://c2sp.org/tlog-tiles@v0.1.0. It takes any such log, not only Artel's, from any source,
and the keys to trust. The short audit computes the root from the tiles on the right edge; the full
one reads every entry and every tile, and of a run it replays them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from artel.ledger.entries import StateAgreed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold import labels
from artel.ledger.fold.effects import checked
from artel.ledger.fold.shares import apply
from artel.ledger.store.finality import of_notes
from artel.ledger.store.published import run_of
from artel.ledger.sync.handing_out import read_tile, with_documents
from artel.ledger.sync.signed_tree import SignedTree, require_same, verified_head
from artel.ledger.sync.source import TileSource, newest_heads
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import open_checkpoint, origin_of, parse_checkpoint
from artel.ledger.tlog.cosignature import CosignerKey, open_cosigned, parse_key
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, TILE_WIDTH, edge_of, level_tiles, tiles_of
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.telling import Tell, silent


@dataclass(frozen=True)
class AuditReport:
    """What was found to hold, as of one checkpoint."""

    origin: str
    size: int
    root: bytes
    signers: tuple[str, ...]
    """Names of the log keys whose signatures verified."""
    cosigners: dict[str, int]
    """Names of the witnesses whose cosignatures verified, and when they signed (POSIX seconds)."""
    full: bool
    tiles: int
    """Hash tiles that were read and compared."""
    entries: int
    """Entries that were read and hashed."""
    entry_bytes: int
    checkpoint: str
    """The signed note, as served."""


def audit(
    source: TileSource,
    vkeys: Sequence[str],
    *,
    full: bool = False,
    origin: str | None = None,
    progress: Tell = silent,
    reader: Callable[[Iterator[bytes], SignedTree], object] = lambda leaves, _: deque(
        leaves, maxlen=0
    ),
) -> AuditReport:
    """Audit the log's newest checkpoint. Memory does not grow with the log.

    :param vkeys: keys to trust, at least one of the log (type 0x01), others of witnesses (0x04)
    :param full: read all entries and tiles
    :param origin: the log's origin line when it is not the name of its key
    :param reader: takes the entries of a full audit to the last one, each after it was tied to the
        signed root, and their tree; what it raises ends the audit
    :raises UsageError: when no log key is given
    :raises DecodeError: when a key is malformed
    :raises CheckFailed: when something does not hold; the message names the tile or the entry
    :raises Unreachable: when the source does not answer
    """
    keys = [parse_key(text) for text in vkeys]
    log_keys = [key for key in keys if isinstance(key, VerifierKey)]
    if not log_keys:
        raise UsageError(
            "no key of the log to check its signature with",
            "give the log's vkey, as in example.com/log+33d7b496+AeHT…",
        )
    data = source.get(CHECKPOINT_PATH)
    checkpoint, cosigners = open_cosigned(
        data, log_keys, [key for key in keys if isinstance(key, CosignerKey)], origin
    )
    signed = note.open_note(data, log_keys)
    tree = SignedTree(source, checkpoint.size, checkpoint.root)
    read = 0

    def leaves() -> Iterator[bytes]:
        """Tie every entry to the root, and so every tile above."""
        nonlocal read
        for tile in level_tiles(0, tree.size):
            found, hashes = tree.entries(tile.index)
            if tile.width == TILE_WIDTH:  # the entries gave the hash above: no tile was needed
                require_same(tile, read_tile(source, tile), hashes)
            read += sum(map(len, found))
            yield from found
            progress(tile.start + len(found), tree.size)

    if full:
        reader(leaves(), tree)
    return AuditReport(
        origin=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root,
        signers=tuple(dict.fromkeys(line.name for line in signed.signatures)),
        cosigners=cosigners,
        full=full,
        tiles=sum(1 for _ in tiles_of(checkpoint.size)) if full else len(edge_of(checkpoint.size)),
        entries=checkpoint.size if full else 0,
        entry_bytes=read,
        checkpoint=data.decode(),
    )


@dataclass(frozen=True)
class RunAudited:
    """What the entries of a run amount to, all of which were read."""

    state: FoldState
    signatures: int
    """That verified."""
    unsigned: int
    """Entries with a bad signature, which count for nothing."""
    final: int
    """Entries before this index are final."""
    told: Mapping[str, int]
    """See :meth:`labels.Recomputations.counts`."""


def audit_log(
    source: TileSource,
    vkeys: Sequence[str],
    run: str,
    *,
    full: bool = False,
    origin: str | None = None,
    progress: Tell = silent,
) -> tuple[AuditReport, RunAudited | None]:
    """As :func:`audit`; a run's id can stand for the keys, and a full audit of a run replays it.

    What is final follows from the cosignatures of its nodes, on the two heads that a source shows.
    """
    newest, certified = newest_heads(source)  # also finds out where the tiles are
    if not vkeys and not run:
        raise UsageError(
            "no key to check the log's signature with",
            "add --vkey VKEY (/ledger/run shows a run's), or --run ID for a run",
        )
    _require_term(newest, vkeys)
    keys = vkeys or [key.encode() for key in verified_head(source, newest, run=run).keys]
    if not full or not run_of(parse_checkpoint(newest).origin):
        return audit(source, keys, full=full, origin=origin, progress=progress), None
    state, signed, told = FoldState(), Counter[bool](), labels.Recomputations()

    def replay(leaves: Iterator[bytes], tree: SignedTree) -> None:
        whole = with_documents(source, leaves)
        for entry in checked(whole, 0, processes=True):
            signed[True] += len(entry.signings) if entry.signers else 0
            signed[False] += not entry.signers
            if isinstance(entry.body, StateAgreed):
                told.note(entry.body)
            entry.require_of(tree.size, tree.root_at)
            apply(state, entry)

    report = audit(source, keys, full=True, origin=origin, progress=progress, reader=replay)
    if state.size and not state.run:
        raise CheckFailed("the manifest is not signed by its organiser")
    if state.size:
        _require_leader(state, report)
    tree = SignedTree(source, report.size, report.root)
    seen = of_notes((certified, report.checkpoint), tree, state)
    counts = told.counts(state.round)
    return report, RunAudited(state, signed[True], signed[False], seen.size, counts)


def _require_term(newest: str, vkeys: Sequence[str]) -> None:
    """A run's key is that of one term."""
    names = [parse_key(text).name for text in vkeys]
    origin = parse_checkpoint(newest).origin
    run = run_of(origin)
    others = [name for name in names if run and run_of(name) == run]
    if others and origin not in names:
        raise CheckFailed(
            f"the key is that of {others[0]}, and the log is {origin} now: somebody else leads",
            f"with --run {run} in the place of --vkey its entries say who",
        )


def _require_leader(state: FoldState, report: AuditReport) -> None:
    """Whoever signed the checkpoint leads by the entries below it."""
    origin = origin_of(state.run, state.term.number)
    if report.origin != origin:
        raise CheckFailed(f"the checkpoint is of {report.origin}, its entries are of {origin}")
    open_checkpoint(report.checkpoint, origin, [state.term.leader])
