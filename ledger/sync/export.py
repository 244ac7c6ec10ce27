"""What leaves the ledger for other programs: tables and proof files.

Everything here is a function of the entries up to one checkpoint, and says which.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.entries import documents, entry_id
from artel.ledger.entries import words as text
from artel.ledger.entries.fold_state import KINDS_OF_WORK, FoldState
from artel.ledger.fold.holdings import Aliases, holdings
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

INDEX_FILE = "index.json"
BILLION = 1_000_000_000
_FORMULA = tuple("=+-@＝＋－＠")


# --- tables ---------------------------------------------------------------------------------------


def table(state: FoldState, root: bytes, aliases: Aliases | None = None) -> list[list[str]]:
    """Accounts with their work, credit and share, the largest share first; first row: names.

    ``share_units`` are of 2^30, ``share_ppb`` parts of 10^9; each column of shares is exact, so it
    adds up to the whole. Names that begin with ``with_pending`` count what has not vested, too.

    :param root: of the tree over the ``state.size`` entries
    :param aliases: account to (alias, team), to show; only what its owner has published
    """
    parts = split({name: owner.vested for name, owner in state.accounts.items()}, BILLION)
    names = ["account", *(("alias", "team") if aliases is not None else ())]
    names += [f"{kind}_units" for kind in KINDS_OF_WORK]
    names += ["granted", "vested", "pending", "invalidated", "sent", "received"]
    names += ["share_units", "share_ppb", "with_pending_share_units", "as_of", "root"]
    rows = [names]
    for one in holdings(state, aliases):
        row: list[str | int] = [one.account]
        if aliases is not None:
            row += [cell(one.alias), cell(one.team)]
        row += [one.work.get(kind, 0) for kind in KINDS_OF_WORK]
        row += [one.granted, one.vested, one.pending, one.invalidated, one.sent, one.received]
        row += [one.units, parts.get(one.account, 0), one.units_with_pending]
        row += [state.size, root.hex()]
        rows.append([str(value) for value in row])
    return rows


def csv_text(rows: list[list[str]]) -> str:
    """Comma-separated (RFC 4180, but with plain line ends)."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def cell(foreign: str) -> str:
    """Foreign text that no spreadsheet takes for a formula and no terminal for a command."""
    shown = text.printable(foreign)
    # A formula may also hide behind spaces, which some programs drop.
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


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
    final: bool
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
    final = bool(view.final_note) and proof.checkpoint == view.final_note
    return ProofFiles(index, entry_id(leaf), path, entry, document, size, final)


def write_proofs(view: LedgerView, account: str, folder: Path) -> dict[str, Any]:
    """Write a proof of each entry that an account's credit comes from, and an index of them all.

    :returns: what the index says; ``policy`` is how ``verify`` is told whose cosignatures make
        those final that are
    """
    credits, wanted = _grounds(view, account)
    files: list[dict[str, Any]] = []
    for index in sorted(wanted):
        made = write_proof(view, index, folder / f"entry-{index}{PROOF_SUFFIX}")
        files.append(
            {
                "index": index,
                "id": made.id,
                "kind": wanted[index],
                "proof": made.proof.name,
                "entry": made.entry.name,
                "document": made.document.name if made.document is not None else "",
                "checkpoint": made.size,
                "final": made.final,
            }
        )
    owner = view.state.accounts[account]
    facts = {
        "run": view.state.run,
        "account": account,
        "as_of": view.log.size,
        "vested": owner.vested,
        "pending": owner.pending,
        "invalidated": owner.invalidated,
        "credits": credits,
        "files": files,
        "policy": view.finality.policy,
    }
    write_file(folder / INDEX_FILE, (json.dumps(facts, indent=2) + "\n").encode())
    return facts


def _grounds(view: LedgerView, account: str) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """What an account's credit rests on.

    :returns: each credit ever granted to it and what became of it; and the entries to keep for it,
        index to kind: the manifest, what the account signed, its contributions, and the entries
        that granted credit or took it away
    """
    history = view.history
    spoken = [did for did in history.statements_of(account) if did.status != "ignored"]
    own = (
        d.index for d in spoken if getattr(history.entry(d.index).body, "account", "") == account
    )
    wanted, credits = {0, *own}, []
    for trail in reversed(history.credits_of(account)):
        credits.append(trail.facts())
        settled = {trail.settled} if trail.status != "pending" else set()
        wanted |= {trail.granted, trail.credit.work} | settled
    return credits, {index: history.did(index).kind for index in sorted(wanted)}


def write_file(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file that is there completely or not at all; what was there before is replaced.

    :param durable: return only when it would survive a power cut
    :raises ResourceError: when it cannot be written
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, data, durable=durable)
