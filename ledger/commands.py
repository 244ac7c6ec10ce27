"""``artel ledger``: see and check who contributed what. Reads a copy, never touches the home."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ledger import reasons, text
from ledger.checkpoint import open_checkpoint
from ledger.entries import BODIES, Body, Entry, Genesis, StateAgreed, decode
from ledger.replay import replay
from ledger.shares import FoldState, Outcome, shares
from ledger.snapshot import snapshot
from ledger.store import LedgerStore
from ledger.verify import verify_home
from protocol import merkle
from protocol.errors import EXIT_FAILED, EXIT_OK, CheckFailed, UsageError
from protocol.identity import peer_id_of

DEFAULT_HOME = Path("~/.artel/node")
DEFAULT_LIMIT = 50
UNWITNESSED = "tamper-evident to whoever kept a checkpoint; not yet witnessed"
"""What may honestly be said as long as no witness cosigns checkpoints."""

_EXIT_CODES = """\
exit codes: 0 it holds · 1 a check failed · 2 wrong input · 3 unreachable
            4 this machine lacks something (room for a copy, a working disk)"""


def main(argv: list[str]) -> int:
    """Run ``artel ledger`` with these arguments and return the exit code.

    :raises ArtelError: for the caller to print
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="artel ledger",
        description="See and check who contributed what to a run.",
        epilog=f"example: artel ledger verify --home demo-run/coordinator\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, command: Callable[[argparse.Namespace], int], about: str, example: str
    ) -> argparse.ArgumentParser:
        sub = groups.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example: artel ledger {name} {example}\n\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument(
            "--home",
            type=Path,
            default=DEFAULT_HOME,
            metavar="DIR",
            help=f"home of a node or a coordinator (default: {DEFAULT_HOME})",
        )
        sub.add_argument("--json", action="store_true", help="print one JSON document")
        sub.set_defaults(command=command)
        return sub

    add("status", _status, "how far the ledger is, and what may be relied on", "--home DIR")
    log = add("log", _log, "the entries, one line each", "--kind round_closed --limit 10")
    kinds = ["genesis", *BODIES]
    log.add_argument(
        "--kind", choices=kinds, metavar="KIND", help=f"only this kind: {', '.join(kinds)}"
    )
    log.add_argument("--round", type=_count, metavar="R", help="only entries about this round")
    log.add_argument(
        "--node", metavar="PEER", help="only entries that name this node (peer id or its end)"
    )
    log.add_argument(
        "--limit",
        type=_count,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"only the last N of them, 0 for all (default: {DEFAULT_LIMIT})",
    )
    show = add("show", _show, "one entry in full, with who signed it", "17")
    show.add_argument("entry", metavar="INDEX|ID", help="its index, or 8 or more digits of its id")
    table = add("shares", _shares, "who owns how much, and from what work", "--json")
    table.add_argument("--at", type=_count, metavar="N", help="as it was after the first N entries")
    add(
        "verify",
        _verify,
        "check every byte, entry, signature, tree head and share of a home",
        "--home DIR",
    )
    return parser


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 0 on")
    return int(value)


@contextmanager
def _open(arguments: argparse.Namespace) -> Iterator[LedgerStore]:
    """A copy of the home's ledger, whose newest checkpoint is signed by the run's coordinator."""
    with snapshot(arguments.home.expanduser()) as copied, LedgerStore.open_copy(copied.path) as db:
        if db.size:
            open_checkpoint(db.latest_note, db.origin, db.genesis.coordinators)
        yield db


def _fold(
    store: LedgerStore,
    stop: int | None = None,
    observe: Callable[[int, Entry, Outcome], None] | None = None,
) -> FoldState:
    state = replay(store.leaves(0, stop), observe=observe)
    if state.size and not state.run:
        raise CheckFailed("the manifest is not signed by its organiser")
    return state


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


# --- status ---------------------------------------------------------------------------------------


