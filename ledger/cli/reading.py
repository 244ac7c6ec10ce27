"""``artel ledger log | show | explain``: the entries, and what each of them did."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from artel.ledger.cli import Add, count, print_json
from artel.ledger.cli.opening import opened
from artel.protocol.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from artel.ledger.entries import Body, Entry, Genesis
    from artel.ledger.entries.state import Credit, FoldState, Outcome
    from artel.ledger.sync.client import View

DEFAULT_LIMIT = 50
FOLLOW_S = 2.0
KINDS = (
    *("genesis", "account", "key_rotated", "node", "round_opened", "round_committed"),
    *("contribution", "round_closed", "aggregate", "slice_wrong", "state_agreed", "run_closed"),
    *("witnessed", "verdict"),
    *("dispute", "ruling", "transfer", "split_seen"),
)
"""Written out, so that the parser need not load the entries."""


def register(add: Add) -> None:
    """Add the commands."""
    log = add("log", _log, "the entries, one line each", "--kind round_closed --limit 10")
    log.add_argument(
        "--kind", choices=KINDS, metavar="KIND", help=f"only this kind: {', '.join(KINDS)}"
    )
    log.add_argument("--round", type=count, metavar="R", help="only entries about this round")
    log.add_argument(
        "--node", metavar="PEER", help="only entries that name this node (peer id or its end)"
    )
    who = log.add_mutually_exclusive_group()
    who.add_argument("--mine", action="store_true", help="only entries about this home's account")
    who.add_argument(
        "--account", metavar="KEY", help="only entries about this account (key, its start, or name)"
    )
    log.add_argument(
        "--limit",
        type=count,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"only the last N of them, 0 for all (default: {DEFAULT_LIMIT})",
    )
    log.add_argument("--follow", action="store_true", help="go on with new entries as they come")
    show = add("show", _show, "one entry in full, with who signed it", "17")
    show.add_argument("entry", metavar="INDEX|ID", help="its index, or 8 or more digits of its id")
    why = add("explain", _explain, "the arithmetic of an entry's credit, in numbers", "17")
    why.add_argument("entry", metavar="INDEX|ID", help="its index, or 8 or more digits of its id")


# --- log and show ---------------------------------------------------------------------------------


def _log(arguments: argparse.Namespace) -> int:
    from artel.ledger.entries import story

    shown = 0
    with opened(arguments) as view:
        account, nodes = _whose(arguments, view)
        found: deque[dict[str, Any]] = deque(maxlen=arguments.limit or None)
        matches = 0

        def observe(index: int, entry: Entry, outcome: Outcome) -> None:
            nonlocal matches
            if not _fits(arguments, entry, outcome, account, nodes):
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
                    "final": False,
                    "summary": story.summary(entry.body, outcome),
                }
            )

        view.replay(observe=observe)
        shown = view.log.size
        final = view.final_size if shown else 0
        for item in found:
            item["final"] = item["index"] < final
        name = arguments.account or account
    if arguments.json:
        print_json({"as_of": shown, "matches": matches, "entries": list(found)})
        return EXIT_OK
    if not found:
        print("no entry fits" if shown else "the ledger is still empty")
    else:
        print(f"{'index':>6}  {'kind':<15}  {'round':>5}  what it says")
        for item in found:
            print(_line(item))
        if matches > len(found):
            print(f"the last {len(found)} of {matches:,}; --limit 0 shows all")
        print(f"as of checkpoint {shown:,}; final before entry {final:,}")
    return _follow(arguments, shown, name) if arguments.follow else EXIT_OK


def _line(item: dict[str, Any]) -> str:
    number = "-" if item["round"] is None else str(item["round"])
    return f"{item['index']:>6}  {item['kind']:<15}  {number:>5}  {item['summary']}"


def _follow(arguments: argparse.Namespace, shown: int, name: str) -> int:
    """Print what fits of the entries that come, until interrupted."""
    from artel.ledger.entries import story

    while True:
        sys.stdout.flush()
        time.sleep(FOLLOW_S)
        with opened(arguments) as view:
            if view.log.size:
                arguments.run = view.log.genesis.run  # one run, and one word about trust
            if view.log.size <= shown:
                continue
            account, nodes = _whose(arguments, view)

            def observe(index: int, entry: Entry, outcome: Outcome) -> None:
                if index >= shown and _fits(arguments, entry, outcome, account, nodes):  # noqa: B023
                    facts = {"index": index, "kind": entry.kind, "round": _round_of(entry.body)}
                    print(_line(facts | {"summary": story.summary(entry.body, outcome)}))

            view.replay(observe=observe)
            shown = view.log.size


def _whose(arguments: argparse.Namespace, view: View) -> tuple[str, set[str]]:
    """The account whose entries are wanted, and its nodes; "" for everybody's."""
    from artel.ledger.cli.mine import account_of

    if not arguments.mine and not arguments.account:
        return "", set()
    if not view.log.size:
        return "", set()
    account = account_of(view, arguments)
    return account, {node for node, owner in view.state.nodes.items() if owner == account}


