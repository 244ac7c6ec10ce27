"""``artel ledger log | show | explain``: the entries, and what each of them did."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import AccountName, EntryName, NodeName, account_of, index_of
from artel.ledger.cli.opening import Ledger
from artel.protocol.commandline import Count
from artel.protocol.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from artel.ledger.entries import Body, Entry, Genesis
    from artel.ledger.entries.state import Credit, FoldState, Outcome
    from artel.ledger.sync.client import View

FOLLOW_S = 2.0
KINDS = (
    *("genesis", "account", "key_rotated", "node", "round_opened", "round_committed"),
    *("contribution", "round_closed", "aggregate", "slice_wrong", "state_agreed", "run_closed"),
    *("witnessed", "verdict"),
    *("dispute", "ruling", "transfer", "split_seen"),
)
"""Written out, so that the entries need not be loaded to read an option."""


# --- log and show ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """Which entries are asked for."""

    kind: str | None
    round: int | None
    node: str | None
    account: str = ""
    nodes: frozenset[str] = frozenset()
    """Those of the account."""

    def fits(self, entry: Entry, outcome: Outcome) -> bool:
        if self.kind and entry.kind != self.kind:
            return False
        if self.round is not None and _round_of(entry.body) != self.round:
            return False
        if self.node and not any(peer.endswith(self.node) for peer in _nodes(entry)):
            return False
        if not self.account:
            return True
        body = entry.body
        if self.account in (getattr(body, "account", ""), getattr(body, "to", "")):
            return True
        touched = (*outcome.granted, *outcome.vested, *outcome.invalidated)
        named = any(credit.account == self.account for credit in touched)
        return named or bool(_nodes(entry) & self.nodes)


def log(
    *,
    kind: Annotated[str | None, Parameter(choices=KINDS)] = None,
    round: Count | None = None,
    node: NodeName = None,
    mine: bool = False,
    account: AccountName = None,
    limit: Count = 50,
    follow: bool = False,
    ledger: Ledger = Ledger(),
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

    def wanted(view: View) -> _Wanted:
        rest = kind, round, node
        if not (mine or account) or not view.log.size:
            return _Wanted(*rest)
        name = account_of(view, ledger.folder, account)
        nodes = (node for node, owner in view.state.nodes.items() if owner == name)
        return _Wanted(*rest, name, frozenset(nodes))

    with ledger.opened() as view:
        shown, (found, matches) = view.log.size, _matching(view, wanted(view), limit=limit)
        final = view.final_size if shown else 0
    facts = {"as_of": shown, "matches": matches, "entries": found}
    ledger.show(facts, _log(facts, final))
    return _follow(ledger, wanted, shown) if follow and not ledger.as_json else EXIT_OK


def _matching(
    view: View, asked: _Wanted, since: int = 0, limit: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """The last entries that fit, from ``since`` on, and how many fit in all."""
    from artel.ledger.entries import story

    found: deque[dict[str, Any]] = deque(maxlen=limit or None)
    matches, final = 0, view.final_size if view.log.size else 0

    def observe(index: int, entry: Entry, outcome: Outcome) -> None:
        nonlocal matches
        if index < since or not asked.fits(entry, outcome):
            return
        matches += 1
        found.append(
            {
                "index": index,
                "id": entry.id,
                "kind": entry.kind,
                "round": _round_of(entry.body),
                "attempt": getattr(entry.body, "attempt", None),
                "status": outcome.status,
                "reason": outcome.reason,
                "final": index < final,
                "summary": story.summary(entry.body, outcome),
            }
        )

    view.replay(observe=observe)
    return list(found), matches


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


def _follow(ledger: Ledger, wanted: Callable[[View], _Wanted], shown: int) -> int:
    """Print what fits of the entries that come, until interrupted."""
    while True:
        sys.stdout.flush()
        time.sleep(FOLLOW_S)
        with ledger.opened() as view:
            if view.log.size:  # one run, and one word about trust
                ledger = replace(ledger, run=view.log.genesis.run)
            if view.log.size <= shown:
                continue
            for item in _matching(view, wanted(view), since=shown)[0]:
                print(_line(item))
            shown = view.log.size


def _round_of(body: Genesis | Body) -> int | None:
    """The round that an entry belongs to; a new state belongs to the round that made it."""
    number = getattr(body, "round", None)
    if not isinstance(number, int):
        return None
    return number - 1 if body.KIND == "state_agreed" else number


def _nodes(entry: Entry) -> set[str]:
    """Peer ids that an entry names, as signers included."""
    from artel.protocol.identity import peer_id_of

    body = entry.body
    named = {peer_id_of(bytes.fromhex(key)) for key in entry.envelope.signers}
    if isinstance(node := getattr(body, "node", None), str):
        named.add(node)
    named.update(getattr(body, "members", ()))
    named.update(getattr(body, "commitments", ()))
    for listed in ("accepted", "rejected", "cosignatures"):
        named.update(item.node for item in getattr(body, listed, ()))
    return named


def show(entry: EntryName, /, *, ledger: Ledger = Ledger()) -> int:
    """One entry in full, with who signed it.

    example: artel ledger show 17
    """
    from artel.ledger.entries import decode
    from artel.protocol import merkle
    from artel.protocol.identity import peer_id_of

    with ledger.opened() as view:
        index = index_of(view, entry)
        leaf = view.log.leaf(index)
        outcomes: deque[Outcome] = deque(maxlen=1)
        state = view.replay(index + 1, lambda _i, _e, outcome: outcomes.append(outcome))
        found, outcome = decode(leaf), outcomes[0]
        size, final, genesis = view.log.size, view.final_size, view.log.genesis
    signers = [
        {"key": key, "role": _role(key, genesis, state), "peer_id": peer_id_of(bytes.fromhex(key))}
        for key in sorted(found.signers)
    ]
    facts = {
        "index": index,
        "id": found.id,
        "leaf_hash": merkle.leaf_hash(leaf).hex(),
        "kind": found.kind,
        "payload_type": found.envelope.payload_type,
        "bytes": len(leaf),
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


def _role(key: str, genesis: Genesis, state: FoldState) -> str:
    if key in genesis.coordinators:
        return "coordinator"
    if key == genesis.organiser:
        return "organiser"
    return "account" if key in state.keys or key in state.accounts else "node"


# --- explain --------------------------------------------------------------------------------------


def explain(entry: EntryName, /, *, ledger: Ledger = Ledger()) -> int:
    """The arithmetic of an entry's credit, in numbers.

    example: artel ledger explain 17
    """
    from artel.ledger.fold.explain import explain

    with ledger.opened() as view:
        index = index_of(view, entry)
        found = explain(view.log, index)
        size, final = view.log.size, index < view.final_size
    stands = f"entry {index} is {'final' if final else 'pending'}"
    return ledger.show(
        found.to_dict() | {"as_of": size, "final": final},
        (*found.lines(), f"\nas of checkpoint {size:,}; {stands}"),
    )
