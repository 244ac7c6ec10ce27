"""``artel ledger prove | verify``: a proof to keep, and checks that need nobody else."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import AccountName, EntryName, account_of, index_of, quote, read
from artel.ledger.cli.opening import DEFAULT_HOME, LedgerOptions
from artel.protocol import options
from artel.protocol.commandline import (
    AsJson,
    Count,
    File,
    RunId,
    Table,
    VKeys,
    progress,
    show,
    values,
)
from artel.protocol.dsse import Leaf
from artel.protocol.errors import EXIT_FAILED, EXIT_OK, EXIT_RESOURCE, CheckFailed, UsageError
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.fold.labels import Unchecked
    from artel.ledger.fold.recheck_states import StateChecked
    from artel.ledger.store.verify import Verification
    from artel.ledger.sync.offline import Proven

# --- prove ----------------------------------------------------------------------------------------


def prove(
    entry: EntryName | None = None,
    /,
    *,
    account: AccountName = None,
    output: Annotated[File | None, Parameter(name="-o")] = None,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Write a proof of an entry that anybody can check offline; without an entry, of each that an
    account's credit comes from, to keep.

    example: artel ledger prove 17

    :param account: whose credit; otherwise that of HOME/account.key
    :param output: the proof, otherwise entry-INDEX.tlog-proof; the entry's bytes go beside it, with
        the ending .json, and the document that it names if it does with .document.json; what exists
        is replaced. Without an entry: the folder for all of them, otherwise proofs
    """
    from artel.ledger.fold import labels
    from artel.ledger.sync.export import grounds, write_proof
    from artel.ledger.sync.offline import PROOF_SUFFIX

    with ledger.opened() as view:
        folder = Path()
        if entry is not None:
            wanted = [index_of(view, entry)]
        else:
            folder, output = output or Path("proofs"), None
            name = account_of(view, ledger.folder, account)
            if not name:
                raise CheckFailed(
                    f"as of checkpoint {view.log.size}, {ledger.folder} has the key of no account",
                    "say whose proofs: --account KEY",
                )
            wanted = grounds(view, name)
        made = [
            write_proof(view, index, output or folder / f"entry-{index}{PROOF_SUFFIX}")
            for index in wanted
        ]
        size, needed, run = view.log.size, view.needed, view.state.run
        policy = view.finality.policy
    last = next((each for each in reversed(made) if each.certified), made[-1])
    words = ["artel", "ledger", "verify", str(last.proof), str(last.entry)]
    command = shlex.join([*words, *(policy if last.certified else [])])
    facts: dict[str, Any] = {"run": run, "as_of": size, "verify": command, "proofs": made}
    certified = sum(each.certified for each in made)
    standing = f"{certified} of {len(made)} certified, with {needed} or more cosignatures"
    if not certified:
        standing = f"{labels.pending(needed)}; prove it again later for a proof with cosignatures"
    shown = [f"{last.proof}  that entry {last.index} is in the ledger", f"{last.entry}  the entry"]
    if last.document is not None:
        shown.append(f"{last.document}  what it names")
    if entry is None:
        shown = [f"wrote {len(made)} proofs and their entries to {folder}"]
    return ledger.show(facts, (*shown, standing, f"\ncheck it offline, anywhere:\n  {command}"))


# --- verify ---------------------------------------------------------------------------------------


def verify(
    proof: File | None = None,
    entry: File | None = None,
    /,
    *,
    home: Annotated[tuple[Path, ...], values(options.path, "DIR", name="--home")] = (),
    states: Count = 0,
    vkey: VKeys = (),
    run: RunId = "",
    policy: Count = 0,
    as_json: AsJson = False,
) -> int:
    """Check a proof or evidence offline; without a file, every byte of a home's ledger.

    example: artel ledger verify entry-17.tlog-proof entry-17.json

    :param proof: a proof, or evidence
    :param entry: of the proof; otherwise the file beside it
    :param home: of a node or a coordinator, when no file is given; otherwise ~/.artel/node. May be
        given several times: the ledger is the first one's, states and contributions may lie in any
    :param states: recompute so many agreed states too, the newest, as far as the homes have what
        that takes
    :param run: run id that the proof has to be of
    :param policy: how many of the witnesses that --vkey names must have cosigned; `prove` prints
        them
    """
    if proof is not None and (home or states):
        raise UsageError("either files, or --home and --states", "leave one of them out")
    if proof is None:
        return _verify_home([expanded(each) for each in home or (DEFAULT_HOME,)], states, as_json)
    from artel.ledger.sync.offline import PROOF_SUFFIX, entry_beside

    if entry is None and not proof.name.endswith(PROOF_SUFFIX):
        return _verify_evidence(proof, vkey, as_json)
    return _verify_proof(proof, entry or entry_beside(proof), vkey, run, policy, as_json)


