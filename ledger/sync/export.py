"""What leaves the ledger for other programs: the table of shares, and proof files.

Everything here is a function of the entries up to one checkpoint, and says which.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artel.ledger.entries import documents, entry_id
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import KINDS_OF_WORK
from artel.ledger.fold.holdings import holdings
from artel.ledger.fold.shares import split
from artel.ledger.store.database import storage_errors
from artel.ledger.sync import offline
from artel.ledger.sync.offline import ENTRY_SUFFIX, PROOF_SUFFIX, entry_beside
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.protocol import files
from artel.protocol.dsse import Leaf
from artel.protocol.errors import UsageError

if TYPE_CHECKING:
    from artel.ledger.sync.client import LedgerView

BILLION = 1_000_000_000


# --- tables ---------------------------------------------------------------------------------------


def csv_table(state: FoldState, root: bytes) -> str:
    """Accounts with their work, credit and share, the largest share first, as CSV (RFC 4180, but
    with plain line ends).

    ``share_units`` are of 2^30, ``share_ppb`` parts of 10^9; each column of shares is exact, so it
    adds up to the whole. Names that begin with ``with_pending`` count what has not vested, too.

    :param root: of the tree over the ``state.size`` entries
    """
    parts = split({name: owner.vested for name, owner in state.accounts.items()}, BILLION)
    names = ["account", *(f"{kind}_units" for kind in KINDS_OF_WORK)]
    names += ["granted", "vested", "pending", "invalidated", "sent", "received"]
    names += ["share_units", "share_ppb", "with_pending_share_units", "as_of", "root"]
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(names)
    for one in holdings(state):
        row: list[str | int] = [one.account, *(one.work.get(kind, 0) for kind in KINDS_OF_WORK)]
        row += [one.granted, one.vested, one.pending, one.invalidated, one.sent, one.received]
        row += [one.units, parts.get(one.account, 0), one.units_with_pending]
        rows.writerow([*row, state.size, root.hex()])
    return out.getvalue()


# --- proof files ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProofFiles:
    """An entry and the proof that it is in the log, both on disk."""

    index: int
    id: str
    proof: Path
    entry: Path
    document: Path | None
    """What the entry names, if it does."""
    size: int
    """Of the checkpoint in the proof."""
    certified: bool
    """Whether that checkpoint carries the cosignatures that the run asks for."""


def write_proof(view: LedgerView, index: int, path: Path) -> ProofFiles:
    """Write a proof, and beside it the entry and its document, if it has one; what exists is
    replaced.

    ``artel ledger verify PATH`` checks them offline.

    :raises UsageError: when there is no such entry, or ``path`` has the name of the entry's file
    :raises ResourceError: when the files cannot be written
    """
    leaf, proof = view.log.leaf(index), offline.prove(view.log, view.finality, index)
    entry, data = entry_beside(path), proof.encode().encode()
    if entry == path:
        raise UsageError(f"{path} ends in {ENTRY_SUFFIX}", f"end it in {PROOF_SUFFIX}")
    # Checked before it is written: a proof that does not verify helps nobody.
    offline.verify(data, leaf, run=view.state.run)
    write_file(entry, leaf)
    write_file(path, data)
    document = documents.beside(entry) if isinstance(leaf, Leaf) else None
    if isinstance(leaf, Leaf) and document is not None:
        write_file(document, leaf.document)
    size = parse_checkpoint(proof.checkpoint).size
    certified = bool(view.certified_note) and proof.checkpoint == view.certified_note
    return ProofFiles(index, entry_id(leaf), path, entry, document, size, certified)


def grounds(view: LedgerView, account: str) -> list[int]:
    """The entries that an account's credit rests on: the manifest, what the account signed, its
    contributions, and the entries that granted credit or took it away."""
    history = view.history
    spoken = [did for did in history.statements_of(account) if did.status != "ignored"]
    own = (
        d.index for d in spoken if getattr(history.entry(d.index).body, "account", "") == account
    )
    wanted = {0, *own}
    for trail in history.credits_of(account):
        settled = {trail.settled} if trail.status != "pending" else set()
        wanted |= {trail.granted, trail.credit.work} | settled
    return sorted(wanted)


def write_file(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file that is there completely or not at all; what was there before is replaced.

    :param durable: return only when it would survive a power cut
    :raises ResourceError: when it cannot be written
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, data, durable=durable)
