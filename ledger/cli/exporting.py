"""``artel ledger export csv | proofs``: the ledger for other programs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.cli import Add, count, opening, print_json, quote
from artel.ledger.cli.sending import account_named, home_of
from artel.protocol.errors import EXIT_OK, CheckFailed, UsageError

if TYPE_CHECKING:
    from artel.ledger.entries.state import FoldState
    from artel.ledger.sync.client import View


def register(add: Add) -> None:
    """Add the commands."""
    table = add(
        "export csv", _csv, "write accounts, work, credit and shares as a table", "-o shares.csv"
    )
    _add_output(table)
    _add_at(table)
    table.add_argument(
        "--aliases", action="store_true", help="with the names that accounts have published"
    )
    proofs = add(
        "export proofs",
        _proofs,
        "write a proof file for each entry that an account's credit comes from, to keep",
        "-o my-proofs",
    )
    proofs.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for the files; those of the same entries are replaced",
    )
    proofs.add_argument(
        "--account", metavar="ACCOUNT", help="whose (default: the one of HOME/account.key)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="instead of standard output; replaced if it exists",
    )


def _add_at(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--at", type=count, metavar="N", help="as it was after the first N entries")


def _as_of(arguments: argparse.Namespace, view: View) -> tuple[FoldState, bytes]:
    """The state to export, and the root of the tree that it comes from."""
    at: int | None = arguments.at
    if at is None or at == view.log.size:
        return view.state, view.log.root
    if at > view.log.size:
        raise UsageError(f"the ledger has {view.log.size} entries, not {at}")
    return view.replay(at), view.log.root_at(at)


def _standing(view: View, size: int) -> str:
    trust = "final" if 0 < size <= view.final_size else "pending"
    return f"as of entry {size} of the ledger, {trust}"


def _put(arguments: argparse.Namespace, content: str, about: str) -> None:
    """Write the export, and say what it is where it does not get into it."""
    from artel.ledger.sync.export import write_file

    if arguments.output is None:
        sys.stdout.write(content)
        print(about, file=sys.stderr)
    else:
        write_file(arguments.output, content.encode())
        print(f"wrote {arguments.output}: {about}")


# --- csv ------------------------------------------------------------------------------------------


def _csv(arguments: argparse.Namespace) -> int:
    from artel.ledger.entries.words import plural
    from artel.ledger.sync import export

    with opening.opened(arguments) as view:
        state, root = _as_of(arguments, view)
        rows = export.table(state, root, view.aliases if arguments.aliases else None)
        about = f"{plural(len(rows) - 1, 'account')}, {_standing(view, state.size)}"
        if arguments.json:
            names, *accounts = rows
            facts = {"run": state.run, "as_of": state.size, "root": root.hex()}
            final = state.size <= view.final_size
            listed = [dict(zip(names, row, strict=True)) for row in accounts]
            _put_json(arguments, facts | {"final": final, "accounts": listed})
            return EXIT_OK
    _put(arguments, export.csv_text(rows), about)
    return EXIT_OK


def _put_json(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    from artel.ledger.sync.export import write_file

    if arguments.output is None:
        print_json(facts)
    else:
        write_file(arguments.output, (json.dumps(facts, indent=2) + "\n").encode())


# --- proofs ---------------------------------------------------------------------------------------


def _proofs(arguments: argparse.Namespace) -> int:
    from artel.ledger.sync import export

    folder: Path = arguments.output
    with opening.opened(arguments) as view:
        account = _whose(arguments, view)
        credits, wanted = export.grounds(view, account)
        files = []
        for index in sorted(wanted):
            made = export.write_proof(view, index, folder / f"entry-{index}")
            files.append(
                {
                    "index": index,
                    "id": made.id,
                    "kind": wanted[index],
                    "proof": made.proof.name,
                    "entry": made.entry.name,
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
        }
    index_file = folder / "index.json"
    export.write_file(index_file, (json.dumps(facts, indent=2) + "\n").encode())
    if arguments.json:
        print_json(facts)
        return EXIT_OK
    final = sum(bool(file["final"]) for file in files)
    print(f"wrote {len(files)} proofs ({final} final) and their entries to {folder}")
    print(f"{index_file} lists which entry granted what; check one of them offline with")
    first = files[-1]
    proof, entry = (quote(folder / str(first[name])) for name in ("proof", "entry"))
    print(f"  artel ledger verify {proof} {entry}")
    return EXIT_OK


def _whose(arguments: argparse.Namespace, view: View) -> str:
    """The account to export.

    :raises CheckFailed: when the ledger does not know it
    """
    from artel.ledger.store.keyfiles import ACCOUNT_KEY
    from artel.protocol import identity

    if arguments.account is not None:
        return account_named(view, arguments.account)
    path = home_of(arguments) / ACCOUNT_KEY
    if not path.exists():
        raise UsageError(f"there is no {path}", "say whose proofs: --account ACCOUNT")
    name = view.state.keys.get(identity.load(path).key)
    if name is None:
        raise CheckFailed(
            f"as of checkpoint {view.log.size}, the key in {path} speaks for no account",
            "say whose proofs: --account ACCOUNT",
        )
    return str(name)