def _verify_proof(
    proof: Path, entry: Path, vkeys: Sequence[str], run: str, policy: int, as_json: bool
) -> int:
    from artel.ledger.sync import offline

    found = offline.verify(read(proof), _leaf(entry), vkeys, run)
    enough = len(found.cosigners) >= policy
    facts = _facts(found) | {"verified": enough, "policy": policy}
    show(facts, _proven(found), as_json=as_json)
    if not enough:
        raise CheckFailed(
            f"{len(found.cosigners)} witnesses that --vkey names have cosigned, "
            f"{policy} are asked for",
            "the rest holds; artel ledger prove prints the keys of those that certify it, "
            "and a later proof of it may carry more",
        )
    return EXIT_OK


def _leaf(entry: Path) -> bytes:
    """An entry in a file, with the document that it names if that lies beside it."""
    from artel.ledger.entries import documents

    leaf, beside = read(entry), documents.beside(entry)
    if not documents.document_of(leaf) or not beside.is_file():
        return leaf
    return Leaf(leaf, read(beside, documents.MAX_DOCUMENT_BYTES))


def _facts(found: Proven) -> dict[str, Any]:
    head, entry = found.checkpoint, found.entry
    facts: dict[str, Any] = {
        "origin": head.origin,
        "run": found.run,
        "index": found.index,
        "as_of": head.size,
        "root": head.root.hex(),
        "log_key": found.log_key,
        "log_key_from": "--vkey" if found.pinned else "the run id",
        "term": found.terms[-1].number if found.terms else None,
        "sealed_by": found.sealed_by,
        "cosigners": found.cosigners,
        "unknown_cosigners": found.unknown_cosigners,
    }
    if entry is not None:
        facts |= {"id": entry.id, "kind": entry.kind, "signers": sorted(entry.signers)}
        facts["body"] = entry.body.to_dict()
    return facts


def _proven(found: Proven) -> Iterator[str]:
    from artel.ledger.entries import story
    from artel.ledger.entries import words as text
    from artel.ledger.entries.records import Outcome

    head, entry = found.checkpoint, found.entry
    where = f"run {found.run}" if found.run else text.printable(head.origin)
    yield f"ok  entry {found.index:,} is in the log of {where}"
    yield f"    as of checkpoint {head.size:,}, root {head.root.hex()}"
    yield f"ok  signed by the log with key {found.log_key},"
    yield f"    {_whose(found)}"
    for name, at in found.cosigners.items():
        yield f"ok  cosigned by {_witness(name)}, {_when(at)}"
    for name, at in found.unknown_cosigners.items():
        yield f"--  cosigned by the key that calls itself {_witness(name)}, {_when(at)}"
    if not found.cosigners and not found.unknown_cosigners:
        yield "--  no witness has cosigned it"
    if entry is not None:
        yield f"ok  its signatures verify: {', '.join(sorted(_signers(found)))}"
        says = story.summary(entry.body, Outcome("recorded"))
        yield f"\nentry {found.index}: {entry.kind}, {says}"
    yield "\nproven      the log committed to these bytes at this place; it cannot take them back"
    yield "not proven  that the entry counts, by those before it: see artel ledger explain"
    if found.run:
        yield "            that it is the only history: artel ledger compare asks several holders"
    if found.sealed_by and not found.pinned:
        yield "            that those who sealed it were electors: artel ledger audit TARGET --full"
    if found.unknown_cosigners:
        yield "            that a key that cosigned it is of a node of the run: --vkey names those"
    if found.cosigners:
        yield "            that the witnesses are different people: seats are open to any account"


def _whose(found: Proven) -> str:
    """Why the log's key is believed."""
    from artel.ledger.entries.words import plural

    if found.pinned:
        return "which you gave"
    term = found.terms[-1]
    if not term.number:
        return "which the manifest of that run names first"
    return f"who leads from entry {term.begins:,} on, sealed by {plural(found.sealed_by, 'node')}"


def _witness(name: str) -> str:
    from artel.ledger.entries.words import printable
    from artel.ledger.tlog.cosignature import WITNESS_PREFIX
    from artel.protocol.identity import short_peer

    peer = name.removeprefix(WITNESS_PREFIX)
    return f"node {short_peer(peer)}" if peer != name else printable(name)