def _fits(
    arguments: argparse.Namespace, entry: Entry, outcome: Outcome, account: str, nodes: set[str]
) -> bool:
    if arguments.kind and entry.kind != arguments.kind:
        return False
    if arguments.round is not None and _round_of(entry.body) != arguments.round:
        return False
    if arguments.node and not any(peer.endswith(arguments.node) for peer in _nodes(entry)):
        return False
    if not account:
        return True
    body = entry.body
    if account in (getattr(body, "account", ""), getattr(body, "to", "")):
        return True
    touched = (*outcome.granted, *outcome.vested, *outcome.invalidated)
    return bool(_nodes(entry) & nodes) or any(credit.account == account for credit in touched)


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


def _show(arguments: argparse.Namespace) -> int:
    from artel.ledger.entries import decode
    from artel.protocol import merkle
    from artel.protocol.identity import peer_id_of

    with opened(arguments) as view:
        index = index_of(view, arguments.entry)
        leaf = view.log.leaf(index)
        outcomes: deque[Outcome] = deque(maxlen=1)
        state = view.replay(index + 1, lambda _i, _e, outcome: outcomes.append(outcome))
        entry, outcome = decode(leaf), outcomes[0]
        size, final, genesis = view.log.size, view.final_size, view.log.genesis
    signers = [
        {"key": key, "role": _role(key, genesis, state), "peer_id": peer_id_of(bytes.fromhex(key))}
        for key in sorted(entry.signers)
    ]
    facts = {
        "index": index,
        "id": entry.id,
        "leaf_hash": merkle.leaf_hash(leaf).hex(),
        "kind": entry.kind,
        "payload_type": entry.envelope.payload_type,
        "bytes": len(leaf),
        "signers": signers,
        "status": outcome.status,
        "reason": outcome.reason,
        "granted": _credits(outcome.granted),
        "vested": _credits(outcome.vested),
        "invalidated": _credits(outcome.invalidated),
        "as_of": size,
        "final": index < final,
        "body": entry.body.to_dict(),
    }
    if arguments.json:
        print_json(facts)
    else:
        _print_entry(entry, outcome, facts)
    return EXIT_OK


def _print_entry(entry: Entry, outcome: Outcome, facts: dict[str, Any]) -> None:
    from artel.ledger.entries import reasons, story
    from artel.ledger.entries import words as text
    from artel.ledger.fold import labels

    index = facts["index"]
    print(f"entry {index}: {story.summary(entry.body, outcome)}\n")
    print(f"kind       {entry.kind}, {facts['bytes']:,} bytes, {entry.envelope.payload_type}")
    print(f"id         {entry.id}")
    print(f"leaf hash  {facts['leaf_hash']}")
    if not facts["signers"]:
        print("signed by  nobody: a signature does not verify")
    for signer in facts["signers"]:
        who = signer["peer_id"] if signer["role"] == "node" else signer["key"]
        print(f"signed by  {signer['role']} {who}")
    why = f"ignored: {outcome.reason} ({reasons.explain(outcome.reason)})"
    status = {"credited": "counts, and changes credit", "recorded": "counts"}
    print(f"status     {status.get(outcome.status, why)}")
    for what in ("granted", "vested", "invalidated"):
        for credit in facts[what]:
            to = f"account {text.short_key(credit['account'])}"
            worth = f"{credit['amount']:,} credit for {credit['units']:,} {credit['kind']} units"
            print(f"{what:<10} {worth}, {to}")
    final = labels.of_entry(index, index + 1 if facts["final"] else 0)
    print(f"as of      checkpoint {facts['as_of']:,}, {final}\n")
    print(json.dumps(facts["body"], indent=2))


def _credits(credits: tuple[Credit, ...]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(credit) | {"amount": credit.amount} for credit in credits]


def index_of(view: View, wanted: str) -> int:
    """The index that a person means; a short number is an index, anything else an id.

    :raises UsageError: when there is no such entry, or more than one
    """
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 8:
        if int(wanted) >= view.log.size:
            raise UsageError(f"there is no entry {wanted}; the ledger has {view.log.size}")
        return int(wanted)
    found = view.log.find(wanted)
    if len(found) != 1:
        many = "more than one entry" if found else "no entry"
        raise UsageError(f"{many} has an id that begins with {wanted[:64]}", "see artel ledger log")
    return found[0]


def _role(key: str, genesis: Genesis, state: FoldState) -> str:
    if key in genesis.coordinators:
        return "coordinator"
    if key == genesis.organiser:
        return "organiser"
    return "account" if key in state.keys or key in state.accounts else "node"


# --- explain --------------------------------------------------------------------------------------


def _explain(arguments: argparse.Namespace) -> int:
    from artel.ledger.fold import explain

    with opened(arguments) as view:
        index = index_of(view, arguments.entry)
        found = explain.explain(view.log, index)
        size, final = view.log.size, view.final_size
    if arguments.json:
        print_json(found.to_dict() | {"as_of": size, "final": index < final})
        return EXIT_OK
    print("\n".join(found.lines()))
    print(
        f"\nas of checkpoint {size:,}; entry {index} is {'final' if index < final else 'pending'}"
    )
    return EXIT_OK
