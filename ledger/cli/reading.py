"""``artel ledger log | show | explain``: the entries, and what each of them did."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import AccountName, EntryName, NodeName, account_of, index_of
from artel.ledger.cli.opening import LedgerOptions
from artel.protocol.commandline import Count
from artel.protocol.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from artel.ledger.entries import Entry
    from artel.ledger.entries.fold_state import Credit, Outcome
    from artel.ledger.sync.client import LedgerView

FOLLOW_S = 2.0
KINDS = (
    *("genesis", "account", "key_rotated", "node", "round_opened", "round_committed"),
    *("contribution", "round_closed", "aggregate", "slice_wrong", "state_agreed", "run_closed"),
    *("witnessed", "verdict"),
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
    :param account: only entries about this account: its key, the start of it, or its name
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
    from artel.ledger.entries import decode, documents, words
    from artel.ledger.entries.fold_state import peer_of
    from artel.protocol import merkle

    with ledger.opened() as view:
        index = index_of(view, entry)
        leaf, history = view.log.leaf(index), view.history
        found, outcome = decode(leaf), history.outcome(history.did(index))
        size, final = view.log.size, view.final_size
        signers = [
            {"key": key, "role": roles[0].name if roles else "account", "peer_id": peer_of(key)}
            for key, roles in words.signers(found, history.state).items()
        ]
    facts = {
        "index": index,
        "id": found.id,
        "leaf_hash": merkle.leaf_hash(leaf).hex(),
        "kind": found.kind,
        "payload_type": found.envelope.payload_type,
        "bytes": len(leaf),
        "document": documents.document_of(leaf),
        "signers": signers,
        "status": outcome.status,
        "reason": outcome.reason,
        "granted": _credits(outcome.granted),
        "vested": _credits(outcome.vested),
        "invalidated": _credits(outcome.invalidated),
        "as_of": size,
        "final": index < final,
        "body": found.body.to_dict(),
    }
    return ledger.show(facts, _show(found, outcome, facts))


def _show(entry: Entry, outcome: Outcome, facts: dict[str, Any]) -> Iterator[str]:
    from artel.ledger.entries import reasons, story
    from artel.ledger.entries import words as text
    from artel.ledger.fold import labels

    index = facts["index"]
    yield f"entry {index}: {story.summary(entry.body, outcome)}\n"
    yield f"kind       {entry.kind}, {facts['bytes']:,} bytes, {entry.envelope.payload_type}"
    yield f"id         {entry.id}"
    yield f"leaf hash  {facts['leaf_hash']}"
    if not facts["signers"]:
        yield "signed by  nobody: a signature does not verify"
    for signer in facts["signers"]:
        who = signer["peer_id"] if signer["role"] == "node" else signer["key"]
        yield f"signed by  {signer['role']} {who}"
    why = f"ignored: {outcome.reason} ({reasons.explain(outcome.reason)})"
    status = {"credited": "counts, and changes credit", "recorded": "counts"}
    yield f"status     {status.get(outcome.status, why)}"
    for what in ("granted", "vested", "invalidated"):
        for credit in facts[what]:
            to = f"account {text.short_key(credit['account'])}"
            worth = f"{credit['amount']:,} credit for {credit['units']:,} {credit['kind']} units"
            yield f"{what:<10} {worth}, {to}"
    final = labels.of_entry(index, index + 1 if facts["final"] else 0)
    yield f"as of      checkpoint {facts['as_of']:,}, {final}\n"
    yield json.dumps(facts["body"], indent=2)


def _credits(credits: tuple[Credit, ...]) -> list[dict[str, Any]]:
    return [asdict(credit) | {"amount": credit.amount} for credit in credits]


# --- explain --------------------------------------------------------------------------------------


def explain(entry: EntryName, /, *, ledger: LedgerOptions = LedgerOptions()) -> int:
    """The arithmetic of an entry's credit, in numbers.

    example: artel ledger explain 17
    """
    from artel.ledger.fold.explain import explain

    with ledger.opened() as view:
        index = index_of(view, entry)
        found = explain(view.history, index)
        size, final = view.log.size, index < view.final_size
    stands = f"entry {index} is {'final' if final else 'pending'}"
    return ledger.show(
        found.to_dict() | {"as_of": size, "final": final},
        (*found.lines(), f"\nas of checkpoint {size:,}; {stands}"),
    )