def _when(at: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    except (OverflowError, ValueError, OSError):
        return f"{at} seconds after 1970"


def _signers(found: Proven) -> Iterator[str]:
    """Who signed the entry, as far as the proof itself says."""
    from artel.ledger.entries.fold_state import FoldState
    from artel.ledger.entries.words import short_key, signers
    from artel.protocol.identity import short_peer

    assert found.entry is not None
    account, state = getattr(found.entry.body, "account", ""), FoldState()
    if found.genesis is not None:
        state.organiser, state.coordinators = found.genesis.organiser, [*found.genesis.coordinators]
        state.terms = [*found.terms]
    state.keys = {account: account}
    for key, roles in signers(found.entry, state).items():
        role = next((role.name for role in roles), "key")
        node = next((role.node for role in roles if role.node), "")
        yield f"{role} {short_peer(node) if role == 'node' else short_key(key)}"


def _verify_evidence(path: Path, vkeys: Sequence[str], as_json: bool) -> int:
    from artel.ledger.entries import words as text
    from artel.ledger.sync import offline

    split, key = offline.verify_evidence(read(path), vkeys)
    first, second = split.sizes
    facts = {"verified": True, "origin": split.origin, "signer": key.name, "vkey": key.encode()}
    facts |= {"sizes": [first, second], "index": split.fork.index if split.fork else None}
    return show(
        facts,
        (
            f"the evidence holds: key {key.public.hex()[:16]}… ({text.printable(key.name)})",
            f"signed two histories of {text.printable(split.origin)}",
            f"    two different roots of {first:,} entries"
            if split.fork is None
            else f"    checkpoints {first:,} and {second:,} differ in entry {split.fork.index:,}",
            f"\nit proves this to anybody; enter it with: artel ledger split-view {quote(path)}",
        ),
        as_json=as_json,
    )


def _verify_home(homes: Sequence[Path], states: int, as_json: bool) -> int:
    from artel.ledger.entries.words import plural
    from artel.ledger.fold import labels
    from artel.ledger.store.finality import trust
    from artel.ledger.store.published import LostEntries
    from artel.ledger.store.verify import verify_home

    home = homes[0]
    result = verify_home(home, progress("entries checked"))
    found = _recomputed(homes, states, as_json) if result.verified and states else []
    wrong = [item for item in found if item.status == "wrong"]
    right = sum(item.status == "right" for item in found)
    verified = result.verified and not wrong
    roots = labels.state_roots(result.state.round, result.told, right)
    unchecked = [roots if item.name == roots.name else item for item in result.unchecked]
    facts = {"run": result.run, "size": result.size, "root": result.root}
    facts |= {"verified": verified, "label": trust(result.state).label}
    facts |= {"checks": result.checks, "states": found, "not_checked": unchecked}
    facts["recomputed"] = {**result.told, "here": right, "of": result.state.round}
    show(facts, _checked(result, unchecked), as_json=as_json)
    if wrong:
        raise CheckFailed(
            f"{plural(len(wrong), 'agreed state')} of {len(found)} cannot come from what was "
            f"contributed, the first is state {wrong[0].state}",
            "whoever signed it has signed something wrong; while it is among the newest, a node "
            f"says so: artel ledger accuse {wrong[0].state} --home {quote(homes[0])}",
        )
    if result.verified or as_json:
        if result.verified:
            return EXIT_OK if right or not states else EXIT_RESOURCE
        return EXIT_FAILED
    print(f"\nthe ledger in {home} does NOT hold", file=sys.stderr)
    hints = [check.hint for check in result.checks if not check.ok]
    hint = LostEntries("", home, result.run).hint
    if all(hints):
        hint = "\n  → ".join(hints)
    elif result.entries_hold:
        hint = "its entries do: stop whatever uses it, and compute the rest from them again:\n"
        hint += f"    artel ledger restore --home {quote(home)}"
    print(f"  → {hint}", file=sys.stderr)
    return EXIT_FAILED


def _recomputed(homes: Sequence[Path], count: int, as_json: bool) -> list[StateChecked]:
    """The newest agreed states, recomputed; each is said as it comes out."""
    from artel.ledger.fold.recheck_states import recheck_states
    from artel.ledger.sync.client import home_view

    found = []
    with home_view(homes[0]) as view:
        for item in recheck_states(view.history, count, homes):
            found.append(item)
            if not as_json:
                print(item.line(), flush=True)
    return found


def _checked(result: Verification, unchecked: Sequence[Unchecked]) -> Iterator[str | Table]:
    checks = [["ok" if item.ok else "FAIL", item.name, item.detail] for item in result.checks]
    left = [["--", item.name, item.detail] for item in unchecked]
    yield Table(checks)
    yield "\nnot checked:"
    yield Table(left)
    if result.verified:
        yield f"\nwhat was checked holds: {result.size:,} entries, root {result.root}"
