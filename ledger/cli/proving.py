"""``artel ledger prove | verify``: a proof to keep, and checks that need nobody else."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.cli import Add, count, print_json, quote
from artel.ledger.cli.opening import opened, run_id
from artel.protocol import files
from artel.protocol.errors import EXIT_FAILED, EXIT_OK, CheckFailed, ResourceError, UsageError
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.sync.offline import Proven

MAX_FILE_BYTES = 256 * 1024
PROOF_SUFFIX = ".tlog-proof"


def register(add: Add) -> None:
    """Add the commands."""
    prove = add("prove", _prove, "write a proof of an entry that anybody can check offline", "17")
    prove.add_argument("entry", metavar="INDEX|ID", help="its index, or 8 or more digits of its id")
    prove.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help=f"the proof (default: entry-INDEX{PROOF_SUFFIX}); the entry's bytes go beside it, "
        "with the ending .json; both are replaced when they exist",
    )
    verify = add(
        "verify",
        _verify,
        "check a proof or evidence offline; without a file, every byte of a home's ledger",
        f"entry-17{PROOF_SUFFIX} entry-17.json",
        target=False,
    )
    verify.add_argument(
        "files", nargs="*", type=Path, metavar="PROOF ENTRY | EVIDENCE", help="files to check"
    )
    verify.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="home of a node or a coordinator, when no file is given (default: ~/.artel/node)",
    )
    verify.add_argument(
        "--vkey",
        action="append",
        default=[],
        metavar="VKEY",
        help="key to trust, of the log or of a witness; may be given several times",
    )
    verify.add_argument("--run", metavar="ID", help="run id that the proof has to be of")
    verify.add_argument(
        "--policy", type=count, default=0, metavar="N", help="witnesses that must have cosigned"
    )


# --- prove ----------------------------------------------------------------------------------------


def _prove(arguments: argparse.Namespace) -> int:
    from artel.ledger.cli.reading import index_of
    from artel.ledger.fold import labels
    from artel.ledger.sync import offline
    from artel.ledger.tlog.checkpoint import parse_checkpoint

    with opened(arguments) as view:
        index = index_of(view, arguments.entry)
        proof = offline.prove(view.log, view.finality, index)
        leaf, size = view.log.leaf(index), view.log.size
        covered = parse_checkpoint(proof.checkpoint).size
        final = bool(view.final_note) and proof.checkpoint == view.final_note
        needed, run = view.needed, view.state.run
    path: Path = arguments.output or Path(f"entry-{index}{PROOF_SUFFIX}")
    beside = path.with_name(path.name.removesuffix(PROOF_SUFFIX) + ".json")
    if beside == path:
        raise UsageError(f"{path} ends in .json", f"end it in {PROOF_SUFFIX}")
    # Checked before it is written: a proof that does not verify helps nobody.
    offline.verify(proof.encode().encode(), leaf, run=run)
    write(path, proof.encode().encode())
    write(beside, leaf)
    policy = ["--policy", str(needed)] if final else []
    command = shlex.join(["artel", "ledger", "verify", str(path), str(beside), *policy])
    if arguments.json:
        facts = {"index": index, "run": run, "proof": str(path), "entry": str(beside)}
        facts |= {"checkpoint": covered, "final": final, "as_of": size, "verify": command}
        print_json(facts)
        return EXIT_OK
    print(f"{path}  that entry {index} is in the ledger, as of checkpoint {covered:,}")
    print(f"{beside}  the entry, byte for byte")
    if final:
        print(f"final: the proof carries {needed} or more cosignatures")
    else:
        state = labels.finality(0, size, needed).partition(";")[0]
        print(f"{state}; prove it again later for a proof with cosignatures")
    print(f"\ncheck it offline, anywhere:\n  {command}")
    return EXIT_OK


def write(path: Path, data: bytes) -> None:
    """Write a file that a person asked for; an older one of that name is replaced.

    :raises ResourceError: when it cannot be written
    """
    try:
        files.write(path, data)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None


def read(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a file that a person named.

    :raises UsageError: when it cannot be read, or is longer than any that is meant here
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise UsageError(f"{path} is larger than {limit:,} bytes", "name the proof or the evidence")
    return data


# --- verify ---------------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace) -> int:
    files: list[Path] = arguments.files
    if files and arguments.home is not None:
        raise UsageError("either files or --home", "leave one of them out")
    if len(files) == 2:
        return _verify_proof(arguments, *files)
    if len(files) == 1:
        if files[0].name.endswith(PROOF_SUFFIX):
            entry = files[0].with_name(files[0].name.removesuffix(PROOF_SUFFIX) + ".json")
            return _verify_proof(arguments, files[0], entry)
        return _verify_evidence(arguments, files[0])
    if files:
        raise UsageError("at most two files: a proof and its entry")
    return _verify_home(arguments)


def _verify_proof(arguments: argparse.Namespace, proof: Path, entry: Path) -> int:
    from artel.ledger.sync import offline

    found = offline.verify(read(proof), read(entry), arguments.vkey, run_id(arguments.run))
    enough = len(found.cosigners) >= arguments.policy
    facts = _proven(found) | {"verified": enough, "policy": arguments.policy}
    if arguments.json:
        print_json(facts)
    else:
        _print_proven(found)
    if not enough:
        raise CheckFailed(
            f"{len(found.cosigners)} witnesses have cosigned, {arguments.policy} are asked for",
            "the rest holds; a later proof of the same entry may carry more",
        )
    return EXIT_OK


def _proven(found: Proven) -> dict[str, Any]:
    head, entry = found.checkpoint, found.entry
    facts: dict[str, Any] = {
        "origin": head.origin,
        "run": found.run,
        "index": found.index,
        "as_of": head.size,
        "root": head.root.hex(),
        "log_key": found.log_key,
        "log_key_from": "--vkey" if found.pinned else "the run id",
        "cosigners": found.cosigners,
    }
    if entry is not None:
        facts |= {"id": entry.id, "kind": entry.kind, "signers": sorted(entry.signers)}
        facts["body"] = entry.body.to_dict()
    return facts


def _print_proven(found: Proven) -> None:
    from artel.ledger.entries import story
    from artel.ledger.entries import words as text
    from artel.ledger.entries.state import Outcome
    from artel.ledger.tlog.cosignature import WITNESS_PREFIX

    head, entry = found.checkpoint, found.entry
    where = f"run {found.run}" if found.run else text.printable(head.origin)
    print(f"ok  entry {found.index:,} is in the log of {where}")
    print(f"    as of checkpoint {head.size:,}, root {head.root.hex()}")
    print(f"ok  signed by the log with key {found.log_key},")
    print(f"    {'which you gave' if found.pinned else 'which the manifest of that run names'}")
    for name, at in found.cosigners.items():
        peer = name.removeprefix(WITNESS_PREFIX)
        who = f"node {text.short_peer(peer)}" if peer != name else text.printable(name)
        print(f"ok  cosigned by {who}, {_when(at)}")
    if not found.cosigners:
        print("--  no witness has cosigned it")
    if entry is not None:
        print(f"ok  its signatures verify: {', '.join(sorted(_signers(found)))}")
        says = story.summary(entry.body, Outcome("recorded"))
        print(f"\nentry {found.index}: {entry.kind}, {says}")
    print("\nproven      the log committed to these bytes at this place; it cannot take them back")
    print(
        "not proven  that the entry counts: that depends on those before it (artel ledger explain)"
    )
    if found.run:
        print("            that it is the only history: artel ledger compare asks several holders")
    if found.cosigners:
        print("            that the witnesses are different people: seats are open to any account")


def _when(at: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    except (OverflowError, ValueError, OSError):
        return f"{at} seconds after 1970"


def _signers(found: Proven) -> list[str]:
    """Who signed the entry, as far as the proof itself says."""
    from artel.ledger.entries.words import short_key, short_peer
    from artel.protocol.identity import peer_id_of

    assert found.entry is not None
    body, genesis = found.entry.body, found.genesis
    node = getattr(body, "node", "")
    names = []
    for key in found.entry.signers:
        peer = peer_id_of(bytes.fromhex(key))
        if genesis is not None and key in genesis.coordinators:
            names.append(f"coordinator {short_key(key)}")
        elif genesis is not None and key == genesis.organiser:
            names.append(f"organiser {short_key(key)}")
        elif peer == node:
            names.append(f"node {short_peer(peer)}")
        elif key == getattr(body, "account", ""):
            names.append(f"account {short_key(key)}")
        else:
            names.append(f"key {short_key(key)}")
    return names


def _verify_evidence(arguments: argparse.Namespace, path: Path) -> int:
    from artel.ledger.entries import words as text
    from artel.ledger.sync import offline

    split, key = offline.verify_evidence(read(path), arguments.vkey)
    first, second = split.sizes
    facts = {"verified": True, "origin": split.origin, "signer": key.name, "vkey": key.encode()}
    facts |= {"sizes": [first, second], "index": split.fork.index if split.fork else None}
    if arguments.json:
        print_json(facts)
        return EXIT_OK
    print(f"the evidence holds: key {key.public.hex()[:16]}… ({text.printable(key.name)})")
    print(f"signed two histories of {text.printable(split.origin)}")
    if split.fork is None:
        print(f"    two different roots of {first:,} entries")
    else:
        print(f"    checkpoints {first:,} and {second:,} differ in entry {split.fork.index:,}")
    print("\nit proves this to anybody; enter it with: artel ledger split-view " + quote(path))
    return EXIT_OK


def _verify_home(arguments: argparse.Namespace) -> int:
    from artel.ledger.cli import DEFAULT_HOME
    from artel.ledger.store.finality import trust
    from artel.ledger.store.published import LostEntries
    from artel.ledger.store.verify import verify_home

    home: Path = expanded(arguments.home or DEFAULT_HOME)

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty() and total > 2000:
            end = "\n" if done == total else ""
            print(f"\rchecked {done:,} of {total:,} entries", end=end, file=sys.stderr, flush=True)

    result = verify_home(home, progress)
    state = result.state
    label = trust(state).label
    if arguments.json:
        checks = [
            {"name": check.name, "ok": check.ok, "detail": check.detail} for check in result.checks
        ]
        facts = {"run": result.run, "size": result.size, "root": result.root}
        facts |= {"verified": result.verified, "label": label, "checks": checks}
        print_json(facts | {"not_checked": [asdict(item) for item in result.unchecked]})
        return EXIT_OK if result.verified else EXIT_FAILED
    for check in result.checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<20}  {check.detail}")
    print("\nnot checked:")
    for item in result.unchecked:
        print(f"--    {item.name:<20}  {item.detail}")
    if result.verified:
        print(f"\nwhat was checked holds: {result.size:,} entries, root {result.root}")
        return EXIT_OK
    print(f"\nthe ledger in {home} does NOT hold", file=sys.stderr)
    print(f"  → {LostEntries('', home, result.run).hint}", file=sys.stderr)
    return EXIT_FAILED
