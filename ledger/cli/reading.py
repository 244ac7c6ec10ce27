"""``artel ledger log | show | explain``: the entries, and what each of them did."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import AccountName, EntryName, NodeName, account_of, index_of
from artel.ledger.cli.opening import LedgerOptions
from artel.protocol.commandline import Count
from artel.protocol.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from artel.ledger.sync.client import LedgerView

FOLLOW_S = 2.0
KINDS = (
    *("genesis", "admitted", "account", "key_rotated", "node", "round_opened", "round_committed"),
    *("contribution", "round_closed", "aggregate", "slice_wrong", "state_agreed", "run_closed"),
    *("state_wrong", "jury_answer", "rolled_back", "state_upheld"),
    *("witnessed", "verdict_committed", "verdict"),
    *("dispute", "ruling", "transfer", "split_seen"),
)
"""Written out, so that the entries need not be loaded to read an option."""


# --- log and show ---------------------------------------------------------------------------------


def log(
    *,
    kind: Annotated[str | None, Parameter(choices=KINDS)] = None,
    round: Count | None = None,
    node: NodeName = None,
    mine: bool = False,
    account: AccountName = None,
    limit: Count = 50,
    follow: bool = False,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """The entries, one line each.

    example: artel ledger log --kind round_closed --limit 10

    :param kind: only this kind
    :param round: only entries about this round
    :param node: only entries that name this node: its peer id, or the end of it
    :param mine: only entries about this home's account
    :param account: only entries about this account: its key, 8 or more digits of it, or its name
    :param limit: only the last N of them, 0 for all
    :param follow: go on with new entries as they come
    """
    if mine and account:
        raise UsageError("either --mine or --account", "leave one of them out")

    def wanted(view: LedgerView) -> dict[str, Any]:
        asked: dict[str, Any] = {"kind": kind or "", "round": round}
        if not view.log.size:
            return asked
        owners = view.state.nodes
        if node:
            asked["nodes"] = [peer for peer in owners if peer.endswith(node)]
        if mine or account:
            asked["account"] = account_of(view, ledger.folder, account)
        return asked

    with ledger.opened() as view:
        shown, asked = view.log.size, wanted(view)
        found = list(_found(view, asked, limit or -1)) if shown else []
        matches = view.history.count(**asked) if shown else 0
        final = view.final_size if shown else 0
    facts = {"as_of": shown, "matches": matches, "entries": found}
    ledger.show(facts, _log(facts, final))
    return _follow(ledger, wanted, shown) if follow and not ledger.as_json else EXIT_OK


def _found(
    view: LedgerView, asked: dict[str, Any], limit: int = -1, since: int = 0
) -> Iterator[dict[str, Any]]:
    """The last entries that fit, from ``since`` on, in order."""
    from artel.ledger.entries import story

    history, final = view.history, view.final_size
    for did in reversed(history.chosen(**asked, since=since, limit=limit)):
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
        yield _line(item)
    if facts["matches"] > len(found):
        yield f"the last {len(found)} of {facts['matches']:,}; --limit 0 shows all"
    yield f"as of checkpoint {shown:,}; final before entry {final:,}"


def _line(item: dict[str, Any]) -> str:
    number = "-" if item["round"] is None else str(item["round"])
    return f"{item['index']:>6}  {item['kind']:<15}  {number:>5}  {item['summary']}"


def _follow(
    ledger: LedgerOptions, wanted: Callable[[LedgerView], dict[str, Any]], shown: int
) -> int:
    """Print what fits of the entries that come, until interrupted."""
    while True:
        sys.stdout.flush()
        time.sleep(FOLLOW_S)
        with ledger.opened() as view:
            if view.log.size:  # one run, and one word about trust
                ledger = replace(ledger, run=view.log.genesis.run)
            if view.log.size <= shown:
                continue
            for item in _found(view, wanted(view), since=shown):
                print(_line(item))
            shown = view.log.size


def show(entry: EntryName, /, *, ledger: LedgerOptions = LedgerOptions()) -> int:
    """One entry in full, with who signed it.

    example: artel ledger show 17
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
    moved = {"granted": found.granted}
    moved |= {status: found.settled(status) for status in ("vested", "invalidated")}
    facts = found.to_dict() | {
        "leaf_hash": merkle.leaf_hash(found.leaf).hex(),
        "payload_type": found.entry.envelope.payload_type,
        "bytes": len(found.leaf),
        "document": documents.document_of(found.leaf),
        "signers": signers,
        **{what: [trail.facts() for trail in trails] for what, trails in moved.items()},
        "as_of": found.size,
        "final": final,
        "body": found.entry.body.to_dict(),
    }
    return ledger.show(facts, _show(facts))


def _show(facts: dict[str, Any]) -> Iterator[str]:
    from artel.ledger.entries import reasons
    from artel.ledger.entries import words as text

    yield f"entry {facts['index']}: {facts['summary']}\n"
    yield f"kind       {facts['kind']}, {facts['bytes']:,} bytes, {facts['payload_type']}"
    yield f"id         {facts['id']}"
    yield f"leaf hash  {facts['leaf_hash']}"
    if not facts["signers"]:
        yield "signed by  nobody: a signature does not verify"
    for signer in facts["signers"]:
        who = signer["peer_id"] if signer["role"] == "node" else signer["key"]
        yield f"signed by  {signer['role']} {who}"
    why = f"ignored: {facts['reason']} ({reasons.explain(facts['reason'])})"
    status = {"credited": "counts, and changes credit", "recorded": "counts"}
    yield f"status     {status.get(facts['status'], why)}"
    for what in ("granted", "vested", "invalidated"):
        for credit in facts[what]:
            to = f"account {text.short_key(credit['account'])}"
            worth = f"{credit['amount']:,} credit for {credit['units']:,} {credit['kind']} units"
            yield f"{what:<10} {worth}, {to}"
    yield f"as of      checkpoint {facts['as_of']:,}, {_final(facts)}\n"
    yield json.dumps(facts["body"], indent=2)


def _final(facts: dict[str, Any]) -> str:
    return "final" if facts["final"] else "pending"


# --- explain --------------------------------------------------------------------------------------


def explain(entry: EntryName, /, *, ledger: LedgerOptions = LedgerOptions()) -> int:
    """The arithmetic of an entry's credit, in numbers.

    example: artel ledger explain 17
    """
    from artel.ledger.fold.explain import explain

    with ledger.opened() as view:
        found = explain(view.history, index_of(view, entry))
        final = found.did.index < view.final_size
    facts = found.to_dict() | {"as_of": found.size, "final": final}
    stands = f"entry {found.did.index} is {_final(facts)}"
    return ledger.show(facts, (*found.lines(), f"\nas of checkpoint {found.size:,}; {stands}"))
