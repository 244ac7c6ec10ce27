"""``artel ledger log | explain``: the entries, and what each of them did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import AccountName, EntryName, account_of, index_of
from artel.ledger.cli.opening import LedgerOptions
from artel.protocol.commandline import Count
from artel.protocol.errors import UsageError

if TYPE_CHECKING:
    from artel.ledger.sync.client import LedgerView

KINDS = (
    *("genesis", "amended", "admitted", "account", "key_rotated", "node"),
    *("round_opened", "round_committed"),
    *("contribution", "round_closed", "aggregate", "slice_wrong", "state_agreed", "run_closed"),
    *("state_wrong", "jury_answer", "diverged", "rolled_back", "state_upheld"),
    *("witnessed", "handover", "verdict_committed", "verdict"),
    *("dispute", "ruling", "transfer", "split_seen"),
)
"""Written out, so that the entries need not be loaded to read an option."""


def log(
    *,
    kind: Annotated[str | None, Parameter(choices=KINDS)] = None,
    round: Count | None = None,
    mine: bool = False,
    account: AccountName = None,
    limit: Count = 50,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """The entries, one line each.

    example: artel ledger log --kind round_closed --limit 10

    :param kind: only this kind
    :param round: only entries about this round
    :param mine: only entries about this home's account
    :param account: only entries about this account: its key, or 8 or more digits of it
    :param limit: only the last N of them, 0 for all
    """
    if mine and account:
        raise UsageError("either --mine or --account", "leave one of them out")

    with ledger.opened() as view:
        shown = view.log.size
        asked: dict[str, Any] = {"kind": kind or "", "round": round}
        if shown and (mine or account):
            asked["account"] = account_of(view, ledger.folder, account)
        found = list(_found(view, asked, limit or -1)) if shown else []
        matches = view.history.count(**asked) if shown else 0
        final = view.final_size if shown else 0
    facts = {"as_of": shown, "matches": matches, "entries": found}
    return ledger.show(facts, _log(facts, final))


def _found(view: LedgerView, asked: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """The last entries that fit, in order."""
    from artel.ledger.entries import story

    history, final = view.history, view.final_size
    for did in reversed(history.chosen(**asked, limit=limit)):
        entry = history.entry(did.index)
        yield {
            "index": did.index,
            "id": entry.id,
            "kind": did.kind,
            "round": did.round if did.round >= 0 else None,
            "attempt": did.attempt if did.attempt >= 0 else None,
            "status": did.status,
            "reason": did.reason,
            "final": did.index < final,
            "summary": story.summary(entry.body, history.outcome(did)),
        }


def _log(facts: dict[str, Any], final: int) -> Iterator[str]:
    shown, found = facts["as_of"], facts["entries"]
    if not found:
        yield "no entry fits" if shown else "the ledger is still empty"
        return
    yield f"{'index':>6}  {'kind':<15}  {'round':>5}  what it says"
    for item in found:
        number = "-" if item["round"] is None else str(item["round"])
        yield f"{item['index']:>6}  {item['kind']:<15}  {number:>5}  {item['summary']}"
    if facts["matches"] > len(found):
        yield f"the last {len(found)} of {facts['matches']:,}; --limit 0 shows all"
    yield f"as of checkpoint {shown:,}; final before entry {final:,}"


def explain(entry: EntryName, /, *, ledger: LedgerOptions = LedgerOptions()) -> int:
    """One entry in full: what it did with the arithmetic of its credit, what it says, who signed.

    example: artel ledger explain 17
    """
    from artel.ledger.entries import documents, words
    from artel.ledger.entries.fold_state import peer_of
    from artel.ledger.fold.explain import explain
    from artel.protocol import merkle

    with ledger.opened() as view:
        found = explain(view.history, index_of(view, entry))
        final = found.did.index < view.final_size
        signers = [
            {"key": key, "role": roles[0].name if roles else "account", "peer_id": peer_of(key)}
            for key, roles in words.signers(found.entry, view.state).items()
        ]
    facts = found.to_dict() | {
        "leaf_hash": merkle.leaf_hash(found.leaf).hex(),
        "payload_type": found.entry.envelope.payload_type,
        "bytes": len(found.leaf),
        "document": documents.document_of(found.leaf),
        "signers": signers,
        "as_of": found.size,
        "final": final,
        "body": found.entry.body.to_dict(),
    }
    return ledger.show(facts, (*found.lines(), *_details(facts)))


def _details(facts: dict[str, Any]) -> Iterator[str]:
    yield f"\n{json.dumps(facts['body'], indent=2)}\n"
    yield f"id         {facts['id']}"
    yield f"leaf hash  {facts['leaf_hash']}, of {facts['bytes']:,} bytes"
    if not facts["signers"]:
        yield "signed by  nobody: a signature does not verify"
    for signer in facts["signers"]:
        who = signer["peer_id"] if signer["role"] == "node" else signer["key"]
        yield f"signed by  {signer['role']} {who}"
    stands = "final" if facts["final"] else "pending"
    yield f"as of checkpoint {facts['as_of']:,}; entry {facts['index']} is {stands}"
