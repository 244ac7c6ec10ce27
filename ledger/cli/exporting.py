"""``artel ledger export csv | proofs``: the ledger for other programs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import account_of
from artel.ledger.cli.opening import At, LedgerOptions
from artel.protocol import commandline
from artel.protocol.commandline import File, Folder
from artel.protocol.errors import EXIT_OK, CheckFailed

if TYPE_CHECKING:
    from artel.ledger.sync.client import LedgerView


export = commandline.group("export", "Shares and proofs as files.", None)

Output = Annotated[
    File | None,
    Parameter(name=("-o", "--output"), help="instead of standard output; replaced if it exists"),
]


def _standing(view: LedgerView, size: int) -> str:
    trust = "final" if 0 < size <= view.final_size else "pending"
    return f"as of entry {size} of the ledger, {trust}"


def _put(output: Path | None, content: str, about: str) -> None:
    """Write the export, and say what it is where it does not get into it."""
    from artel.ledger.sync.export import write_file

    if output is None:
        sys.stdout.write(content)
        if about:
            print(about, file=sys.stderr)
    else:
        write_file(output, content.encode())
        if about:
            print(f"wrote {output}: {about}")


# --- csv ------------------------------------------------------------------------------------------


@export.command
def csv(
    *,
    output: Output = None,
    at: At = None,
    aliases: bool = False,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Write accounts, work, credit and shares as a table.

    example: artel ledger export csv -o shares.csv

    :param aliases: with the names that accounts have published
    """
    from artel.ledger.entries.words import plural
    from artel.ledger.sync import export

    with ledger.opened() as view:
        state = view.as_of(at)
        root = view.log.root_at(state.size)
        rows = export.table(state, root, view.aliases if aliases else None)
        about = f"{plural(len(rows) - 1, 'account')}, {_standing(view, state.size)}"
        if ledger.as_json:
            names, *accounts = rows
            facts: dict[str, Any] = {"run": state.run, "as_of": state.size, "root": root.hex()}
            facts["final"] = state.size <= view.final_size
            facts["accounts"] = [dict(zip(names, row, strict=True)) for row in accounts]
            _put(output, json.dumps(facts, indent=2) + "\n", "")
        else:
            _put(output, export.csv_text(rows), about)
    return EXIT_OK


# --- proofs ---------------------------------------------------------------------------------------


@export.command
def proofs(
    *,
    output: Annotated[Folder, Parameter(name=("-o", "--output"))],
    account: Annotated[str | None, Parameter(metavar="ACCOUNT")] = None,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Write a proof file for each entry that an account's credit comes from, to keep.

    example: artel ledger export proofs -o my-proofs

    :param output: folder for the files; those of the same entries are replaced
    :param account: whose; otherwise the one of HOME/account.key
    """
    from artel.ledger.sync import export

    with ledger.opened() as view:
        account = account_of(view, ledger.folder, account)
        if not account:
            raise CheckFailed(
                f"as of checkpoint {view.log.size}, the key of {ledger.folder} is of no account",
                "say whose proofs: --account ACCOUNT",
            )
        facts = export.write_proofs(view, account, output)
    files = facts["files"]
    final = sum(bool(file["final"]) for file in files)
    sample = next((file for file in reversed(files) if file["final"]), files[-1])
    paths = (str(output / sample[name]) for name in ("proof", "entry"))
    verify = shlex.join([*paths, *(facts["policy"] if sample["final"] else [])])
    return ledger.show(
        facts,
        (
            f"wrote {len(files)} proofs ({final} final) and their entries to {output}",
            f"{output / export.INDEX_FILE} lists which entry granted what; check one offline with",
            f"  artel ledger verify {verify}",
        ),
    )