def _status(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        if not store.size:
            return _empty(arguments)
        state = _fold(store)
        name, origin, root = store.genesis.name, store.origin, store.root.hex()
    attempt = state.attempt
    phase = attempt.phase if attempt is not None else "between rounds"
    pending = sum(state.pending().values())
    facts = {
        "name": name,
        "run": state.run,
        "origin": origin,
        "size": state.size,
        "root": root,
        "as_of": state.size,
        "round": state.round,
        "attempt": attempt.attempt if attempt is not None else None,
        "phase": phase,
        "state_root": state.states[-1],
        "accounts": len(state.credit),
        "nodes": len(state.nodes),
        "credit": state.total,
        "pending": pending,
        "ignored": state.ignored,
        "final": False,
        "witnesses": 0,
        "label": UNWITNESSED,
    }
    if arguments.json:
        _print_json(facts)
        return EXIT_OK
    retry = f", attempt {attempt.attempt}" if attempt is not None and attempt.attempt else ""
    lines = {
        "run": f"{text.printable(name)} ({state.run})",
        "origin": origin,
        "size": f"{text.plural(state.size, 'entry', 'entries')}, as of checkpoint {state.size}",
        "root": root,
        "round": f"{state.round}, {phase}{retry}",
        "state": state.states[-1],
        "people": f"{text.plural(len(state.credit), 'account')}, "
        f"{text.plural(len(state.nodes), 'node')}",
        "credit": f"{text.plural(state.total, 'token')}, {pending:,} accepted but not agreed yet",
        "ignored": text.counts(state.ignored),
        "trust": f"pending, not final: {UNWITNESSED}",
    }
    for label, line in lines.items():
        if line:
            print(f"{label:<8} {line}")
    return EXIT_OK


def _empty(arguments: argparse.Namespace) -> int:
    if arguments.json:
        _print_json({"size": 0, "root": merkle.EMPTY_ROOT.hex(), "as_of": 0, "label": UNWITNESSED})
    else:
        print("the ledger is still empty")
    return EXIT_OK


# --- log and show ---------------------------------------------------------------------------------


def _log(arguments: argparse.Namespace) -> int:
    found: deque[dict[str, Any]] = deque(maxlen=arguments.limit or None)
    lines: deque[str] = deque(maxlen=arguments.limit or None)
    matches = 0

    def observe(index: int, entry: Entry, outcome: Outcome) -> None:
        nonlocal matches
        body = entry.body
        number = _round_of(body)
        if arguments.kind and entry.kind != arguments.kind:
            return
        if arguments.round is not None and number != arguments.round:
            return
        if arguments.node and not any(p.endswith(arguments.node) for p in _nodes(entry)):
            return
        matches += 1
        found.append(
            {
                "index": index,
                "id": entry.id,
                "kind": entry.kind,
                "round": number,
                "attempt": getattr(body, "attempt", None),
                "status": outcome.status,
                "reason": outcome.reason,
                "summary": text.summary(body, outcome),
            }
        )
        shown = "-" if number is None else str(number)
        line = f"{index:>6}  {entry.kind:<15}  {shown:>5}  {text.summary(body, outcome)}"
        lines.append(line)

    with _open(arguments) as store:
        size = _fold(store, observe=observe).size
    if arguments.json:
        _print_json({"as_of": size, "matches": matches, "entries": list(found)})
        return EXIT_OK
    if not lines:
        print("no entry fits" if size else "the ledger is still empty")
        return EXIT_OK
    print(f"{'index':>6}  {'kind':<15}  {'round':>5}  what it says")
    print("\n".join(lines))
    if matches > len(lines):
        print(f"the last {len(lines)} of {matches:,}; --limit 0 shows all")
    return EXIT_OK


def _round_of(body: Genesis | Body) -> int | None:
    """The round that an entry belongs to; a new state belongs to the round that made it."""
    if isinstance(body, StateAgreed):
        return body.round - 1
    number = getattr(body, "round", None)
    return number if isinstance(number, int) else None


def _nodes(entry: Entry) -> set[str]:
    """Peer ids that an entry names, as signers included."""
    body = entry.body
    named = {peer_id_of(bytes.fromhex(key)) for key in entry.envelope.signers}
    if isinstance(node := getattr(body, "node", None), str):
        named.add(node)
    named.update(getattr(body, "members", ()))
    named.update(getattr(body, "commitments", ()))
    for listed in ("accepted", "rejected"):
        named.update(item.node for item in getattr(body, listed, ()))
    return named


def _show(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        index = _index(store, arguments.entry)
        leaf = store.leaf(index)
        outcomes: list[Outcome] = []
        state = _fold(store, index + 1, lambda _i, _e, outcome: outcomes.append(outcome))
        size, genesis = store.size, store.genesis
    entry, outcome = decode(leaf), outcomes[index]
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
        "credits": [{"account": a, "node": n, "tokens": t} for a, n, t in outcome.credits],
        "as_of": size,
        "body": entry.body.to_dict(),
    }
    if arguments.json:
        _print_json(facts)
        return EXIT_OK
    print(f"entry {index}: {text.summary(entry.body, outcome)}\n")
    print(f"kind       {entry.kind}, {len(leaf):,} bytes, {entry.envelope.payload_type}")
    print(f"id         {entry.id}")
    print(f"leaf hash  {facts['leaf_hash']}")
    if not signers:
        print("signed by  nobody: a signature does not verify")
    for signer in signers:
        who = signer["peer_id"] if signer["role"] == "node" else signer["key"]
        print(f"signed by  {signer['role']} {who}")
    status = {"credited": "counts, and grants credit", "recorded": "counts"}
    print(f"status     {status.get(outcome.status) or f'ignored: {_why(outcome)}'}")
    for account, node, tokens in outcome.credits:
        to = f"account {text.short_key(account)} for node {text.short_peer(node)}"
        print(f"credit     {text.plural(tokens, 'token')} to {to}")
    print(f"as of      checkpoint {size}\n")
    print(json.dumps(facts["body"], indent=2))
    return EXIT_OK


def _why(outcome: Outcome) -> str:
    return f"{outcome.reason} ({reasons.explain(outcome.reason)})"


def _index(store: LedgerStore, wanted: str) -> int:
    """The index that a person means; a short number is an index, anything else an id."""
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 8:
        return int(wanted)
    found = store.find(wanted)
    if len(found) != 1:
        many = "more than one entry" if found else "no entry"
        raise UsageError(f"{many} has an id that begins with {wanted}", "see artel ledger log")
    return found[0]


def _role(key: str, genesis: Genesis, state: FoldState) -> str:
    if key in genesis.coordinators:
        return "coordinator"
    if key == genesis.organiser:
        return "organiser"
    return "account" if key in state.credit else "node"


# --- shares and verify ----------------------------------------------------------------------------


def _shares(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        size = store.size if arguments.at is None else arguments.at
        if size > store.size:
            raise UsageError(f"the ledger has {store.size} entries, not {size}")
        signed = size == 0 or bool(store.note_between(size - 1, size))
        name = store.genesis.name if store.size else ""
        state = _fold(store, size)
    pending, rejected = state.pending(), state.rejected_by_account()
    rows: list[dict[str, Any]] = [
        {
            "account": share.account,
            "credit": share.credit,
            "share": share.share,
            "units": share.units,
            "pending": pending.get(share.account, 0),
            "rejected": rejected.get(share.account, {}),
        }
        for share in shares(state)
    ]
    if arguments.json:
        facts = {"run": state.run, "as_of": size, "checkpoint": signed, "round": state.round}
        _print_json(facts | {"total": state.total, "label": UNWITNESSED, "shares": rows})
        return EXIT_OK
    as_of = f"checkpoint {size}" if signed else f"entry {size} (not the end of a checkpoint)"
    print(f"shares of {text.printable(name) or 'the run'} as of {as_of}, round {state.round}")
    if not rows:
        print("nobody has credit yet; it is granted when a round's state is agreed")
        return EXIT_OK
    print(f"\n{'account':<12}  {'credit tokens':>15}  {'share':>9}  {'pending':>10}  left out")
    for share, row in zip(shares(state), rows, strict=True):
        left_out = text.counts(row["rejected"]) or "-"
        percent = f"{100 * share.share:.3f} %"
        print(
            f"{text.short_key(share.account):<12}  {share.credit:>15,}  {percent:>9}"
            f"  {row['pending']:>10,}  {left_out}"
        )
    print(f"{'total':<12}  {state.total:>15,}  {'100 %':>9}  {sum(pending.values()):>10,}")
    print(f"\npending, not final: {UNWITNESSED}")
    return EXIT_OK


def _verify(arguments: argparse.Namespace) -> int:
    home = arguments.home.expanduser()

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty() and total > 2000:
            end = "\n" if done == total else ""
            print(f"\rchecked {done:,} of {total:,} entries", end=end, file=sys.stderr, flush=True)

    result = verify_home(home, progress)
    if arguments.json:
        checks = [
            {"name": check.name, "ok": check.ok, "detail": check.detail} for check in result.checks
        ]
        facts = {"run": result.run, "size": result.size, "root": result.root}
        _print_json(facts | {"verified": result.verified, "label": UNWITNESSED, "checks": checks})
        return EXIT_OK if result.verified else EXIT_FAILED
    for check in result.checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<20}  {check.detail}")
    if result.verified:
        print(f"\nthe ledger holds: {result.size:,} entries, root {result.root}")
        print(f"pending, not final: {UNWITNESSED}")
        return EXIT_OK
    print(f"\nthe ledger in {home} does NOT hold", file=sys.stderr)
    hint = "move it aside; a node fetches it again, a coordinator restores it from a node's copy"
    print(f"  → {hint}", file=sys.stderr)
    return EXIT_FAILED
